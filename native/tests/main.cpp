// Drives the native operations without Python, so that sanitizers see nothing else: every weight kind
// and cache type, odd shapes, several threads, several callers at once, recording and replay. Checks
// what sanitizers do not: that the number of threads and the company of a row change no bit.
//
// `make sanitize` builds and runs it; it exits with 1 at the first difference.
#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "../src/runtime.hpp"

using namespace tenfold;

namespace {

#define CHECK(condition)                                                          \
  do {                                                                            \
    if (!(condition)) {                                                           \
      std::fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                               \
    }                                                                             \
  } while (false)

using Floats = std::vector<float>;

Floats noise(size_t count, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  Floats values(count);
  for (float& value : values) value = normal(engine);
  return values;
}

bool same(const Floats& a, const Floats& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// --- pool ---------------------------------------------------------------------------------------
void pool_runs_every_item_once() {
  for (int threads : {1, 2, 5}) {
    Pool pool(threads);
    for (int64_t items : {0, 1, 2, 7, 1000}) {
      std::vector<int> count(items), worker(items);
      for (int round = 0; round < 30; ++round) {
        pool.each(items, [&](int who, int64_t i) {
          ++count[i];
          worker[i] = who;
        });
      }
      for (int64_t i = 0; i < items; ++i) CHECK(count[i] == 30 && worker[i] >= 0 && worker[i] < threads);
    }
  }
}

// --- packed matrices ----------------------------------------------------------------------------
std::vector<uint8_t> checkpoint(Kind kind, int64_t rows, int64_t cols) {
  const RawBlock block = raw_block(kind);
  std::vector<uint8_t> raw(rows * cols / block.values * block.bytes);
  std::mt19937 engine(static_cast<unsigned>(kind));
  // No byte is large: neither a float of the plain kinds nor a scale comes out infinite or NaN.
  for (uint8_t& byte : raw) byte = engine() & 0x3b;
  return raw;
}

struct Packed {
  std::vector<uint8_t> bytes;
  Matrix matrix;
};

Packed packed(Runtime& runtime, Kind kind, int64_t rows, int64_t cols) {
  const std::vector<uint8_t> raw = checkpoint(kind, rows, cols);
  Packed result{std::vector<uint8_t>(panel_count(rows) * panel_bytes(kind, cols)), {}};
  runtime.pack(kind, rows, cols, raw.data(), result.bytes.data());
  result.matrix = {kind, result.bytes.data(), rows, cols, nullptr};
  return result;
}

void products(const char* arch, bool ints) {
  for (int code = 0; code < kKinds; ++code) {
    const Kind kind = static_cast<Kind>(code);
    const int64_t rows = 75, cols = raw_block(kind).values == 256 ? 512 : 288, tokens = 13;
    const Floats x = noise(tokens * cols, 1);
    Floats first;
    for (int threads : {1, 3}) {
      Runtime runtime(threads, arch, ints);
      const Packed w = packed(runtime, kind, rows, cols);
      Floats y(tokens * rows), one(rows), table(tokens * cols);
      runtime.linear(w.matrix, x.data(), tokens, cols, y.data(), rows);
      for (int64_t t = 0; t < tokens; ++t) {
        runtime.linear(w.matrix, x.data() + t * cols, 1, cols, one.data(), rows);
        CHECK(std::memcmp(one.data(), y.data() + t * rows, rows * sizeof(float)) == 0);
      }
      std::vector<int32_t> ids(tokens);
      for (int64_t t = 0; t < tokens; ++t) ids[t] = static_cast<int32_t>(t * 5 % rows);
      runtime.embed(w.matrix, ids.data(), tokens, 2.0f, table.data());
      if (first.empty()) first = y;
      CHECK(same(first, y));
    }
  }
}

// --- small operations ---------------------------------------------------------------------------
void rows(const char* arch) {
  Runtime runtime(3, arch);
  for (int64_t n : {6, 64, 81, 576}) {
    const int64_t tokens = 90, heads = 3, half = n / 2;
    Floats x = noise(tokens * heads * n, 2), y(x.size()), weight = noise(n, 3), delta = noise(x.size(), 4);
    runtime.rms_norm({x.data(), tokens, heads, heads * n, n, n}, weight.data(), 1e-6f, y.data());
    runtime.add_rms_norm(x.data(), delta.data(), weight.data(), weight.data(), tokens * heads, n, 1e-6f,
                         y.data());
    runtime.gated(x.data(), tokens * heads, n, half, true, y.data());
    runtime.gated(x.data(), tokens * heads, n, half, false, y.data());
    runtime.softcap(x.data(), tokens * heads * n, 30.0f);
    if (n % 2 == 0) {
      const Floats angle = noise(tokens * half, 5);
      std::vector<int32_t> positions(tokens);
      for (int64_t t = 0; t < tokens; ++t) positions[t] = static_cast<int32_t>(tokens - 1 - t);
      runtime.rope({x.data(), tokens, heads, heads * n, n, n}, positions.data(), angle.data(),
                   angle.data(), tokens);
    }
  }
}

// --- the cache ----------------------------------------------------------------------------------
struct Paged {  // sequences of one layer's cache, blocks in a scattered order
  KvType type;
  int64_t kv_heads, group, dim, block_tokens;
  std::vector<int64_t> context, fresh;
  int64_t columns = 0, blocks = 0, tokens = 0;
  std::vector<uint8_t> bytes;
  std::vector<int32_t> table, starts, contexts;
  Floats q, k, v, sinks;

  Paged(KvType type, int64_t kv_heads, int64_t group, int64_t dim, int64_t block_tokens,
        std::vector<int64_t> context, std::vector<int64_t> fresh)
      : type(type), kv_heads(kv_heads), group(group), dim(dim), block_tokens(block_tokens),
        context(std::move(context)), fresh(std::move(fresh)) {
    const int64_t sequences = static_cast<int64_t>(this->context.size());
    starts.push_back(0);
    for (int64_t s = 0; s < sequences; ++s) {
      const int64_t need = (this->context[s] + this->fresh[s] + block_tokens - 1) / block_tokens;
      columns = std::max(columns, need);
      tokens += this->fresh[s];
      starts.push_back(static_cast<int32_t>(tokens));
      contexts.push_back(static_cast<int32_t>(this->context[s]));
    }
    blocks = sequences * columns;
    table.resize(blocks);
    for (int64_t i = 0; i < blocks; ++i) table[i] = static_cast<int32_t>(blocks - 1 - i);
    bytes.resize(blocks * 2 * kv_heads * block_tokens * row());
    q = noise(tokens * kv_heads * group * dim, 6);
    sinks = noise(kv_heads * group, 7);
  }

  int64_t row() const { return kv_row_bytes(type, dim); }
  Cache cache() {
    const int64_t head = block_tokens * row();
    return {type, bytes.data(), blocks, 0, kv_heads, block_tokens, dim,
            2 * kv_heads * head, 0, kv_heads * head, head, row()};
  }
  Rows queries() { return {q.data(), tokens, kv_heads * group, kv_heads * group * dim, dim, dim}; }
};

void fill(Runtime& runtime, Paged& paged) {
  for (size_t s = 0; s < paged.context.size(); ++s) {
    const int64_t count = paged.context[s] + paged.fresh[s];
    std::vector<int32_t> slots(count);
    for (int64_t p = 0; p < count; ++p) {
      const int64_t block = paged.table[s * paged.columns + p / paged.block_tokens];
      slots[p] = static_cast<int32_t>(block * paged.block_tokens + p % paged.block_tokens);
    }
    const Floats k = noise(count * paged.kv_heads * paged.dim, 8), v = noise(k.size(), 9);
    const auto rows = [&](const Floats& x) {
      return Rows{const_cast<float*>(x.data()), count, paged.kv_heads, paged.kv_heads * paged.dim,
                  paged.dim, paged.dim};
    };
    runtime.store_kv(rows(k), rows(v), paged.cache(), 0, slots.data());
  }
}

Floats attend(Runtime& runtime, Paged& paged, int64_t window, float softcap) {
  Floats out(paged.q.size()), lse(paged.tokens * paged.kv_heads * paged.group);
  runtime.attention({paged.queries(), paged.cache(), 0, paged.table.data(),
                     static_cast<int64_t>(paged.context.size()), paged.columns, paged.columns,
                     paged.starts.data(), paged.contexts.data(), 0.1f, window, softcap,
                     paged.sinks.data(), out.data(), lse.data()});
  out.insert(out.end(), lse.begin(), lse.end());
  return out;
}

void attention(const char* arch) {
  for (int code = 0; code < kKvTypes; ++code) {
    for (const auto& [kv_heads, group, dim, block_tokens] :
         {std::array<int64_t, 4>{2, 3, 64, 16}, {1, 4, 256, 32}, {3, 1, 20, 5}, {1, 16, 80, 16}}) {
      for (int64_t window : {0, 100}) {
        Floats first;
        for (int threads : {1, 2, 5}) {
          Runtime runtime(threads, arch);
          Paged paged(static_cast<KvType>(code), kv_heads, group, dim, block_tokens, {700, 0, 255, 3},
                      {1, 40, 2, 0});
          fill(runtime, paged);
          const Floats got = attend(runtime, paged, window, window ? 20.0f : 0.0f);
          for (float value : got) CHECK(value == value);
          if (first.empty()) first = got;
          CHECK(same(first, got));
        }
      }
    }
  }
}

// --- several callers, and a tape ----------------------------------------------------------------
void callers_take_turns(const char* arch) {
  Runtime runtime(3, arch);
  const auto one = [&](KvType type, Floats& result) {
    Paged paged(type, 2, 3, 64, 16, {500, 31}, {1, 20});
    fill(runtime, paged);
    for (int round = 0; round < 5; ++round) result = attend(runtime, paged, 0, 0.0f);
  };
  std::vector<Floats> together(kKvTypes), alone(kKvTypes);
  std::vector<std::thread> callers;
  for (int code = 0; code < kKvTypes; ++code) {
    callers.emplace_back(one, static_cast<KvType>(code), std::ref(together[code]));
  }
  for (std::thread& caller : callers) caller.join();
  for (int code = 0; code < kKvTypes; ++code) {
    one(static_cast<KvType>(code), alone[code]);
    CHECK(same(together[code], alone[code]));
  }
}

void a_tape_reads_what_lies_there_now(const char* arch) {
  Runtime runtime(2, arch);
  const int64_t rows = 40, cols = 64;
  const Packed w = packed(runtime, Kind::q8_0, rows, cols);
  Floats x = noise(cols, 10), y(rows), want(rows);
  Tape tape;
  runtime.record(&tape);
  runtime.linear(w.matrix, x.data(), 1, cols, y.data(), rows);
  runtime.softcap(y.data(), rows, 3.0f);
  runtime.stop();
  const Floats other = noise(cols, 11);
  std::copy(other.begin(), other.end(), x.begin());  // the tape knows the address
  runtime.replay(tape);
  runtime.linear(w.matrix, x.data(), 1, cols, want.data(), rows);
  runtime.softcap(want.data(), rows, 3.0f);
  CHECK(same(y, want));
}

// --- mixtures of experts ------------------------------------------------------------------------
void mixtures(const char* arch, bool ints) {
  const int64_t tokens = 21, experts = 5, top_k = 2, cols = 64, outputs = 40, pairs = tokens * top_k;
  const Floats logits = noise(tokens * experts, 12), x = noise(tokens * cols, 13), gate = noise(tokens, 14);
  Floats first;
  for (int threads : {1, 3}) {
    Runtime runtime(threads, arch, ints);
    std::vector<Packed> packs;
    std::vector<Matrix> matrices;
    for (int64_t e = 0; e < experts; ++e) {
      packs.push_back(packed(runtime, e % 2 ? Kind::q4_1 : Kind::q8_0, outputs, cols));
      matrices.push_back(packs.back().matrix);
    }
    for (int64_t room : {pairs, int64_t{3}}) {  // all pairs of an expert at once, or three and three
      Floats weights(pairs), x_rows(room * cols), y_rows(room * outputs), y(pairs * outputs);
      Floats mixed(tokens * outputs), one(outputs);
      std::vector<int32_t> chosen(pairs), order(pairs), starts(experts + 1);
      const Route way{chosen.data(), pairs, experts, order.data(), starts.data()};
      runtime.choose({logits.data(), tokens, experts, top_k, true, weights.data(), chosen.data()});
      runtime.route(way);
      runtime.grouped({matrices, way, top_k, x.data(), cols, y.data(), outputs, room, x_rows.data(),
                       y_rows.data()});
      for (int64_t p = 0; p < pairs; ++p) {
        runtime.linear(matrices[chosen[p]], x.data() + p / top_k * cols, 1, cols, one.data(), outputs);
        CHECK(std::memcmp(one.data(), y.data() + p * outputs, outputs * sizeof(float)) == 0);
      }
      runtime.mix({y.data(), weights.data(), tokens, top_k, outputs, y.data(), gate.data(), mixed.data()});
      if (first.empty()) first = mixed;
      CHECK(same(first, mixed));
    }
  }
}

}  // namespace

int main() {
  pool_runs_every_item_once();
  std::vector<const char*> names{"portable"};
  for (const char* name : {"avx2", "avx512"}) {
    if (choose_arch(name)) names.push_back(name);
  }
  for (const char* name : names) {
    products(name, false);
    products(name, true);
    mixtures(name, false);
    mixtures(name, true);
    rows(name);
    attention(name);
    callers_take_turns(name);
    a_tape_reads_what_lies_there_now(name);
    std::printf("%s: well\n", choose_arch(name)->name);
  }
}
