// Integer products on AVX2: eight lanes of int32 sums, two int16 columns a step (vpmaddwd), or four int8
// ones into int16 sums (vpmaddubsw), which hold a block of four-bit codes: 32 x 15 x 128 / 2 < 2^15.
// The same names as ints_avx512.hpp and ints_portable.hpp.
#pragma once

#include "grid.hpp"
#include "simd_avx2.hpp"

namespace tenfold {
namespace {

struct Ints {
  using F = Simd::F;
  using I = Simd::I;
  static constexpr int lanes = 8;
  static constexpr int tile_rows = 6, vectors = 1;  // integer and float sums in 12 of 16 registers

  static TF_INLINE I zero() { return _mm256_setzero_si256(); }
  static TF_INLINE I load(const void* p) { return _mm256_loadu_si256(static_cast<const I*>(p)); }
  static TF_INLINE void store(void* p, I v) { _mm256_storeu_si256(static_cast<I*>(p), v); }
  // sum + the products of w with what lies at x, the same for every lane. The additions are written out
  // so that GCC leaves each sum in its register.
  static TF_INLINE I pair_dot(I sum, I w, const int32_t* x) {
    asm("vpaddd %1, %0, %0" : "+x"(sum) : "x"(_mm256_madd_epi16(w, _mm256_set1_epi32(*x))));
    return sum;
  }
  static TF_INLINE I quad_dot(I sum, I w, const int32_t* x) {  // w without signs; two int16 sums a lane
    asm("vpaddw %1, %0, %0" : "+x"(sum) : "x"(_mm256_maddubs_epi16(w, _mm256_set1_epi32(*x))));
    return sum;
  }
  static TF_INLINE I settle(I sum) { return _mm256_madd_epi16(sum, _mm256_set1_epi16(1)); }
  static TF_INLINE I add(I a, const int32_t* b) { return _mm256_add_epi32(a, _mm256_set1_epi32(*b)); }
  static TF_INLINE F to_float(I v) { return _mm256_cvtepi32_ps(v); }

  template <int J>
  static TF_INLINE I nibbles(I word) {  // columns J, J + 2, J + 4 and J + 6 of the eight
    return _mm256_and_si256(J == 0 ? word : _mm256_srli_epi16(word, 4), _mm256_set1_epi8(15));
  }
  template <int J>
  static TF_INLINE I bytes(I word) {  // columns J and J + 2 of the four
    return _mm256_srai_epi16(J == 0 ? _mm256_slli_epi16(word, 8) : word, 8);
  }

  static TF_INLINE F load_f32(const void* p) { return _mm256_loadu_ps(static_cast<const float*>(p)); }
  static TF_INLINE F load_f16(const void* p) { return Simd::load_f16(p); }
  static TF_INLINE void store_f32(float* p, F v) { _mm256_storeu_ps(p, v); }
  static TF_INLINE F spread(const float* p) { return _mm256_broadcast_ss(p); }
  static TF_INLINE F zero_f() { return _mm256_setzero_ps(); }
  static TF_INLINE F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static TF_INLINE F fused(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }

  static TF_INLINE int32_t largest(const float* x) {  // the bits of the largest size of 32
    I top = zero();
    for (int i = 0; i < 4; ++i) {
      top = _mm256_max_epi32(top, _mm256_and_si256(load(x + i * 8), _mm256_set1_epi32(0x7fffffff)));
    }
    __m128i one = _mm_max_epi32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
    one = _mm_max_epi32(one, _mm_shuffle_epi32(one, 0x4e));
    one = _mm_max_epi32(one, _mm_shuffle_epi32(one, 0xb1));
    return _mm_cvtsi128_si32(one);
  }

  static TF_INLINE void quantise_pairs(const float* x, float inverse, int32_t* pairs) {
    const __m256 by = _mm256_set1_ps(inverse), most = _mm256_set1_ps(32767.0f);
    for (int i = 0; i < 4; i += 2) {
      const I p = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_mul_ps(_mm256_loadu_ps(x + i * 8), by), most));
      const I q = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_mul_ps(_mm256_loadu_ps(x + i * 8 + 8), by), most));
      const I low = _mm256_unpacklo_epi64(p, q), high = _mm256_unpackhi_epi64(p, q);  // of each pair
      const I pair = _mm256_blend_epi16(low, _mm256_slli_epi32(high, 16), 0xaa);
      store(pairs + i * 4, _mm256_permute4x64_epi64(pair, 0xd8));
    }
  }

  static TF_INLINE ByteSums quantise_quads(const float* x, float inverse, int32_t* high, int32_t* low) {
    const __m256 by = _mm256_set1_ps(inverse);
    I q[4], h[4], highs = zero(), all = zero();
    for (int i = 0; i < 4; ++i) {
      q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i * 8), by));
      h[i] = _mm256_srai_epi32(_mm256_add_epi32(q[i], _mm256_set1_epi32(128)), 8);
      highs = _mm256_add_epi32(highs, h[i]);
      all = _mm256_add_epi32(all, q[i]);
      q[i] = _mm256_sub_epi32(q[i], _mm256_slli_epi32(h[i], 8));
    }
    store(high, quads_of(h));
    store(low, quads_of(q));
    const int32_t sum = sum_of(highs);
    return {sum, sum_of(all) - sum * 256};
  }

 private:
  static TF_INLINE I quads_of(const I (&v)[4]) {  // int8 values of 32 columns
    const I bytes = _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
    const I sorted = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    return _mm256_shuffle_epi8(sorted, _mm256_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15,
                                                        0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15));
  }
  static TF_INLINE int32_t sum_of(I v) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
    return _mm_cvtsi128_si32(s);
  }
};

}  // namespace
}  // namespace tenfold
