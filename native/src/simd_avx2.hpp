// Eight float lanes on AVX2 + FMA + F16C. The same names as simd_portable.hpp.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace tenfold {
namespace {

#define TF_INLINE inline __attribute__((always_inline))

struct Simd {
  using F = __m256;
  using I = __m256i;
  static constexpr int tile_rows = 6;    // 6 x 16 outputs in 12 of 16 registers
  static constexpr int few_rows = 4;     // up to here weights are not worth storing unpacked
  static constexpr int lanes = 8;
  static constexpr int attend_rows = 3;  // 3 x 4 scores in 12 registers
  static constexpr int panel_rows = 6;   // 6 x 2 vectors of keys in 12 registers
  static constexpr int many_rows = 12;   // from here on transposed keys are worth their making

  static TF_INLINE F zero() { return _mm256_setzero_ps(); }
  static TF_INLINE F set(float x) { return _mm256_set1_ps(x); }
  static TF_INLINE F load(const float* p) { return _mm256_loadu_ps(p); }
  static TF_INLINE void store(float* p, F v) { _mm256_storeu_ps(p, v); }
  static TF_INLINE F load_n(const float* p, int n) { return _mm256_maskload_ps(p, first(n)); }
  static TF_INLINE void store_n(float* p, F v, int n) {
    if (n >= 8) return store(p, v);  // masked stores are slow on some processors
    _mm256_maskstore_ps(p, first(n), v);
  }

  static TF_INLINE F add(F a, F b) { return _mm256_add_ps(a, b); }
  static TF_INLINE F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static TF_INLINE F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static TF_INLINE F div(F a, F b) { return _mm256_div_ps(a, b); }
  static TF_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static TF_INLINE F sqrt(F a) { return _mm256_sqrt_ps(a); }
  // Both return b where either is NaN.
  static TF_INLINE F max(F a, F b) { return _mm256_max_ps(a, b); }
  static TF_INLINE F min(F a, F b) { return _mm256_min_ps(a, b); }
  static TF_INLINE F abs(F a) { return _mm256_andnot_ps(set(-0.0f), a); }
  static TF_INLINE F copy_sign(F size, F sign) {
    return _mm256_or_ps(abs(size), _mm256_and_ps(set(-0.0f), sign));
  }
  static TF_INLINE F less(F a, F b, F then, F otherwise) {
    return _mm256_blendv_ps(otherwise, then, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
  }
  static TF_INLINE F round(F a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static TF_INLINE F exp2_int(F n) {  // 2^n for whole n in [-126, 127]
    const I e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(e, 23));
  }
  // Lane i of v where first <= base + i < last, else other.
  static TF_INLINE F keep(F v, int base, int begin, int end, F other) {
    const I index = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
                                     _mm256_set1_epi32(base));
    const I in = _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(begin), index),
                                     _mm256_cmpgt_epi32(_mm256_set1_epi32(end), index));
    return _mm256_blendv_ps(other, v, _mm256_castsi256_ps(in));
  }

  static TF_INLINE float sum(F v) {
    const __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 t = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(t, _mm_movehdup_ps(t)));
  }
  static TF_INLINE F add_halves(F sum, F v) { return add(sum, v); }  // all lanes of wider vectors
  static TF_INLINE float max_lane(F v) {
    const __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 t = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(t, _mm_movehdup_ps(t)));
  }
  // The lane sums of four vectors, each ((0+1)+(2+3))+((4+5)+(6+7)).
  static TF_INLINE void sum4(F a, F b, F c, F d, float* out) {
    const F t = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps(t, 1)));
  }

  // Lane j of vector i <-> lane i of vector j.
  static TF_INLINE void transpose(F (&v)[8]) {
    F pairs[8], fours[8];
    for (int i = 0; i < 8; i += 2) {
      pairs[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
      pairs[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
      for (int j = 0; j < 2; ++j) {
        fours[i + 2 * j] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0x44);
        fours[i + 2 * j + 1] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0xee);
      }
    }
    for (int i = 0; i < 4; ++i) {
      v[i] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
      v[i + 4] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
    }
  }

  static TF_INLINE F load_f16(const void* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  }
  static TF_INLINE F load_bf16(const void* p) {
    const I wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
  static TF_INLINE F load_i8(const void* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p))));
  }
  static TF_INLINE void store_f16(void* p, F v) {
    _mm_storeu_si128(static_cast<__m128i*>(p),
                     _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static TF_INLINE void store_bf16(void* p, F v) {  // to nearest even
    const I wide = _mm256_castps_si256(v), one = _mm256_set1_epi32(1);
    const I odd = _mm256_and_si256(_mm256_srli_epi32(wide, 16), one);
    const I near = _mm256_add_epi32(_mm256_add_epi32(wide, _mm256_set1_epi32(0x7fff)), odd);
    const I nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const I kept = _mm256_blendv_epi8(near, _mm256_set1_epi32(0x7fc00000), nan);
    _mm_storeu_si128(static_cast<__m128i*>(p), narrow(_mm256_srli_epi32(kept, 16)));
  }
  static TF_INLINE void store_i8(void* p, F v) {  // whole numbers within [-128, 127]
    const I wide = _mm256_cvtps_epi32(v);
    const __m128i half = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    _mm_storel_epi64(static_cast<__m128i*>(p), _mm_packs_epi16(half, half));
  }
  static TF_INLINE I load_codes(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }
  template <int J>
  static TF_INLINE F nibble(I codes) {  // the J-th of 8 nibbles of each lane, 0..15
    I v = J == 0 ? codes : _mm256_srli_epi32(codes, 4 * J);
    if (J != 7) v = _mm256_and_si256(v, _mm256_set1_epi32(15));
    return _mm256_cvtepi32_ps(v);
  }
  template <int J>
  static TF_INLINE F high_byte(I codes) {  // the J-th of 4 int8 of each lane, times 2^24
    I v = J == 3 ? codes : _mm256_slli_epi32(codes, 24 - 8 * J);
    if (J != 0) v = _mm256_and_si256(v, _mm256_set1_epi32(static_cast<int>(0xff000000u)));
    return _mm256_cvtepi32_ps(v);
  }

 private:
  static TF_INLINE __m128i narrow(I v) {  // lanes below 2^16 to 16 bits
    return _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  }
  static TF_INLINE I first(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
};

}  // namespace
}  // namespace tenfold
