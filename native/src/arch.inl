// The body of a translation unit: everything of one instruction set, in its own anonymous namespace.
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>

#include "arch.hpp"

namespace tenfold {
namespace {

#include "codecs.inl"
#include "linear.inl"
#include "linear_ints.inl"
#include "math.inl"
#include "rows.inl"
#include "kv_rows.inl"
#include "attention.inl"

constexpr Arch make_arch(const char* name) {
  return {name,    Simd::tile_rows, linear,       Ints::tile_rows, quantise_row, linear_ints,
          rms_norm, gated,          largest,      softcap,         rope,         store_row,
          attend_span, attend_merge, attend_finish};
}

}  // namespace
}  // namespace tenfold
