// Eight float lanes as two four-lane vectors of the compiler's own (NEON on aarch64, SSE2 on x86-64).
// The same names as simd_avx2.hpp. Multiply-add is fused on aarch64 and two roundings elsewhere, but
// the same everywhere in one build: nothing is left to contraction.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace tenfold {
namespace {

#define TF_INLINE inline __attribute__((always_inline))

typedef float f4 __attribute__((vector_size(16)));
typedef int32_t i4 __attribute__((vector_size(16)));
typedef uint32_t u4 __attribute__((vector_size(16)));
typedef uint16_t h4 __attribute__((vector_size(8)));

struct Simd {
  struct F {
    f4 lo, hi;
  };
  struct I {
    u4 lo, hi;
  };
#if defined(__aarch64__)
  static constexpr int tile_rows = 6;  // 32 registers: 6 x 16 outputs take 24
  static constexpr int few_rows = 4;
  static constexpr int attend_rows = 3;
  static constexpr int panel_rows = 6;
  static constexpr int many_rows = 12;
#else
  static constexpr int tile_rows = 2;
  static constexpr int few_rows = 2;
  static constexpr int attend_rows = 1;
  static constexpr int panel_rows = 2;
  static constexpr int many_rows = 3;  // float16 is slow to read
#endif
  static constexpr int lanes = 8;

  static TF_INLINE F zero() { return {f4{}, f4{}}; }
  static TF_INLINE F set(float x) { return {f4{x, x, x, x}, f4{x, x, x, x}}; }
  static TF_INLINE F load(const float* p) {
    F v;
    std::memcpy(&v.lo, p, 16);
    std::memcpy(&v.hi, p + 4, 16);
    return v;
  }
  static TF_INLINE void store(float* p, F v) {
    std::memcpy(p, &v.lo, 16);
    std::memcpy(p + 4, &v.hi, 16);
  }
  static TF_INLINE F load_n(const float* p, int n) {
    float all[8] = {};
    for (int i = 0; i < n; ++i) all[i] = p[i];
    return load(all);
  }
  static TF_INLINE void store_n(float* p, F v, int n) {
    float all[8];
    store(all, v);
    for (int i = 0; i < n; ++i) p[i] = all[i];
  }

  static TF_INLINE F add(F a, F b) { return {a.lo + b.lo, a.hi + b.hi}; }
  static TF_INLINE F sub(F a, F b) { return {a.lo - b.lo, a.hi - b.hi}; }
  static TF_INLINE F mul(F a, F b) { return {a.lo * b.lo, a.hi * b.hi}; }
  static TF_INLINE F div(F a, F b) { return {a.lo / b.lo, a.hi / b.hi}; }
  static TF_INLINE F fma(F a, F b, F c) {
#if defined(__aarch64__)
    return {(f4)vfmaq_f32((float32x4_t)c.lo, (float32x4_t)a.lo, (float32x4_t)b.lo),
            (f4)vfmaq_f32((float32x4_t)c.hi, (float32x4_t)a.hi, (float32x4_t)b.hi)};
#else
    return add(mul(a, b), c);
#endif
  }
  static TF_INLINE F sqrt(F a) {
    for (int i = 0; i < 4; ++i) {
      a.lo[i] = std::sqrt(a.lo[i]);
      a.hi[i] = std::sqrt(a.hi[i]);
    }
    return a;
  }
  // Both return b where either is NaN.
  static TF_INLINE F max(F a, F b) {
    return {a.lo > b.lo ? a.lo : b.lo, a.hi > b.hi ? a.hi : b.hi};
  }
  static TF_INLINE F min(F a, F b) {
    return {a.lo < b.lo ? a.lo : b.lo, a.hi < b.hi ? a.hi : b.hi};
  }
  static TF_INLINE F abs(F a) { return bits(map(bits(a), [](u4 v) { return v & 0x7fffffffu; })); }
  static TF_INLINE F copy_sign(F size, F sign) {
    const I a = bits(abs(size)), b = bits(sign);
    return bits(I{a.lo | (b.lo & 0x80000000u), a.hi | (b.hi & 0x80000000u)});
  }
  static TF_INLINE F less(F a, F b, F then, F otherwise) {
    return {a.lo < b.lo ? then.lo : otherwise.lo, a.hi < b.hi ? then.hi : otherwise.hi};
  }
  static TF_INLINE F round(F a) {  // to nearest even, for |a| < 2^22
    const F magic = set(12582912.0f);
    return sub(add(a, magic), magic);
  }
  static TF_INLINE F exp2_int(F n) {  // 2^n for whole n in [-126, 127]
    return {(f4)((__builtin_convertvector(n.lo, i4) + 127) << 23),
            (f4)((__builtin_convertvector(n.hi, i4) + 127) << 23)};
  }
  // Lane i of v where first <= base + i < last, else other.
  static TF_INLINE F keep(F v, int base, int begin, int end, F other) {
    const i4 lo = i4{0, 1, 2, 3} + base, hi = i4{4, 5, 6, 7} + base;
    return {((lo >= begin) & (lo < end)) ? v.lo : other.lo,
            ((hi >= begin) & (hi < end)) ? v.hi : other.hi};
  }

  static TF_INLINE float sum(F v) {
    const f4 s = v.lo + v.hi;
    return (s[0] + s[2]) + (s[1] + s[3]);
  }
  static TF_INLINE F add_halves(F sum, F v) { return add(sum, v); }  // all lanes of wider vectors
  static TF_INLINE float max_lane(F v) {
    const f4 s = v.lo > v.hi ? v.lo : v.hi;
    const float a = s[0] > s[2] ? s[0] : s[2], b = s[1] > s[3] ? s[1] : s[3];
    return a > b ? a : b;
  }
  // The lane sums of four vectors, each ((0+1)+(2+3))+((4+5)+(6+7)).
  static TF_INLINE void sum4(F a, F b, F c, F d, float* out) {
    transpose4(a.lo, b.lo, c.lo, d.lo);
    transpose4(a.hi, b.hi, c.hi, d.hi);
    const f4 all = ((a.lo + b.lo) + (c.lo + d.lo)) + ((a.hi + b.hi) + (c.hi + d.hi));
    std::memcpy(out, &all, 16);
  }
  // Lane j of vector i <-> lane i of vector j.
  static TF_INLINE void transpose(F (&v)[8]) {
    transpose4(v[0].lo, v[1].lo, v[2].lo, v[3].lo);
    transpose4(v[4].hi, v[5].hi, v[6].hi, v[7].hi);
    transpose4(v[0].hi, v[1].hi, v[2].hi, v[3].hi);
    transpose4(v[4].lo, v[5].lo, v[6].lo, v[7].lo);
    for (int i = 0; i < 4; ++i) std::swap(v[i].hi, v[i + 4].lo);
  }

  static TF_INLINE F load_f16(const void* p) {
    h4 half[2];
    std::memcpy(half, p, 16);
    return {from_f16(half[0]), from_f16(half[1])};
  }
  static TF_INLINE F load_bf16(const void* p) {
    h4 half[2];
    std::memcpy(half, p, 16);
    return {(f4)(__builtin_convertvector(half[0], u4) << 16),
            (f4)(__builtin_convertvector(half[1], u4) << 16)};
  }
  static TF_INLINE F load_i8(const void* p) {
    int8_t code[8];
    std::memcpy(code, p, 8);
    float all[8];
    for (int i = 0; i < 8; ++i) all[i] = code[i];
    return load(all);
  }
  static TF_INLINE void store_f16(void* p, F v) {
    const h4 half[2] = {to_f16(v.lo), to_f16(v.hi)};
    std::memcpy(p, half, 16);
  }
  static TF_INLINE void store_bf16(void* p, F v) {  // to nearest even
    const I wide = map(bits(v), [](u4 b) {
      const u4 nan = (u4)((b & 0x7fffffffu) > 0x7f800000u), near = b + 0x7fffu + ((b >> 16) & 1u);
      return ((near & ~nan) | (0x7fc00000u & nan)) >> 16;
    });
    const h4 half[2] = {__builtin_convertvector(wide.lo, h4), __builtin_convertvector(wide.hi, h4)};
    std::memcpy(p, half, 16);
  }
  static TF_INLINE void store_i8(void* p, F v) {  // whole numbers within [-128, 127]
    int8_t code[8];
    for (int i = 0; i < 4; ++i) {
      code[i] = static_cast<int8_t>(v.lo[i]);
      code[4 + i] = static_cast<int8_t>(v.hi[i]);
    }
    std::memcpy(p, code, 8);
  }
  static TF_INLINE I load_codes(const void* p) {
    I v;
    std::memcpy(&v, p, 32);
    return v;
  }
  template <int J>
  static TF_INLINE F nibble(I codes) {  // the J-th of 8 nibbles of each lane, 0..15
    return to_float(map(codes, [](u4 v) { return (v >> (4 * J)) & 15u; }));
  }
  template <int J>
  static TF_INLINE F high_byte(I codes) {  // the J-th of 4 int8 of each lane, times 2^24
    return to_float(map(codes, [](u4 v) { return (v << (24 - 8 * J)) & 0xff000000u; }));
  }

 private:
  template <int A, int B, int C, int D>  // lanes of a (0..3) and b (4..7)
  static TF_INLINE f4 pick(f4 a, f4 b) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, A, B, C, D);
#else
    return __builtin_shuffle(a, b, i4{A, B, C, D});
#endif
  }
  static TF_INLINE void transpose4(f4& a, f4& b, f4& c, f4& d) {
    const f4 p = pick<0, 4, 1, 5>(a, b), q = pick<2, 6, 3, 7>(a, b);
    const f4 r = pick<0, 4, 1, 5>(c, d), s = pick<2, 6, 3, 7>(c, d);
    a = pick<0, 1, 4, 5>(p, r);
    b = pick<2, 3, 6, 7>(p, r);
    c = pick<0, 1, 4, 5>(q, s);
    d = pick<2, 3, 6, 7>(q, s);
  }
  template <class Fn>
  static TF_INLINE I map(I v, Fn fn) {
    return {fn(v.lo), fn(v.hi)};
  }
  static TF_INLINE I bits(F v) { return {(u4)v.lo, (u4)v.hi}; }
  static TF_INLINE F bits(I v) { return {(f4)v.lo, (f4)v.hi}; }
  static TF_INLINE F to_float(I v) {
    return {__builtin_convertvector((i4)v.lo, f4), __builtin_convertvector((i4)v.hi, f4)};
  }
  static TF_INLINE f4 from_f16(h4 half) {
#if defined(__aarch64__)
    return (f4)vcvt_f32_f16((float16x4_t)half);
#else
    const u4 wide = __builtin_convertvector(half, u4);
    const u4 size = (wide & 0x7fffu) << 13;
    const float scale = 5.192296858534828e33f;  // 2^112: half's exponent bias to float's
    const u4 finite = (u4)((f4)size * scale);
    const u4 special = (u4)(size >= 0x0f800000u) & 0x7f800000u;  // infinities and NaN
    return (f4)(finite | special | ((wide & 0x8000u) << 16));
#endif
  }
  static TF_INLINE h4 to_f16(f4 v) {  // to nearest even
#if defined(__aarch64__)
    return (h4)vcvt_f16_f32((float32x4_t)v);
#else
    const u4 wide = (u4)v, size = wide & 0x7fffffffu;
    // Ordinary numbers: the exponent's bias moves, 13 bits are rounded away.
    const u4 normal = (size - 0x38000000u + 0xfffu + ((size >> 13) & 1u)) >> 13;
    // Below 2^-14 the sum's own rounding leaves the bits: one unit of 0.5f is 2^-24.
    const u4 small = (u4)((f4)size + 0.5f) - 0x3f000000u;
    const u4 is_small = (u4)(size < 0x38800000u), is_large = (u4)(size >= 0x477ff000u);
    const u4 is_nan = (u4)(size > 0x7f800000u);
    u4 half = (small & is_small) | (normal & ~is_small);
    half = (half & ~is_large) | (0x7c00u & is_large);
    half |= 0x0200u & is_nan;
    return __builtin_convertvector(half | ((wide >> 16) & 0x8000u), h4);
#endif
  }
};

}  // namespace
}  // namespace tenfold
