// Integer products on AVX2: eight lanes of int32 sums, two int16 columns a step (vpmaddwd).
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
  static constexpr int tile_rows = 4;  // 4 x 16 sums in 8 of 16 registers, beside codes on their way

  static TF_INLINE I zero() { return _mm256_setzero_si256(); }
  static TF_INLINE I load(const void* p) { return _mm256_loadu_si256(static_cast<const I*>(p)); }
  static TF_INLINE void store(void* p, I v) { _mm256_storeu_si256(static_cast<I*>(p), v); }
  static TF_INLINE I spread(const int32_t* p) { return _mm256_set1_epi32(*p); }
  // sum + the products of two int16 pairs, in every lane.
  // The addition is written out so that GCC leaves each sum in its register.
  static TF_INLINE I dot(I sum, I w, I x) {
    asm("vpaddd %1, %0, %0" : "+x"(sum) : "x"(_mm256_madd_epi16(w, x)));
    return sum;
  }
  static TF_INLINE F to_float(I v) { return _mm256_cvtepi32_ps(v); }

  template <int J>
  static TF_INLINE I nibbles(I word) {  // columns J and J + 4 of the eight
    if (J == 3) return _mm256_srli_epi16(word, 12);
    return _mm256_and_si256(J == 0 ? word : _mm256_srli_epi16(word, 4 * J), _mm256_set1_epi16(15));
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

  // 32 floats to 16 int16 pairs on the grid of their largest exponent; returns their sum in steps.
  template <int Apart>
  static TF_INLINE int32_t quantise(const float* x, int32_t* pairs, float* scale) {
    __m256 v[4];
    __m256i top = zero();
    for (int i = 0; i < 4; ++i) {
      v[i] = _mm256_loadu_ps(x + i * 8);
      const I size = _mm256_and_si256(_mm256_castps_si256(v[i]), _mm256_set1_epi32(0x7fffffff));
      top = _mm256_max_epi32(top, size);
    }
    __m128i one = _mm_max_epi32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
    one = _mm_max_epi32(one, _mm_shuffle_epi32(one, 0x4e));
    one = _mm_max_epi32(one, _mm_shuffle_epi32(one, 0xb1));
    const Grid grid = grid_of(_mm_cvtsi128_si32(one));
    *scale = grid.step;
    const __m256 inverse = _mm256_set1_ps(grid.inverse), most = _mm256_set1_ps(32767.0f);
    I q[4];
    for (int i = 0; i < 4; ++i) {
      q[i] = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_mul_ps(v[i], inverse), most));
    }
    I sum = zero();
    for (int i = 0; i < 4; i += 2) {
      I low, high;  // the first and the second of each pair
      if (Apart == 4) {
        low = _mm256_permute2x128_si256(q[i], q[i + 1], 0x20);
        high = _mm256_permute2x128_si256(q[i], q[i + 1], 0x31);
      } else {
        low = _mm256_unpacklo_epi64(q[i], q[i + 1]);
        high = _mm256_unpackhi_epi64(q[i], q[i + 1]);
      }
      I pair = _mm256_blend_epi16(low, _mm256_slli_epi32(high, 16), 0xaa);
      if (Apart == 2) pair = _mm256_permute4x64_epi64(pair, 0xd8);
      store(pairs + i * 4, pair);
      sum = dot(sum, pair, _mm256_set1_epi16(1));
    }
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
    return _mm_cvtsi128_si32(s);
  }
};

}  // namespace
}  // namespace tenfold
