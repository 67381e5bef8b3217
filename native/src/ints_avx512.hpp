// Integer products on AVX-512 with VNNI: sixteen lanes of int32 sums, two int16 columns a step
// (vpdpwssd) or four int8 ones (vpdpbusd). Everything that is not such a product is AVX2's, so that its results are too.
#pragma once

#include "grid.hpp"
#include "simd_avx2.hpp"

namespace tenfold {
namespace {

struct Ints {
  using F = __m512;
  using I = __m512i;
  static constexpr int lanes = 16;
  static constexpr int tile_rows = 12, vectors = 1;  // 12 integer and 12 float sums in 24 of 32 registers

  static TF_INLINE I zero() { return _mm512_setzero_si512(); }
  static TF_INLINE I load(const void* p) { return _mm512_loadu_si512(p); }
  static TF_INLINE void store(void* p, I v) { _mm512_storeu_si512(p, v); }
  // sum + the products of w with what lies at x, the same for every lane. Written out, since GCC copies
  // the sums of the intrinsics from register to register.
  static TF_INLINE I pair_dot(I sum, I w, const int32_t* x) {
    asm("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(w), "m"(*x));
    return sum;
  }
  static TF_INLINE I quad_dot(I sum, I w, const int32_t* x) {  // w without signs
    asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(w), "m"(*x));
    return sum;
  }
  static TF_INLINE I settle(I sum) { return sum; }
  static TF_INLINE I add(I a, const int32_t* b) { return _mm512_add_epi32(a, _mm512_set1_epi32(*b)); }
  static TF_INLINE F to_float(I v) { return _mm512_cvtepi32_ps(v); }

  template <int J>
  static TF_INLINE I nibbles(I word) {
    return _mm512_and_si512(J == 0 ? word : _mm512_srli_epi16(word, 4), _mm512_set1_epi8(15));
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

  static TF_INLINE int32_t largest(const float* x) {  // the bits of the largest size of 32
    const I size = _mm512_set1_epi32(0x7fffffff);
    return _mm512_reduce_max_epi32(_mm512_max_epi32(_mm512_and_si512(load(x), size),
                                                    _mm512_and_si512(load(x + 16), size)));
  }

  static TF_INLINE void quantise_pairs(const float* x, float inverse, int32_t* pairs) {
    const __m512 by = _mm512_set1_ps(inverse), most = _mm512_set1_ps(32767.0f);
    const I p = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_mul_ps(_mm512_loadu_ps(x), by), most));
    const I q = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_mul_ps(_mm512_loadu_ps(x + 16), by), most));
    // Lanes of p are 0..15 and of q 16..31: the first and the second column of each pair.
    const I first = _mm512_setr_epi32(0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29);
    const I second = _mm512_add_epi32(first, _mm512_set1_epi32(2));
    const I low = _mm512_permutex2var_epi32(p, first, q), high = _mm512_permutex2var_epi32(p, second, q);
    store(pairs, _mm512_mask_blend_epi16(0xaaaaaaaau, low, _mm512_slli_epi32(high, 16)));
  }

  static TF_INLINE ByteSums quantise_quads(const float* x, float inverse, int32_t* high, int32_t* low) {
    const __m512 by = _mm512_set1_ps(inverse);
    const I p = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x), by));
    const I q = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + 16), by));
    const I half = _mm512_set1_epi32(128);
    const I p_high = _mm512_srai_epi32(_mm512_add_epi32(p, half), 8);
    const I q_high = _mm512_srai_epi32(_mm512_add_epi32(q, half), 8);
    store_quads(p_high, q_high, high);
    store_quads(p, q, low);  // the low byte of q - 256 h is that of q
    const int32_t highs = _mm512_reduce_add_epi32(_mm512_add_epi32(p_high, q_high));
    return {highs, _mm512_reduce_add_epi32(_mm512_add_epi32(p, q)) - highs * 256};
  }

 private:
  static TF_INLINE void store_quads(I a, I b, int32_t* to) {  // the low bytes of 32 columns
    const __m256i bytes = _mm256_set_m128i(_mm512_cvtepi32_epi8(b), _mm512_cvtepi32_epi8(a));
    const __m256i order = _mm256_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15,  //
                                           0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_shuffle_epi8(bytes, order));
  }
};

}  // namespace
}  // namespace tenfold
