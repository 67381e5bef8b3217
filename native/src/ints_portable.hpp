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
  static constexpr int tile_rows = Simd::tile_rows, vectors = 1;

  static TF_INLINE I zero() { return {u4{}, u4{}}; }
  static TF_INLINE I load(const void* p) { return Simd::load_codes(p); }
  static TF_INLINE I pair_dot(I sum, I w, const int32_t* x) {
    const u4 pair = spread(*x);
    return {sum.lo + pair_sums(w.lo, pair), sum.hi + pair_sums(w.hi, pair)};
  }
  static TF_INLINE I quad_dot(I sum, I w, const int32_t* x) {  // w without signs
    const u4 quad = spread(*x);
    return {sum.lo + quad_sums(w.lo, quad), sum.hi + quad_sums(w.hi, quad)};
  }
  static TF_INLINE I settle(I sum) { return sum; }
  static TF_INLINE I add(I a, const int32_t* b) { return {a.lo + spread(*b), a.hi + spread(*b)}; }
  static TF_INLINE F to_float(I v) {
    return {__builtin_convertvector((i4)v.lo, f4), __builtin_convertvector((i4)v.hi, f4)};
  }

  template <int J>
  static TF_INLINE I nibbles(I word) {
    return map(word, [](u4 v) { return (v >> (4 * J)) & 0x0f0f0f0f; });
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

  static TF_INLINE int32_t largest(const float* x) {  // the bits of the largest size of 32
    int32_t top = 0;
    for (int k = 0; k < kBlock; ++k) {
      int32_t bits;
      std::memcpy(&bits, x + k, 4);
      bits &= 0x7fffffff;
      top = bits > top ? bits : top;
    }
    return top;
  }

  static TF_INLINE void quantise_pairs(const float* x, float inverse, int32_t* pairs) {
    uint16_t q[kBlock];
    for (int k = 0; k < kBlock; ++k) q[k] = static_cast<uint16_t>(steps(x[k] * inverse, 32767.0f));
    for (int j = 0; j < kPairs; ++j) {
      const int k = j / 2 * 4 + j % 2;
      pairs[j] = static_cast<int32_t>(q[k] | static_cast<uint32_t>(q[k + 2]) << 16);
    }
  }

  static TF_INLINE ByteSums quantise_quads(const float* x, float inverse, int32_t* high, int32_t* low) {
    ByteSums sums{0, 0};
    int8_t highs[kBlock], lows[kBlock];
    for (int k = 0; k < kBlock; ++k) {
      const int q = steps(x[k] * inverse, kMost), h = (q + 128) >> 8, l = q - h * 256;
      const int at = k / 8 * 8 + k % 2 * 4 + k % 8 / 2;
      highs[at] = static_cast<int8_t>(h);
      lows[at] = static_cast<int8_t>(l);
      sums.high += h;
      sums.low += l;
    }
    std::memcpy(high, highs, kBlock);
    std::memcpy(low, lows, kBlock);
    return sums;
  }

 private:
  static TF_INLINE u4 spread(int32_t value) {
    const uint32_t x = static_cast<uint32_t>(value);
    return u4{x, x, x, x};
  }
  static TF_INLINE int steps(float x, float most) {  // 0 for NaN
    return x == x ? static_cast<int>(std::nearbyint(x < -32768.0f ? -32768.0f : x < most ? x : most)) : 0;
  }
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
  static TF_INLINE u4 quad_sums(u4 w, u4 x) {
    const u4 even = (u4)((s8)((h8)x << 8) >> 8), odd = (u4)((s8)x >> 8);
    return pair_sums(w & 0x00ff00ff, even) + pair_sums((w >> 8) & 0x00ff00ff, odd);
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
