// From a checkpoint's bytes to panels (layout.hpp), and single rows back out of them.
#pragma once

#include <cstdint>

#include "layout.hpp"

namespace tenfold {

// Packs panels [panel0, panel1). Returns false where a scale or a float weight is not finite.
bool pack_panels(Kind kind, int64_t rows, int64_t cols, const uint8_t* raw, int64_t panel0,
                 int64_t panel1, uint8_t* out);

// One row as floats, the same values that the products use.
void unpack_row(Kind kind, int64_t cols, const uint8_t* packed, int64_t row, float* out);

}  // namespace tenfold
