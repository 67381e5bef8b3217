// The operations as Python calls them: checks, threads and scratch memory around one Arch.
//
// One Runtime per Kernels object; calls from several threads take turns. In a forked child the pool
// is made anew on first use (the parent's threads do not exist there).
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "arch.hpp"
#include "experts.hpp"
#include "pool.hpp"

namespace tenfold {

class Buffer {  // 64-byte aligned floats that only grow
 public:
  ~Buffer();
  float* floats(int64_t count);

 private:
  float* data_ = nullptr;
  int64_t size_ = 0;
};

struct Rows {  // T rows of H x n floats with strides; H = 1 for plain matrices
  float* data;
  int64_t tokens, heads, token_stride, head_stride, n;
};

// Keys and values: (blocks, layers, 2, heads, block tokens, one row's bytes), strides in bytes.
struct Cache {
  KvType type;
  uint8_t* data;
  int64_t blocks, layers, heads, block_tokens, head_dim;
  int64_t block_stride, layer_stride, kv_stride, head_stride, token_stride;
};

struct Slots {  // where the new tokens of each sequence go: block table and contexts as in Attend
  const int32_t* table;
  int64_t sequences, columns, table_stride, tokens, block_tokens;
  const int32_t* starts;
  const int32_t* context;
};

struct Attend {
  Rows q;
  Cache cache;
  int64_t layer;
  const int32_t* table;
  int64_t sequences, columns, table_stride;
  const int32_t* starts;
  const int32_t* context;
  float scale;
  int64_t window;  // 0: none
  float softcap;   // 0: none
  const float* sinks;  // (H), or null
  float* out;          // (T, H, D), dense
  float* lse;          // (T, H), dense, or null
};

// Operations in the order they were recorded, each with the addresses it was given. What lies at those
// addresses may change between replays, the addresses may not.
using Tape = std::vector<std::function<void()>>;

class Runtime {
 public:
  // ints: products of quantised weights take activations as integers ("fast" mode).
  Runtime(int threads, const char* arch, bool ints = false);
  ~Runtime();

  const char* arch_name() const { return arch_->name; }
  int threads() const { return threads_; }

  void pack(Kind kind, int64_t rows, int64_t cols, const uint8_t* raw, uint8_t* out);

  // Each computes now and, between `record` and `stop`, is written on the tape as well.
  void linear(const Matrix& w, const float* x, int64_t tokens, int64_t x_row, float* y, int64_t y_row);
  void embed(const Matrix& w, const int32_t* ids, int64_t tokens, float scale, float* y);
  void rms_norm(const Rows& x, const float* weight, float eps, float* y);
  void add_rms_norm(float* x, const float* delta, const float* delta_weight, const float* weight,
                    int64_t tokens, int64_t n, float eps, float* y);
  void gated(const float* x, int64_t tokens, int64_t x_row, int64_t half, bool gelu, float* y);
  void softcap(float* x, int64_t count, float cap);
  void largest(const float* x, int64_t rows, int64_t n, int32_t* ids, float* values);
  void gather(const float* x, const int32_t* rows, int64_t count, int64_t total, int64_t n, float* y);
  void slots(const Slots& s, int32_t* out);
  void rope(const Rows& x, const int32_t* positions, const float* cos, const float* sin, int64_t table);
  void store_kv(const Rows& k, const Rows& v, const Cache& cache, int64_t layer, const int32_t* slots);
  void attention(const Attend& a);
  void choose(const Choice& c);
  void route(const Route& r);
  void grouped(const Grouped& g);
  void mix(const Mix& m);

  void record(Tape* tape);
  void stop() { tape_ = nullptr; }
  void replay(const Tape& tape);
  double seconds() const { return seconds_; }  // spent inside operations since the beginning

 private:
  struct Item;  // a tile of attention with its sequence's span range

  std::unique_lock<std::mutex> enter();
  template <class F>
  void perform(const F& operation);
  void run_linear(const Matrix& w, const float* x, int64_t tokens, int64_t x_row, float* y, int64_t y_row);
  void run_attention(const Attend& a);
  void run_grouped(const Grouped& g);
  template <class F>
  void rows_of(int64_t rows, int64_t work, const F& row);
  Pool& pool();
  float* scratch(int64_t floats_each);
  const int32_t* quantise(const Matrix& w, const float* x, int64_t rows, int64_t x_row);
  const float* interleave(const Matrix& w, const float* x, int64_t rows, int64_t x_row);
  void matrix_rows(const Matrix& w, const float* x, int64_t rows, int64_t x_row, float* y, int64_t y_row);
  void plan(const Attend& a, std::vector<Item>& items) const;
  void run_whole(const std::vector<Item>& items, int64_t rows, int head_dim);
  void run_spans(const std::vector<Item>& items, int head_dim);

  const Arch* arch_;
  int threads_;
  bool ints_;
  std::mutex mutex_;
  pid_t owner_;
  std::unique_ptr<Pool> pool_;
  Buffer tiles_, scratch_, partials_;
  Tape* tape_ = nullptr;
  double seconds_ = 0;
};

}  // namespace tenfold
