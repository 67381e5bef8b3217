// The packed form of a weight matrix (O rows = outputs, K columns = inputs).
//
// Outputs are cut into panels of 32 lanes; inside a panel the columns follow each other, so that every
// lane adds its products in the order k = 0, 1, 2, ... whoever computes it. Quantised kinds go in
// blocks of 32 columns: scales first, then codes.
//
//   4-bit  (q4_0 q4_1 q4_k)  scales[32] (mins[32])  then 4 x [lane] uint32 holding 8 nibbles, k ascending
//   8-bit  (q5_0 q8_0)       scales[32]             then 8 x [lane] uint32 holding 4 int8, k ascending
//   8-bit  (q6_k)            scales[2][32]          the same codes, one scale per 16 columns
//   dense  (f32 f16 bf16)    [k][lane]
//
// Scales are float16 where the checkpoint's are, float32 for the k-quants (their products do not fit).
// Lanes beyond O in the last panel are zero.
#pragma once

#include <cstdint>

namespace tenfold {

enum class Kind : int { f32, f16, bf16, q4_0, q4_1, q5_0, q8_0, q4_k, q6_k };
constexpr int kKinds = 9;

enum class KvType : int { f32, f16, bf16, int8 };  // of the cache's keys and values
constexpr int kKvTypes = 4;

constexpr int64_t kv_row_bytes(KvType type, int64_t head_dim) {
  return type == KvType::f32 ? 4 * head_dim : type == KvType::int8 ? head_dim + 4 : 2 * head_dim;
}

constexpr int kPanel = 32;   // outputs of a panel
constexpr int kBlock = 32;   // columns of a quantised block
constexpr int kChunk = 256;  // columns added up before the running total is touched
constexpr int kSpan = 256;   // cache positions per softmax span, at absolute multiples

// Values per checkpoint block and its bytes (1 value for the dense kinds).
struct RawBlock {
  int values;
  int bytes;
};

constexpr RawBlock raw_block(Kind kind) {
  switch (kind) {
    case Kind::f32: return {1, 4};
    case Kind::f16: return {1, 2};
    case Kind::bf16: return {1, 2};
    case Kind::q4_0: return {32, 18};
    case Kind::q4_1: return {32, 20};
    case Kind::q5_0: return {32, 22};
    case Kind::q8_0: return {32, 34};
    case Kind::q4_k: return {256, 144};
    case Kind::q6_k: return {256, 210};
  }
  return {1, 0};
}

constexpr int64_t block_bytes(Kind kind) {  // of one panel: 32 columns, or 1 for the dense kinds
  switch (kind) {
    case Kind::f32: return 128;
    case Kind::f16:
    case Kind::bf16: return 64;
    case Kind::q4_0: return 64 + 512;
    case Kind::q4_1: return 128 + 512;
    case Kind::q4_k: return 256 + 512;
    case Kind::q5_0:
    case Kind::q8_0: return 64 + 1024;
    case Kind::q6_k: return 256 + 1024;
  }
  return 0;
}

constexpr bool is_dense(Kind kind) {
  return kind == Kind::f32 || kind == Kind::f16 || kind == Kind::bf16;
}

constexpr int64_t panel_bytes(Kind kind, int64_t cols) {
  return block_bytes(kind) * (is_dense(kind) ? cols : cols / kBlock);
}

constexpr int64_t panel_count(int64_t rows) { return (rows + kPanel - 1) / kPanel; }

}  // namespace tenfold
