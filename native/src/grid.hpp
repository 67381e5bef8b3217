// Activations as int16, for the integer products.
//
// Each block of 32 columns of a row lies on a grid of its own: 2^n is the smallest power of two above
// its largest value, the step 2^(n - 15), a value the nearest multiple (ties to even) within
// [-32768, 32767] steps. A power of two, so that scaling is exact and nothing but the rounding to the
// grid is lost. A block with an infinity or NaN has the step NaN: its row's outputs are NaN.
//
// Rows are stored in tiles of R, block after block. A block takes R x 18 words of 32 bits:
//   pairs[R][16]  two columns each, as the weights' codes come apart: of 8 columns (0,4) (1,5) (2,6)
//                 (3,7) for 4-bit codes, of 4 columns (0,2) (1,3) for 8-bit codes
//   step[R]       float
//   sum[R]        the block's sum. Where weights have minima: float. For q4_0: int32, -8 times the sum
//                 in steps, which takes the offset of its codes away. Else unused.
#pragma once

#include <cstdint>
#include <cstring>

#include "layout.hpp"

namespace tenfold {

constexpr int kPairs = kBlock / 2;
constexpr int kRowWords = kPairs + 2;

constexpr int64_t int_tile_words(int64_t rows, int64_t cols) { return rows * (cols / kBlock) * kRowWords; }

constexpr bool is_four_bit(Kind kind) {
  return kind == Kind::q4_0 || kind == Kind::q4_1 || kind == Kind::q4_k;
}

namespace {

struct Grid {
  float step, inverse;
};

// Values below 2^-102 count as zero: no step is smaller, and no product leaves the normal numbers.
constexpr int kLeastExponent = 40;

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline Grid grid_of(int32_t largest_bits) {  // of the largest value's size
  int exponent = largest_bits >> 23;
  if (exponent < kLeastExponent) exponent = kLeastExponent;
  const uint32_t step = exponent == 255 ? 0x7fc00000u : static_cast<uint32_t>(exponent - 14) << 23;
  return {float_of(step), float_of(static_cast<uint32_t>(268 - exponent) << 23)};
}

}  // namespace
}  // namespace tenfold
