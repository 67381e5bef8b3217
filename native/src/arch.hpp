// What one instruction set offers: plain functions over raw pointers, no threads, no allocation.
// The translation units that fill this table are compiled from the same .inl files, each for machines
// that not every machine is: what they share with others must have internal linkage, or be a constant.
#pragma once

#include <cstdint>

#include "layout.hpp"

namespace tenfold {

// Rows r of a block of n rows are cut into tiles of at most tile_rows, as even as they go.
struct TileRange {
  int64_t begin;
  int rows;
};
static inline TileRange tile_of(int64_t n, int tile_rows, int64_t tile) {
  const int64_t tiles = (n + tile_rows - 1) / tile_rows;
  const int64_t base = n / tiles, more = n % tiles;
  return {tile * base + (tile < more ? tile : more), static_cast<int>(base + (tile < more))};
}

struct Matrix {  // a packed weight and what goes with it
  Kind kind;
  const uint8_t* data;
  int64_t rows;  // O
  int64_t cols;  // I
  const float* bias;
};

// One (sequence, run of its new tokens, key/value head); see attention.inl.
struct AttendTile {
  const float* q;        // first token, first query head of the group
  int64_t q_token;       // strides in floats
  int64_t q_head;
  const uint8_t* cache;  // first block, this layer, keys, this head
  KvType type;
  int64_t cache_block;   // strides in bytes
  int64_t cache_values;  // from a key to its value
  int64_t cache_token;
  const int32_t* table;  // this sequence's block table
  float* out;
  int64_t out_token;
  int64_t out_head;
  const float* sinks;    // of this group's query heads; null where there are none
  float* lse;            // log-sum-exp of the first token's first head; null where nobody asks
  int64_t lse_token;
  int tokens;
  int group;
  int head_dim;
  int block_tokens;
  int64_t position;      // of the first token
  int64_t window;        // a huge number where there is none
  float scale;
  float softcap;         // 0 where there is none
};

struct Arch {
  const char* name;
  int tile_rows;

  // y = x W^T + bias for the outputs of panels [panel0, panel1) and n rows; a holds the rows' tiles,
  // each [k][row of the tile], one after the other. scratch: kLinearScratch floats.
  void (*linear)(const Matrix& w, const float* a, int64_t n, int64_t panel0, int64_t panel1, float* y,
                 int64_t y_row, float* scratch);

  // The same with activations as integers, for quantised kinds: x holds the rows' tiles (grid.hpp) of at most
  // int_tile_rows rows, which `quantise` writes row by row.
  int int_tile_rows;
  void (*quantise)(Kind kind, const float* from, int64_t cols, int rows, int row, int32_t* tile);
  void (*linear_ints)(const Matrix& w, const int32_t* x, int64_t n, int64_t panel0, int64_t panel1, float* y,
                      int64_t y_row);

  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, float* y);
  void (*gated)(const float* gate, const float* up, bool gelu, int64_t n, float* y);
  // Index of the largest value, the first of equals; the first NaN where there is one.
  int64_t (*largest)(const float* x, int64_t n);
  void (*softcap)(float* x, float cap, int64_t n);
  void (*rope)(float* x, const float* cos, const float* sin, int64_t half);

  void (*store_row)(KvType type, const float* x, int n, uint8_t* to);

  // Softmax numerator, denominator and maximum of one span of positions, then their merging.
  void (*attend_span)(const AttendTile& tile, int64_t span, float* partial, float* scratch);
  void (*attend_merge)(const AttendTile& tile, float* total, const float* partial);
  void (*attend_finish)(const AttendTile& tile, const float* total);
};

constexpr int64_t kLinearScratch = int64_t{kChunk} * 16 + 6 * 16;

// Floats of a partial or total: per row its maximum, its sum, then head_dim rounded up to 8.
static inline int64_t attend_row_floats(int head_dim) { return 8 + (head_dim + 7) / 8 * 8; }
constexpr int64_t kScoreRow = kSpan + 8;

// Scores, two lists of row addresses, two of scales, and a slice of rows in float32.
static inline int64_t attend_scratch(int rows, int head_dim) {
  const int64_t wide = 32 * ((head_dim + 7) / 8 * 8);
  return (rows + 6) * kScoreRow + (wide < 4096 ? 4096 : wide);
}

const Arch& portable_arch();
#if defined(TENFOLD_HAS_AVX2)
const Arch& avx2_arch();
const Arch& avx512_arch();
#endif

// The best row for this machine, or the one named ("portable", "avx2", "avx512"); null if it is not
// there.
const Arch* choose_arch(const char* name);

}  // namespace tenfold
