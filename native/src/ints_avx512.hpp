// Integer products on AVX-512 with VNNI: sixteen lanes of int32 sums, two int16 columns a step
// (vpdpwssd). Everything that is not such a product is AVX2's, so that its results are too.
#pragma once

#include "grid.hpp"
#include "simd_avx2.hpp"

namespace tenfold {
namespace {

struct Ints {
  using F = __m512;
  using I = __m512i;
  static constexpr int lanes = 16;
  static constexpr int tile_rows = 12;  // 12 x 32 sums in 24 of 32 registers

  static TF_INLINE I zero() { return _mm512_setzero_si512(); }
  static TF_INLINE I load(const void* p) { return _mm512_loadu_si512(p); }
  static TF_INLINE void store(void* p, I v) { _mm512_storeu_si512(p, v); }
  static TF_INLINE I spread(const int32_t* p) { return _mm512_set1_epi32(*p); }
  // Written out, since GCC copies the sums of the intrinsic from register to register.
  static TF_INLINE I dot(I sum, I w, I x) {
    asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
    return sum;
  }
  static TF_INLINE F to_float(I v) { return _mm512_cvtepi32_ps(v); }

  template <int J>
  static TF_INLINE I nibbles(I word) {
    if (J == 3) return _mm512_srli_epi16(word, 12);
    return _mm512_and_si512(J == 0 ? word : _mm512_srli_epi16(word, 4 * J), _mm512_set1_epi16(15));
  }
  template <int J>
  static TF_INLINE I bytes(I word) {
    return _mm512_srai_epi16(J == 0 ? _mm512_slli_epi16(word, 8) : word, 8);
  }

  static TF_INLINE F load_f32(const void* p) { return _mm512_loadu_ps(p); }
  static TF_INLINE F load_f16(const void* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
  }
  static TF_INLINE void store_f32(float* p, F v) { _mm512_storeu_ps(p, v); }
  static TF_INLINE F spread(const float* p) { return _mm512_set1_ps(*p); }
  static TF_INLINE F zero_f() { return _mm512_setzero_ps(); }
  static TF_INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static TF_INLINE F fused(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }

  template <int Apart>
  static TF_INLINE int32_t quantise(const float* x, int32_t* pairs, float* scale) {
    const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
    const I mask = _mm512_set1_epi32(0x7fffffff);
    const I top = _mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(a), mask),
                                   _mm512_and_si512(_mm512_castps_si512(b), mask));
    const Grid grid = grid_of(_mm512_reduce_max_epi32(top));
    *scale = grid.step;
    const __m512 inverse = _mm512_set1_ps(grid.inverse), most = _mm512_set1_ps(32767.0f);
    const I p = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_mul_ps(a, inverse), most));
    const I q = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_mul_ps(b, inverse), most));
    // Lanes of p are 0..15 and of q 16..31: the first and the second column of each pair.
    const I first = Apart == 4 ? _mm512_setr_epi32(0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27)
                               : _mm512_setr_epi32(0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29);
    const I second = _mm512_add_epi32(first, _mm512_set1_epi32(Apart));
    const I low = _mm512_permutex2var_epi32(p, first, q), high = _mm512_permutex2var_epi32(p, second, q);
    const I pair = _mm512_mask_blend_epi16(0xaaaaaaaau, low, _mm512_slli_epi32(high, 16));
    store(pairs, pair);
    return _mm512_reduce_add_epi32(_mm512_madd_epi16(pair, _mm512_set1_epi16(1)));
  }
};

}  // namespace
}  // namespace tenfold
