#include "runtime.hpp"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

#include "grid.hpp"
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

Runtime::Runtime(int threads, const char* arch, bool ints)
    : arch_(choose_arch(arch)),
      threads_(threads < 1 ? 1 : threads > 512 ? 512 : threads),
      ints_(ints),
      owner_(getpid()) {
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

// Computes, and remembers the operation where a tape is running.
template <class F>
void Runtime::perform(const F& operation) {
  const auto lock = enter();
  const auto began = std::chrono::steady_clock::now();
  operation();
  seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  if (tape_) tape_->emplace_back(operation);
}

void Runtime::record(Tape* tape) {
  const auto lock = enter();
  if (tape_) throw std::logic_error("a tape is being recorded already");
  tape_ = tape;
}

void Runtime::replay(const Tape& tape) {
  const auto lock = enter();
  if (tape_) throw std::logic_error("a tape cannot be replayed while one is recorded");
  const auto began = std::chrono::steady_clock::now();
  for (const auto& operation : tape) operation();
  seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
}

// row(i) for every i: shared among the threads where the work is worth it.
template <class F>
void Runtime::rows_of(int64_t rows, int64_t work, const F& row) {
  if (work < kSmallWork) {
    for (int64_t i = 0; i < rows; ++i) row(0, i);
  } else {
    pool().each(rows, row);
  }
}

void Runtime::linear(const Matrix& w, const float* x, int64_t tokens, int64_t x_row, float* y,
                     int64_t y_row) {
  perform([=] { run_linear(w, x, tokens, x_row, y, y_row); });
}

void Runtime::run_linear(const Matrix& w, const float* x, int64_t tokens, int64_t x_row, float* y,
                         int64_t y_row) {
  const int64_t passes = ceil_div(tokens, kRowBlock);
  for (int64_t i = 0, row = 0; i < passes; ++i) {
    const int64_t rows = tokens / passes + (i < tokens % passes);
    matrix_rows(w, x + row * x_row, rows, x_row, y + row * y_row, y_row);
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

// The rows' tiles as the integer products read them.
const int32_t* Runtime::quantise(const Matrix& w, const float* x, int64_t rows, int64_t x_row) {
  auto* all = reinterpret_cast<int32_t*>(tiles_.floats(int_tile_words(w.kind, rows, w.cols)));
  const int64_t tiles = ceil_div(rows, arch_->int_tile_rows);
  const auto tile = [&](int, int64_t t) {
    const TileRange range = tile_of(rows, arch_->int_tile_rows, t);
    int32_t* to = all + int_tile_words(w.kind, range.begin, w.cols);
    for (int r = 0; r < range.rows; ++r) {
      arch_->quantise(w.kind, x + (range.begin + r) * x_row, w.cols, range.rows, r, to);
    }
  };
  if (rows * w.cols < kSmallWork) {
    for (int64_t t = 0; t < tiles; ++t) tile(0, t);
  } else {
    pool().each(tiles, tile);
  }
  return all;
}

void Runtime::matrix_rows(const Matrix& w, const float* x, int64_t rows, int64_t x_row, float* y,
                          int64_t y_row) {
  const bool ints = ints_ && !is_dense(w.kind);
  const int tile_rows = ints ? arch_->int_tile_rows : arch_->tile_rows;
  const int32_t* steps = ints ? quantise(w, x, rows, x_row) : nullptr;
  const float* a = ints ? nullptr : interleave(w, x, rows, x_row);
  float* temporary = scratch(kLinearScratch);
  const int64_t panels = panel_count(w.rows), share = panels / (threads_ * 4);
  // Items of at least 32 KiB of weights and at most an eighth of a thread's share.
  const int64_t least = ceil_div(int64_t{32} << 10, panel_bytes(w.kind, w.cols));
  const int64_t each = rows > tile_rows || share > least ? (share < 1 ? 1 : share > 8 ? 8 : share) : least;
  pool().each(ceil_div(panels, each), [&](int worker, int64_t i) {
    const int64_t begin = i * each, end = begin + each < panels ? begin + each : panels;
    if (ints) arch_->linear_ints(w, steps, rows, begin, end, y, y_row);
    else arch_->linear(w, a, rows, begin, end, y, y_row, temporary + worker * kLinearScratch);
  });
}

void Runtime::embed(const Matrix& w, const int32_t* ids, int64_t tokens, float scale, float* y) {
  perform([=] {
    for (int64_t t = 0; t < tokens; ++t) {
      if (ids[t] < 0 || ids[t] >= w.rows) {
        throw std::invalid_argument("token id " + std::to_string(ids[t]) + " at place " +
                                    std::to_string(t) + " is outside the table of " +
                                    std::to_string(w.rows) + " rows");
      }
    }
    rows_of(tokens, tokens * w.cols, [=](int, int64_t t) {
      float* row = y + t * w.cols;
      unpack_row(w.kind, w.cols, w.data, ids[t], row);
      if (scale == 1.0f) return;
      for (int64_t i = 0; i < w.cols; ++i) row[i] *= scale;
    });
  });
}

void Runtime::rms_norm(const Rows& x, const float* weight, float eps, float* y) {
  perform([=] {
    rows_of(x.tokens, x.tokens * x.heads * x.n / 2, [=](int, int64_t t) {
      for (int64_t h = 0; h < x.heads; ++h) {
        arch_->rms_norm(x.data + t * x.token_stride + h * x.head_stride, weight, eps, x.n,
                        y + (t * x.heads + h) * x.n);
      }
    });
  });
}

// x += delta, or the norm of delta where it has weights of its own; y = the norm of x. y may be delta.
void Runtime::add_rms_norm(float* x, const float* delta, const float* delta_weight, const float* weight,
                           int64_t tokens, int64_t n, float eps, float* y) {
  perform([=] {
    rows_of(tokens, tokens * n, [=](int, int64_t t) {
      const float* add = delta + t * n;
      if (delta_weight) {
        arch_->rms_norm(add, delta_weight, eps, n, y + t * n);
        add = y + t * n;
      }
      float* row = x + t * n;
      for (int64_t i = 0; i < n; ++i) row[i] += add[i];
      if (weight) arch_->rms_norm(row, weight, eps, n, y + t * n);
    });
  });
}

void Runtime::gated(const float* x, int64_t tokens, int64_t x_row, int64_t half, bool gelu, float* y) {
  perform([=] {
    rows_of(tokens, tokens * half, [=](int, int64_t t) {
      arch_->gated(x + t * x_row, x + t * x_row + half, gelu, half, y + t * half);
    });
  });
}

void Runtime::softcap(float* x, int64_t count, float cap) {
  constexpr int64_t kPiece = 8192;
  perform([=] {
    rows_of(ceil_div(count, kPiece), count, [=](int, int64_t i) {
      arch_->softcap(x + i * kPiece, cap, count - i * kPiece < kPiece ? count - i * kPiece : kPiece);
    });
  });
}

// Rows are cut into pieces, so that one long row is shared among the threads too.
void Runtime::largest(const float* x, int64_t rows, int64_t n, int32_t* ids, float* values) {
  constexpr int64_t kPiece = 4096;
  perform([=] {
    const int64_t pieces = ceil_div(n, kPiece);
    std::vector<int64_t> winners(rows * pieces);
    rows_of(rows * pieces, rows * n, [&](int, int64_t i) {
      const int64_t begin = i % pieces * kPiece, size = n - begin < kPiece ? n - begin : kPiece;
      winners[i] = begin + arch_->largest(x + i / pieces * n + begin, size);
    });
    for (int64_t r = 0; r < rows; ++r) {
      const float* row = x + r * n;
      int64_t best = winners[r * pieces];
      for (int64_t p = 1; p < pieces && row[best] == row[best]; ++p) {
        const int64_t other = winners[r * pieces + p];
        if (row[other] > row[best] || row[other] != row[other]) best = other;
      }
      ids[r] = static_cast<int32_t>(best);
      values[r] = row[best];
    }
  });
}

void Runtime::gather(const float* x, const int32_t* rows, int64_t count, int64_t total, int64_t n,
                     float* y) {
  perform([=] {
    for (int64_t i = 0; i < count; ++i) {
      if (rows[i] < 0 || rows[i] >= total) {
        throw std::invalid_argument("row " + std::to_string(rows[i]) + " is outside the " +
                                    std::to_string(total) + " rows there are");
      }
      std::memcpy(y + i * n, x + rows[i] * n, n * sizeof(float));
    }
  });
}

void Runtime::slots(const Slots& s, int32_t* out) {
  perform([=] {
    if (s.starts[0] != 0 || s.starts[s.sequences] != s.tokens) {
      throw std::invalid_argument("starts must run from 0 to the number of tokens, " +
                                  std::to_string(s.tokens));
    }
    for (int64_t i = 0; i < s.sequences; ++i) {
      for (int64_t t = s.starts[i]; t < s.starts[i + 1]; ++t) {
        const int64_t position = s.context[i] + t - s.starts[i], block = position / s.block_tokens;
        if (position < 0 || block >= s.columns) {
          throw std::invalid_argument("position " + std::to_string(position) + " of sequence " +
                                      std::to_string(i) + " is outside its block table");
        }
        out[t] = static_cast<int32_t>(s.table[i * s.table_stride + block] * s.block_tokens +
                                      position % s.block_tokens);
      }
    }
  });
}

void Runtime::rope(const Rows& x, const int32_t* positions, const float* cos, const float* sin,
                   int64_t table) {
  const int64_t half = x.n / 2;
  perform([=] {
    for (int64_t t = 0; t < x.tokens; ++t) {
      if (positions[t] < 0 || positions[t] >= table) {
        throw std::invalid_argument("position " + std::to_string(positions[t]) + " of token " +
                                    std::to_string(t) + " is outside the rotation table of " +
                                    std::to_string(table) + " positions");
      }
    }
    rows_of(x.tokens, x.tokens * x.heads * x.n / 2, [=](int, int64_t t) {
      for (int64_t h = 0; h < x.heads; ++h) {
        arch_->rope(x.data + t * x.token_stride + h * x.head_stride, cos + positions[t] * half,
                    sin + positions[t] * half, half);
      }
    });
  });
}

void Runtime::store_kv(const Rows& k, const Rows& v, const Cache& cache, int64_t layer,
                       const int32_t* slots) {
  perform([=] {
    const int64_t room = cache.blocks * cache.block_tokens;
    for (int64_t t = 0; t < k.tokens; ++t) {
      if (slots[t] < 0 || slots[t] >= room) {
        throw std::invalid_argument("slot " + std::to_string(slots[t]) + " of token " +
                                    std::to_string(t) + " is outside the cache of " +
                                    std::to_string(room) + " slots");
      }
    }
    const int width = static_cast<int>(k.n);
    rows_of(k.tokens, k.tokens * k.heads * k.n, [=](int, int64_t t) {
      uint8_t* block = cache.data + slots[t] / cache.block_tokens * cache.block_stride +
                       layer * cache.layer_stride + slots[t] % cache.block_tokens * cache.token_stride;
      for (int64_t h = 0; h < k.heads; ++h) {
        uint8_t* to = block + h * cache.head_stride;
        arch_->store_row(cache.type, k.data + t * k.token_stride + h * k.head_stride, width, to);
        arch_->store_row(cache.type, v.data + t * v.token_stride + h * v.head_stride, width,
                         to + cache.kv_stride);
      }
    });
  });
}

void Runtime::attention(const Attend& a) {
  perform([=] { run_attention(a); });
}

void Runtime::choose(const Choice& c) {
  perform([=] {
    std::vector<double> room;
    for (int64_t t = 0; t < c.tokens; ++t) choose_row(c, t, room);
  });
}

void Runtime::route(const Route& r) {
  perform([=] { sort_pairs(r); });
}

void Runtime::grouped(const Grouped& g) {
  perform([=] { run_grouped(g); });
}

// An expert's rows are put together, multiplied as any matrix's are, and put where they belong.
void Runtime::run_grouped(const Grouped& g) {
  const int32_t* order = g.way.order;
  for (int64_t e = 0; e < g.way.experts; ++e) {
    const Matrix& w = g.matrices[e];
    const int64_t end = g.way.starts[e + 1];
    for (int64_t begin = g.way.starts[e], count; begin < end; begin += count) {
      count = end - begin < g.room ? end - begin : g.room;
      const auto from = [&](int64_t i) { return g.x + order[begin + i] / g.repeat * g.x_row; };
      const auto to = [&](int64_t i) { return g.y + order[begin + i] * g.y_row; };
      if (count == 1) {
        run_linear(w, from(0), 1, g.x_row, to(0), g.y_row);
        continue;
      }
      rows_of(count, count * w.cols, [&](int, int64_t i) {
        std::memcpy(g.x_rows + i * w.cols, from(i), w.cols * sizeof(float));
      });
      run_linear(w, g.x_rows, count, w.cols, g.y_rows, w.rows);
      rows_of(count, count * w.rows, [&](int, int64_t i) {
        std::memcpy(to(i), g.y_rows + i * w.rows, w.rows * sizeof(float));
      });
    }
  }
}

void Runtime::mix(const Mix& m) {
  perform([=] {
    rows_of(m.tokens, m.tokens * m.top_k * m.n, [=](int, int64_t t) { mix_row(m, t); });
  });
}

}  // namespace tenfold
