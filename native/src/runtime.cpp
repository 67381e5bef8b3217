#include "runtime.hpp"

#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

#include "pack.hpp"

namespace tenfold {
namespace {

constexpr int64_t kRowBlock = 240;        // rows per pass of a product: their tiles stay in the L2 cache
constexpr int64_t kSmallWork = 16 << 10;  // elements that one thread does faster alone

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

Buffer::~Buffer() { std::free(data_); }

float* Buffer::floats(int64_t count) {
  if (count > size_) {
    std::free(data_);
    size_ = ceil_div(count + count / 4, 16) * 16;
    data_ = static_cast<float*>(std::aligned_alloc(64, size_ * sizeof(float)));
    if (!data_) {
      size_ = 0;
      throw std::bad_alloc();
    }
  }
  return data_;
}

Runtime::Runtime(int threads, const char* arch)
    : arch_(choose_arch(arch)), threads_(threads < 1 ? 1 : threads > 512 ? 512 : threads), owner_(getpid()) {
  if (!arch_) throw std::invalid_argument(std::string("this machine has no kernel row named ") + arch);
}

Runtime::~Runtime() {
  if (getpid() != owner_) (void)pool_.release();  // a forked child has no such threads to join
}

std::unique_lock<std::mutex> Runtime::enter() {
  if (getpid() != owner_) {  // a forked child: a lock held there will never open, threads are gone
    (void)pool_.release();
    new (&mutex_) std::mutex;
    owner_ = getpid();
  }
  return std::unique_lock<std::mutex>(mutex_);
}

Pool& Runtime::pool() {
  if (!pool_) pool_ = std::make_unique<Pool>(threads_);
  return *pool_;
}

float* Runtime::scratch(int64_t floats_each) {
  return scratch_.floats(floats_each * threads_);
}

void Runtime::pack(Kind kind, int64_t rows, int64_t cols, const uint8_t* raw, uint8_t* out) {
  const auto lock = enter();
  std::atomic<bool> finite{true};
  const int64_t panels = panel_count(rows), each = panels / (threads_ * 8) + 1;
  pool().each(ceil_div(panels, each), [&](int, int64_t i) {
    const int64_t end = (i + 1) * each < panels ? (i + 1) * each : panels;
    if (!pack_panels(kind, rows, cols, raw, i * each, end, out)) finite = false;
  });
  if (!finite) throw std::domain_error("the weights hold infinities or NaN");
}

void Runtime::linear(const Matrix& w, const float* x, int64_t tokens, int64_t x_row, float* y) {
  const auto lock = enter();
  const int64_t passes = ceil_div(tokens, kRowBlock);
  for (int64_t i = 0, row = 0; i < passes; ++i) {
    const int64_t rows = tokens / passes + (i < tokens % passes);
    matrix_rows(w, x + row * x_row, rows, x_row, y + row * w.rows);
    row += rows;
  }
}

// The rows' tiles, each [k][row of the tile], so that a tile's kernel reads one stream.
const float* Runtime::interleave(const Matrix& w, const float* x, int64_t rows, int64_t x_row) {
  if (rows == 1) return x;
  float* a = tiles_.floats(rows * w.cols);
  const auto tile = [&](int, int64_t t) {
    const TileRange range = tile_of(rows, arch_->tile_rows, t);
    for (int r = 0; r < range.rows; ++r) {
      const float* from = x + (range.begin + r) * x_row;
      float* to = a + range.begin * w.cols + r;
      for (int64_t k = 0; k < w.cols; ++k) to[k * range.rows] = from[k];
    }
  };
  const int64_t tiles = ceil_div(rows, arch_->tile_rows);
  if (rows * w.cols < 2 * kSmallWork) {
    for (int64_t t = 0; t < tiles; ++t) tile(0, t);
  } else {
    pool().each(tiles, tile);
  }
  return a;
}

void Runtime::matrix_rows(const Matrix& w, const float* x, int64_t rows, int64_t x_row, float* y) {
  const float* a = interleave(w, x, rows, x_row);
  float* temporary = scratch(kLinearScratch);
  const int64_t panels = panel_count(w.rows), share = panels / (threads_ * 4);
  // Items of at least 32 KiB of weights and at most an eighth of a thread's share.
  const int64_t least = ceil_div(int64_t{32} << 10, panel_bytes(w.kind, w.cols));
  const int64_t each = rows > arch_->tile_rows || share > least ? (share < 1 ? 1 : share > 8 ? 8 : share)
                                                                : least;
  pool().each(ceil_div(panels, each), [&](int worker, int64_t i) {
    const int64_t end = (i + 1) * each < panels ? (i + 1) * each : panels;
    arch_->linear(w, a, rows, i * each, end, y, w.rows, temporary + worker * kLinearScratch);
  });
}

void Runtime::embed(const Matrix& w, const int32_t* ids, int64_t tokens, float* y) {
  const auto lock = enter();
  for (int64_t t = 0; t < tokens; ++t) {
    if (ids[t] < 0 || ids[t] >= w.rows) {
      throw std::invalid_argument("token id " + std::to_string(ids[t]) + " at place " + std::to_string(t) +
                                  " is outside the table of " + std::to_string(w.rows) + " rows");
    }
  }
  const auto row = [&](int, int64_t t) { unpack_row(w.kind, w.cols, w.data, ids[t], y + t * w.cols); };
  if (tokens * w.cols < kSmallWork) {
    for (int64_t t = 0; t < tokens; ++t) row(0, t);
  } else {
    pool().each(tokens, row);
  }
}

void Runtime::rms_norm(const Rows& x, const float* weight, float eps, float* y) {
  const auto lock = enter();
  const auto token = [&](int, int64_t t) {
    for (int64_t h = 0; h < x.heads; ++h) {
      arch_->rms_norm(x.data + t * x.token_stride + h * x.head_stride, weight, eps, x.n,
                      y + (t * x.heads + h) * x.n);
    }
  };
  if (x.tokens * x.heads * x.n < 2 * kSmallWork) {
    for (int64_t t = 0; t < x.tokens; ++t) token(0, t);
  } else {
    pool().each(x.tokens, token);
  }
}

void Runtime::gated(const float* x, int64_t tokens, int64_t x_row, int64_t half, bool gelu, float* y) {
  const auto lock = enter();
  const auto token = [&](int, int64_t t) {
    arch_->gated(x + t * x_row, x + t * x_row + half, gelu, half, y + t * half);
  };
  if (tokens * half < kSmallWork) {
    for (int64_t t = 0; t < tokens; ++t) token(0, t);
  } else {
    pool().each(tokens, token);
  }
}

void Runtime::rope(const Rows& x, const int32_t* positions, const float* cos, const float* sin,
                   int64_t table) {
  const auto lock = enter();
  const int64_t half = x.n / 2;
  for (int64_t t = 0; t < x.tokens; ++t) {
    if (positions[t] < 0 || positions[t] >= table) {
      throw std::invalid_argument("position " + std::to_string(positions[t]) + " of token " +
                                  std::to_string(t) + " is outside the rotation table of " +
                                  std::to_string(table) + " positions");
    }
  }
  const auto token = [&](int, int64_t t) {
    for (int64_t h = 0; h < x.heads; ++h) {
      arch_->rope(x.data + t * x.token_stride + h * x.head_stride, cos + positions[t] * half,
                  sin + positions[t] * half, half);
    }
  };
  if (x.tokens * x.heads * x.n < 2 * kSmallWork) {
    for (int64_t t = 0; t < x.tokens; ++t) token(0, t);
  } else {
    pool().each(x.tokens, token);
  }
}

void Runtime::store_kv(const Rows& k, const Rows& v, const Cache& cache, int64_t layer,
                       const int32_t* slots) {
  const auto lock = enter();
  const int64_t room = cache.blocks * cache.block_tokens;
  for (int64_t t = 0; t < k.tokens; ++t) {
    if (slots[t] < 0 || slots[t] >= room) {
      throw std::invalid_argument("slot " + std::to_string(slots[t]) + " of token " + std::to_string(t) +
                                  " is outside the cache of " + std::to_string(room) + " slots");
    }
  }
  for (int64_t t = 0; t < k.tokens; ++t) {
    float* block = cache.data + slots[t] / cache.block_tokens * cache.block_stride +
                   layer * cache.layer_stride + slots[t] % cache.block_tokens * cache.token_stride;
    for (int64_t h = 0; h < k.heads; ++h) {
      float* to = block + h * cache.head_stride;
      std::memcpy(to, k.data + t * k.token_stride + h * k.head_stride, k.n * sizeof(float));
      std::memcpy(to + cache.kv_stride, v.data + t * v.token_stride + h * v.head_stride,
                  v.n * sizeof(float));
    }
  }
}

}  // namespace tenfold
