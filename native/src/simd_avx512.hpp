// Sixteen float lanes for attention, beside simd_avx2.hpp's eight. The same names and, lane by lane, the
// same results; what adds lanes up does so in the order of eight.
#pragma once

#include "simd_avx2.hpp"

namespace tenfold {
namespace {

struct Wide {
  using F = __m512;
  using I = __m512i;
  static constexpr int lanes = 16;
  static constexpr int attend_rows = 6;  // 6 x 4 sums in 24 of 32 registers
  static constexpr int panel_rows = 6;
  static constexpr int many_rows = 12;

  static TF_INLINE F zero() { return _mm512_setzero_ps(); }
  static TF_INLINE F set(float x) { return _mm512_set1_ps(x); }
  static TF_INLINE F load(const float* p) { return _mm512_loadu_ps(p); }
  static TF_INLINE void store(float* p, F v) { _mm512_storeu_ps(p, v); }

  static TF_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
  static TF_INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static TF_INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static TF_INLINE F div(F a, F b) { return _mm512_div_ps(a, b); }
  static TF_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static TF_INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }
  static TF_INLINE F min(F a, F b) { return _mm512_min_ps(a, b); }
  static TF_INLINE F abs(F a) { return _mm512_andnot_ps(set(-0.0f), a); }
  static TF_INLINE F copy_sign(F size, F sign) {
    return _mm512_or_ps(abs(size), _mm512_and_ps(set(-0.0f), sign));
  }
  static TF_INLINE F less(F a, F b, F then, F otherwise) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), otherwise, then);
  }
  static TF_INLINE F round(F a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static TF_INLINE F exp2_int(F n) {
    const I e = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(e, 23));
  }
  static TF_INLINE F keep(F v, int base, int begin, int end, F other) {
    const uint32_t in = (~0u << (begin > base ? begin - base : 0)) &
                        (end - base < 16 ? ~(~0u << (end - base)) : 0xffffu);
    return _mm512_mask_blend_ps(static_cast<__mmask16>(in), other, v);
  }

  static TF_INLINE F load_f16(const void* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
  }
  static TF_INLINE F load_bf16(const void* p) {
    const I wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  static TF_INLINE F load_i8(const void* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))));
  }

  static TF_INLINE float max_lane(F v) { return Simd::max_lane(Simd::max(low(v), high(v))); }
  static TF_INLINE Simd::F add_halves(Simd::F sum, F v) {
    return Simd::add(Simd::add(sum, low(v)), high(v));
  }

 private:
  static TF_INLINE Simd::F low(F v) { return _mm512_castps512_ps256(v); }
  static TF_INLINE Simd::F high(F v) { return _mm512_extractf32x8_ps(v, 1); }
};

}  // namespace
}  // namespace tenfold
