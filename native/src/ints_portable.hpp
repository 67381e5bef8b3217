// Integer products in the compiler's own vectors. The same names as ints_avx2.hpp.
#pragma once

#include "grid.hpp"
#include "simd_portable.hpp"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace tenfold {
namespace {

typedef uint16_t h8 __attribute__((vector_size(16)));
typedef int16_t s8 __attribute__((vector_size(16)));
typedef double d4 __attribute__((vector_size(32)));
typedef int64_t l4 __attribute__((vector_size(32)));

struct Ints {
  using F = Simd::F;
  using I = Simd::I;
  static constexpr int lanes = 8;
  static constexpr int tile_rows = Simd::tile_rows;

  static TF_INLINE I zero() { return {u4{}, u4{}}; }
  static TF_INLINE I load(const void* p) { return Simd::load_codes(p); }
  static TF_INLINE I spread(const int32_t* p) {
    const uint32_t x = static_cast<uint32_t>(*p);
    return {u4{x, x, x, x}, u4{x, x, x, x}};
  }
  static TF_INLINE I dot(I sum, I w, I x) {
    return {sum.lo + pair_sums(w.lo, x.lo), sum.hi + pair_sums(w.hi, x.hi)};
  }
  static TF_INLINE F to_float(I v) {
    return {__builtin_convertvector((i4)v.lo, f4), __builtin_convertvector((i4)v.hi, f4)};
  }

  template <int J>
  static TF_INLINE I nibbles(I word) {
    return map(word, [](u4 v) { return (u4)(((h8)v >> (4 * J)) & 15); });
  }
  template <int J>
  static TF_INLINE I bytes(I word) {
    return map(word, [](u4 v) { return (u4)((s8)(J == 0 ? (u4)((h8)v << 8) : v) >> 8); });
  }

  static TF_INLINE F load_f32(const void* p) { return Simd::load(static_cast<const float*>(p)); }
  static TF_INLINE F load_f16(const void* p) { return Simd::load_f16(p); }
  static TF_INLINE void store_f32(float* p, F v) { Simd::store(p, v); }
  static TF_INLINE F spread(const float* p) { return Simd::set(*p); }
  static TF_INLINE F zero_f() { return Simd::zero(); }
  static TF_INLINE F mul(F a, F b) { return Simd::mul(a, b); }
  static TF_INLINE F fused(F a, F b, F c) {  // rounded once, as the machines with such an instruction do
#if defined(__aarch64__)
    return Simd::fma(a, b, c);
#else
    return {fused(a.lo, b.lo, c.lo), fused(a.hi, b.hi, c.hi)};
#endif
  }

  template <int Apart>
  static TF_INLINE int32_t quantise(const float* x, int32_t* pairs, float* scale) {
    int32_t top = 0, sum = 0;
    for (int k = 0; k < kBlock; ++k) {
      int32_t bits;
      std::memcpy(&bits, x + k, 4);
      bits &= 0x7fffffff;
      top = bits > top ? bits : top;
    }
    const Grid grid = grid_of(top);
    *scale = grid.step;
    if (grid.step != grid.step) {
      std::memset(pairs, 0, kPairs * 4);
      return 0;
    }
    uint16_t q[kBlock];
    for (int k = 0; k < kBlock; ++k) {
      const float steps = x[k] * grid.inverse;
      const int value = static_cast<int>(std::nearbyint(steps < 32767.0f ? steps : 32767.0f));
      sum += value;
      q[k] = static_cast<uint16_t>(value);
    }
    for (int j = 0; j < kPairs; ++j) {
      const int k = j / Apart * 2 * Apart + j % Apart;
      pairs[j] = static_cast<int32_t>(q[k] | static_cast<uint32_t>(q[k + Apart]) << 16);
    }
    return sum;
  }

 private:
  template <class Fn>
  static TF_INLINE I map(I v, Fn fn) {
    return {fn(v.lo), fn(v.hi)};
  }
  static TF_INLINE u4 pair_sums(u4 w, u4 x) {
#if defined(__SSE2__)
    return (u4)_mm_madd_epi16((__m128i)w, (__m128i)x);
#else
    const i4 low = ((i4)(w << 16) >> 16) * ((i4)(x << 16) >> 16), high = ((i4)w >> 16) * ((i4)x >> 16);
    return (u4)(low + high);
#endif
  }
  // a b is exact in double; its sum with c is rounded to odd there, so that rounding once more, to
  // float, gives what one rounding would have (Boldo and Melquiond, "Emulation of a FMA and
  // correctly rounded sums: proved algorithms using rounding to odd", 2008).
  static TF_INLINE f4 fused(f4 a, f4 b, f4 c) {
    const d4 wide = __builtin_convertvector(c, d4);
    const d4 product = __builtin_convertvector(a, d4) * __builtin_convertvector(b, d4);
    const d4 sum = product + wide, back = sum - product;
    const d4 lost = (product - (sum - back)) + (wide - back);
    const l4 bits = (l4)sum;
    const l4 even = (l4)((bits & 1) == 0) & (l4)((lost < 0.0) | (lost > 0.0));  // false where NaN
    const l4 towards = (l4)((lost > 0.0) == (sum > 0.0)) * -2 - 1;            // away from zero or to it
    return __builtin_convertvector((d4)(bits + (towards & even)), f4);
  }
};

}  // namespace
}  // namespace tenfold
