// Cuts paged attention into items of work: (sequence, run of new tokens, key/value head), and where
// there are too few of those for the threads, one item per span of 256 positions as well.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "runtime.hpp"

namespace tenfold {

struct Runtime::Item {
  AttendTile tile;
  int64_t span0, span1;  // spans that any of the tile's rows sees
  int64_t partial0;      // where its partials begin, counted in floats
};

namespace {

constexpr int64_t kNoWindow = int64_t{1} << 60;
constexpr int kTileRows = 48;

[[noreturn]] void refuse(int64_t sequence, const std::string& what) {
  throw std::invalid_argument("sequence " + std::to_string(sequence) + ": " + what);
}

// Every block that the new tokens of sequence s see must be a block of the cache.
void check(const Attend& a, int64_t s, int64_t tokens, int64_t window) {
  const int64_t context = a.context[s], bt = a.cache.block_tokens;
  if (tokens < 0) refuse(s, "starts do not ascend");
  if (context < 0) refuse(s, "context " + std::to_string(context) + " is negative");
  if (tokens == 0) return;
  const int64_t last = (context + tokens - 1) / bt;
  if (last >= a.columns) {
    refuse(s, "position " + std::to_string(context + tokens - 1) + " needs " + std::to_string(last + 1) +
                  " blocks, the table has " + std::to_string(a.columns));
  }
  for (int64_t b = std::max<int64_t>(0, context - window + 1) / bt; b <= last; ++b) {
    const int32_t block = a.table[s * a.table_stride + b];
    if (block < 0 || block >= a.cache.blocks) {
      refuse(s, "block table entry " + std::to_string(b) + " is " + std::to_string(block) +
                    ", the cache has " + std::to_string(a.cache.blocks) + " blocks");
    }
  }
}

}  // namespace

void Runtime::plan(const Attend& a, std::vector<Item>& items) const {
  const int64_t window = a.window > 0 ? a.window : kNoWindow;
  const int64_t group = a.q.heads / a.cache.heads;
  const int64_t run = std::max<int64_t>(1, kTileRows / group);
  if (a.starts[0] != 0 || a.starts[a.sequences] != a.q.tokens) {
    throw std::invalid_argument("starts must run from 0 to the number of tokens, " +
                                std::to_string(a.q.tokens));
  }
  int64_t partials = 0;
  for (int64_t s = 0; s < a.sequences; ++s) {
    const int64_t tokens = a.starts[s + 1] - a.starts[s];
    check(a, s, tokens, window);
    // The longest first: the last items to be claimed should be short ones.
    for (int64_t at = (tokens - 1) / run * run; tokens > 0 && at >= 0; at -= run) {
      const int64_t count = std::min(run, tokens - at), position = a.context[s] + at;
      const int64_t span0 = std::max<int64_t>(0, position - window + 1) / kSpan;
      const int64_t span1 = (position + count - 1) / kSpan + 1;
      for (int64_t h = 0; h < a.cache.heads; ++h) {
        Item item;
        item.tile = {a.q.data + (a.starts[s] + at) * a.q.token_stride + h * group * a.q.head_stride,
                     a.q.token_stride, a.q.head_stride,
                     a.cache.data + a.layer * a.cache.layer_stride + h * a.cache.head_stride,
                     a.cache.type, a.cache.block_stride, a.cache.kv_stride, a.cache.token_stride,
                     a.table + s * a.table_stride,
                     a.out + ((a.starts[s] + at) * a.q.heads + h * group) * a.q.n,
                     a.q.heads * a.q.n, a.q.n, a.sinks ? a.sinks + h * group : nullptr,
                     a.lse ? a.lse + (a.starts[s] + at) * a.q.heads + h * group : nullptr, a.q.heads,
                     static_cast<int>(count), static_cast<int>(group),
                     static_cast<int>(a.q.n), static_cast<int>(a.cache.block_tokens), position, window,
                     a.scale, a.softcap};
        item.span0 = span0;
        item.span1 = span1;
        item.partial0 = partials;
        partials += (span1 - span0) * count * group * attend_row_floats(static_cast<int>(a.q.n));
        items.push_back(item);
      }
    }
  }
}

void Runtime::run_whole(const std::vector<Item>& items, int64_t rows, int head_dim) {
  const int64_t one = rows * attend_row_floats(head_dim), 
                each = 2 * one + attend_scratch(static_cast<int>(rows), head_dim);
  float* memory = scratch(each);
  pool().each(static_cast<int64_t>(items.size()), [&](int worker, int64_t i) {
    const Item& item = items[i];
    float* total = memory + worker * each;
    float* partial = total + one;
    arch_->attend_span(item.tile, item.span0, total, partial + one);
    for (int64_t span = item.span0 + 1; span < item.span1; ++span) {
      arch_->attend_span(item.tile, span, partial, partial + one);
      arch_->attend_merge(item.tile, total, partial);
    }
    arch_->attend_finish(item.tile, total);
  });
}

void Runtime::run_spans(const std::vector<Item>& items, int head_dim) {
  struct Piece {
    int64_t item, span;
  };
  std::vector<Piece> pieces;
  int64_t rows = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    rows = std::max<int64_t>(rows, items[i].tile.tokens * items[i].tile.group);
    for (int64_t s = items[i].span0; s < items[i].span1; ++s) pieces.push_back({static_cast<int64_t>(i), s});
  }
  const auto size = [&](const Item& item) {
    return item.tile.tokens * item.tile.group * attend_row_floats(head_dim);
  };
  const Item& last = items.back();
  float* partials = partials_.floats(last.partial0 + (last.span1 - last.span0) * size(last));
  const int64_t each = attend_scratch(static_cast<int>(rows), head_dim);
  float* memory = scratch(each);
  pool().each(static_cast<int64_t>(pieces.size()), [&](int worker, int64_t p) {
    const Item& item = items[pieces[p].item];
    const int64_t span = pieces[p].span;
    arch_->attend_span(item.tile, span, partials + item.partial0 + (span - item.span0) * size(item),
                       memory + worker * each);
  });
  for (const Item& item : items) {
    float* total = partials + item.partial0;
    for (int64_t s = 1; s < item.span1 - item.span0; ++s) {
      arch_->attend_merge(item.tile, total, total + s * size(item));
    }
    arch_->attend_finish(item.tile, total);
  }
}

void Runtime::run_attention(const Attend& a) {
  std::vector<Item> items;
  plan(a, items);
  if (items.empty()) return;
  int64_t rows = 0, spans = 0;
  for (const Item& item : items) {
    rows = std::max<int64_t>(rows, item.tile.tokens * item.tile.group);
    spans += item.span1 - item.span0;
  }
  const int64_t count = static_cast<int64_t>(items.size());
  if (threads_ > 1 && count < 4 * threads_ && spans > count) run_spans(items, static_cast<int>(a.q.n));
  else run_whole(items, rows, static_cast<int>(a.q.n));
}

}  // namespace tenfold
