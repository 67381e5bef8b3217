// Activations as integers, for the integer products. Two forms, by the width of the weights' codes.
//
// Eight-bit codes take int16. Each block of 32 columns of a row lies on a grid of its own: 2^n is the
// smallest power of two above its largest value, the step 2^(n - 15), a value the nearest multiple
// (ties to even) within [-32768, 32767] steps.
//
// Four-bit codes take int8, and in blocks that stand out of their row 16 bits as two int8. With m the
// block's largest value, q = x * (32512 / m) rounded (ties to even) and its high byte h = (q + 128) >> 8,
// a value is h steps of m / 127. A block is fine, its low byte l = q - 256 h counting 1/256 of a step,
// where m is more than kStandsOut times the mean of the row's blocks.
//
// A block with an infinity or NaN has the step NaN: its row's outputs are NaN.
//
// Rows are stored in tiles of R, block after block. A block of eight-bit codes takes R x 18 words of 32
// bits, one of four-bit codes R x 20:
//   pairs[R][16]  int16 x 2, of 4 columns (0,2) (1,3), as the codes come apart
//   step[R]       float
//   unused[R]
// or
//   high[R][8]    int8 x 4, of 8 columns (0,2,4,6) (1,3,5,7)
//   low[R][8]     the same of fine rows
//   step[R]       float, of the high bytes
//   sum[R]        the block's sum. Where weights have minima: float. For q4_0: int32, -8 times the sum
//                 of the high bytes, which takes the offset of its codes away
//   low_sum[R]    for q4_0: -8 times the sum of the low bytes
//   fine[R]       the first: a mask of the rows whose block is fine
#pragma once

#include <cstdint>
#include <cstring>

#include "layout.hpp"

namespace tenfold {

constexpr int kPairs = kBlock / 2;
constexpr int kQuads = kBlock / 4;

constexpr bool is_four_bit(Kind kind) {
  return kind == Kind::q4_0 || kind == Kind::q4_1 || kind == Kind::q4_k;
}

constexpr int row_words(bool four_bit) { return four_bit ? 2 * kQuads + 4 : kPairs + 2; }

constexpr int64_t int_tile_words(Kind kind, int64_t rows, int64_t cols) {
  return rows * (cols / kBlock) * row_words(is_four_bit(kind));
}

namespace {

struct Grid {
  float step, inverse;
};

// Values below 2^-102 count as zero: no step is smaller, and no product leaves the normal numbers.
constexpr int kLeastExponent = 40;

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline Grid grid_of(int32_t largest_bits) {  // of the largest value's size, for int16
  int exponent = largest_bits >> 23;
  if (exponent < kLeastExponent) exponent = kLeastExponent;
  const uint32_t step = exponent == 255 ? 0x7fc00000u : static_cast<uint32_t>(exponent - 14) << 23;
  return {float_of(step), float_of(static_cast<uint32_t>(268 - exponent) << 23)};
}

struct ByteSums {
  int32_t high, low;
};

constexpr float kStandsOut = 1.5f;
constexpr float kMost = 32512.0f;  // 127 * 256

inline Grid byte_grid_of(int32_t largest_bits) {  // the step is that of the high bytes
  if (largest_bits >= 0x7f800000) return {float_of(0x7fc00000u), 0.0f};
  const int32_t least = kLeastExponent << 23;
  const float most = float_of(static_cast<uint32_t>(largest_bits < least ? least : largest_bits));
  return {most * (1.0f / 127.0f), kMost / most};
}

}  // namespace
}  // namespace tenfold
