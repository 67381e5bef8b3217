// Causal attention over a paged cache. Included once per instruction set.
//
// A *row* is one query head of one new token; the rows of a tile share one key/value head. A *span* is
// 256 positions at absolute multiples of 256. For each row and span: scores, their maximum m, weights
// p = exp(score - m), their sum l and acc = sum p v, positions ascending. Spans are merged in order as
// in online softmax (Milakov and Gimelshein 2018; FlashAttention-2 splits the same way). All of it is
// fixed by the row's own position: which rows share a tile, and who computes a span, changes no bit.
//
// Partial of a tile: per row [m, l, padding to 8 floats, acc[head_dim rounded up to 8]]. l < 0 marks
// a row that sees nothing of the span.
//
// Cached rows are read as they are stored (kv_rows.inl) and added up in float32. An int8 row's scale
// is one factor of its score, or of its value's weight. Where many rows share a tile, a slice of keys
// or values is made float32 once for all of them, keys transposed: lanes are then keys instead of
// depth. A score is eight sums, of depths d = 0, 1, .. 7 mod 8, added as ((0+1)+(2+3))+((4+5)+(6+7));
// both ways, and registers of any width, keep to that order.

struct Range {  // positions relative to the span's first
  int begin, end;
  bool empty() const { return begin >= end; }
};

TF_INLINE Range row_range(const AttendTile& t, int64_t span, int token) {
  const int64_t last = t.position + token, first = last - t.window + 1, base = span * kSpan;
  const int64_t begin = first > base ? first - base : 0, end = last + 1 - base;
  return {static_cast<int>(begin < kSpan ? begin : kSpan), static_cast<int>(end < kSpan ? end : kSpan)};
}

// out[r][0..3] = q[r] . k[0..3]
template <int Rows, class Row>
TF_INLINE void dots(const float* const* q, const uint8_t* const* k, int depth, float* out) {
  Simd::F acc[Rows][4];
  unroll<Rows>([&](auto r) TF_LAMBDA {
    unroll<4>([&](auto p) TF_LAMBDA { acc[r][p] = Simd::zero(); });
  });
  int d = 0;
  for (; d + 8 <= depth; d += 8) {
    Simd::F qd[Rows];
    unroll<Rows>([&](auto r) TF_LAMBDA { qd[r] = Simd::load(q[r] + d); });
    unroll<4>([&](auto p) TF_LAMBDA {
      const Simd::F kd = Row::load(k[p], d);
      unroll<Rows>([&](auto r) TF_LAMBDA { acc[r][p] = Simd::fma(qd[r], kd, acc[r][p]); });
    });
  }
  if (d < depth) {
    for (int p = 0; p < 4; ++p) {
      const Simd::F kd = Row::load_n(k[p], d, depth - d);
      for (int r = 0; r < Rows; ++r) {
        acc[r][p] = Simd::fma(Simd::load_n(q[r] + d, depth - d), kd, acc[r][p]);
      }
    }
  }
  unroll<Rows>([&](auto r) TF_LAMBDA {
    Simd::sum4(acc[r][0], acc[r][1], acc[r][2], acc[r][3], out + r * kScoreRow);
  });
}

template <int Rows>
TF_INLINE void find_rows(const AttendTile& t, int row, const float* (&q)[Rows]) {
  for (int r = 0; r < Rows; ++r) {
    q[r] = t.q + (row + r) / t.group * t.q_token + (row + r) % t.group * t.q_head;
  }
}

template <int Rows, class Row>
void score_rows(const AttendTile& t, const uint8_t* const* keys, Range positions, int row, float* scores) {
  const float* q[Rows];
  find_rows(t, row, q);
  for (int p = positions.begin; p < positions.end; p += 4) dots<Rows, Row>(q, keys + p, t.head_dim, scores + p);
}

constexpr int kPanel = 32;  // keys in a transposed slice

// panel[d][0 .. kPanel) = the keys' values at depth d, zeros up to the next multiple of 8 depths.
template <class Row>
void transpose(const uint8_t* const* keys, int depth, float* panel) {
  for (int d = 0; d < depth; d += 8, panel += 8 * kPanel) {
    for (int p = 0; p < kPanel; p += 8) {
      Simd::F part[8];
      for (int i = 0; i < 8; ++i) {
        part[i] = d + 8 <= depth ? Row::load(keys[p + i], d) : Row::load_n(keys[p + i], d, depth - d);
      }
      Simd::transpose(part);
      for (int i = 0; i < 8; ++i) Simd::store(panel + i * kPanel + p, part[i]);
    }
  }
}

// sum[r] = q[r] . two vectors of keys, of the depths whose remainder by 8 is within [first, first + Lanes).
template <int Lanes, int Rows>
TF_INLINE void dot_keys(const float* const* q, const float* panel, int depth, int first,
                        Wide::F (&sum)[Rows][2]) {
  if constexpr (Lanes == 1) {
    unroll<Rows>([&](auto r) TF_LAMBDA { sum[r][0] = sum[r][1] = Wide::zero(); });
    for (int d = first; d < depth; d += 8) {
      const Wide::F a = Wide::load(panel + d * kPanel), b = Wide::load(panel + d * kPanel + Wide::lanes);
      unroll<Rows>([&](auto r) TF_LAMBDA {
        const Wide::F x = Wide::set(q[r][d]);
        sum[r][0] = Wide::fma(x, a, sum[r][0]);
        sum[r][1] = Wide::fma(x, b, sum[r][1]);
      });
    }
  } else {
    Wide::F more[Rows][2];
    dot_keys<Lanes / 2>(q, panel, depth, first, sum);
    dot_keys<Lanes / 2>(q, panel, depth, first + Lanes / 2, more);
    unroll<Rows>([&](auto r) TF_LAMBDA {
      sum[r][0] = Wide::add(sum[r][0], more[r][0]);
      sum[r][1] = Wide::add(sum[r][1], more[r][1]);
    });
  }
}

template <int Rows>
void score_panel(const AttendTile& t, const float* panel, int row, float* scores) {
  const float* q[Rows];
  find_rows(t, row, q);
  for (int p = 0; p < kPanel; p += 2 * Wide::lanes) {
    Wide::F sum[Rows][2];
    dot_keys<8>(q, panel + p, t.head_dim, 0, sum);
    for (int r = 0; r < Rows; ++r) {
      Wide::store(scores + r * kScoreRow + p, sum[r][0]);
      Wide::store(scores + r * kScoreRow + p + Wide::lanes, sum[r][1]);
    }
  }
}

// Asks for the keys of the next slice and the values of this one, before the arithmetic on this
// slice's keys: a block's rows are too short for the hardware to see where the next block begins.
TF_INLINE void fetch_ahead(const AttendTile& t, const uint8_t* const* keys, Range slice, int end) {
  const int step = slice.end - slice.begin, bytes = static_cast<int>(kv_row_bytes(t.type, t.head_dim));
  for (int p = slice.begin; p < slice.end; ++p) {
    const uint8_t* value = keys[p] + t.cache_values;
    const uint8_t* key = keys[p + step < end ? p + step : end - 1];
    for (int d = 0; d < bytes; d += 64) {
      __builtin_prefetch(key + d, 0, 3);
      __builtin_prefetch(value + d, 0, 2);
    }
  }
}

// Scores to weights in place; m and l to the row's head. Scaled: the keys' factors are in key_scales.
template <bool Scaled>
void soften(const AttendTile& t, Range seen, const float* key_scales, float* scores, float* head) {
  using F = Wide::F;
  constexpr int step = Wide::lanes;
  const F scale = Wide::set(t.scale), nothing = Wide::set(-__builtin_inff());
  const int begin = seen.begin / step * step;
  const auto seen_only = [&](F v, int p, F other) TF_LAMBDA {
    if (p >= seen.begin && p + step <= seen.end) return v;
    return Wide::keep(v, p, seen.begin, seen.end, other);
  };
  F top = nothing;
  for (int p = begin; p < seen.end; p += step) {
    F s = Wide::load(scores + p);
    if constexpr (Scaled) s = Wide::mul(s, Wide::load(key_scales + p));
    s = Wide::mul(s, scale);
    if (t.softcap != 0.0f) {
      const F cap = Wide::set(t.softcap);
      s = Wide::mul(tanh_lanes<Wide>(Wide::div(s, cap)), cap);
    }
    s = seen_only(s, p, nothing);
    Wide::store(scores + p, s);
    top = Wide::max(s, top);
  }
  const float m = Wide::max_lane(top);
  Simd::F sum = Simd::zero();
  for (int p = begin; p < seen.end; p += step) {
    F w = exp_lanes<Wide>(Wide::sub(Wide::load(scores + p), Wide::set(m)));
    w = seen_only(w, p, Wide::zero());
    Wide::store(scores + p, w);
    sum = Wide::add_halves(sum, w);
  }
  head[0] = m;
  head[1] = Simd::sum(sum);
}

// acc[r][0 .. Vectors of S) += sum over positions of weight[r][p] value[p]; lanes < 8: a partial vector.
template <class S, int Rows, int Vectors, class Row>
TF_INLINE void weigh(const uint8_t* const* values, int offset, int lanes, Range positions,
                     const float* weights, float* acc, int64_t acc_row) {
  typename S::F sum[Rows][Vectors];
  unroll<Rows>([&](auto r) TF_LAMBDA {
    unroll<Vectors>([&](auto v) TF_LAMBDA { sum[r][v] = S::load(acc + r * acc_row + v * S::lanes); });
  });
  for (int p = positions.begin; p < positions.end; ++p) {
    typename S::F w[Rows];
    unroll<Rows>([&](auto r) TF_LAMBDA { w[r] = S::set(weights[r * kScoreRow + p]); });
    unroll<Vectors>([&](auto v) TF_LAMBDA {
      typename S::F x;
      if constexpr (Vectors == 1) {
        x = lanes < 8 ? Row::load_n(values[p], offset, lanes) : Row::load(values[p], offset);
      } else {
        x = Row::template load<S>(values[p], offset + v * S::lanes);
      }
      unroll<Rows>([&](auto r) TF_LAMBDA { sum[r][v] = S::fma(w[r], x, sum[r][v]); });
    });
  }
  unroll<Rows>([&](auto r) TF_LAMBDA {
    unroll<Vectors>([&](auto v) TF_LAMBDA { S::store(acc + r * acc_row + v * S::lanes, sum[r][v]); });
  });
}

template <int Rows, class Row>
void weigh_rows(const uint8_t* const* values, int depth, Range positions, const float* weights,
                float* acc, int64_t acc_row) {
  if (positions.empty()) return;
  int d = 0;
  const auto run = [&](auto vectors, int lanes, auto s) TF_LAMBDA {
    weigh<decltype(s), Rows, vectors, Row>(values, d, lanes, positions, weights, acc + d, acc_row);
  };
  constexpr std::integral_constant<int, 1> one{};
  constexpr std::integral_constant<int, 4> four{};
  for (; d + 4 * Wide::lanes <= depth; d += 4 * Wide::lanes) run(four, 8, Wide{});
  for (; d + 32 <= depth; d += 32) run(four, 8, Simd{});
  for (; d < depth; d += 8) run(one, depth - d < 8 ? depth - d : 8, Simd{});
}

// Rows of one tile over one slice of positions. A row's own range may differ at the slice's edges:
// there rows go one by one, in the middle together; for each row positions stay in order.
template <int Rows, class Row>
void weigh_tile(const AttendTile& t, int64_t span, const uint8_t* const* values, Range slice, int row,
                const float* weights, float* acc, int64_t acc_row) {
  const auto clip = [&](int r) {
    const Range own = row_range(t, span, (row + r) / t.group);
    return Range{own.begin > slice.begin ? own.begin : slice.begin,
                 own.end < slice.end ? own.end : slice.end};
  };
  const Range oldest = clip(0), newest = clip(Rows - 1);  // rows ascend by position, so do ranges
  const Range common{newest.begin, oldest.end};
  if (Rows == 1 || common.empty()) {
    for (int r = 0; r < Rows; ++r) {
      weigh_rows<1, Row>(values, t.head_dim, clip(r), weights + r * kScoreRow, acc + r * acc_row, acc_row);
    }
    return;
  }
  for (int r = 0; r < Rows; ++r) {
    weigh_rows<1, Row>(values, t.head_dim, Range{clip(r).begin, common.begin}, weights + r * kScoreRow,
                  acc + r * acc_row, acc_row);
  }
  weigh_rows<Rows, Row>(values, t.head_dim, common, weights, acc, acc_row);
  for (int r = 0; r < Rows; ++r) {
    weigh_rows<1, Row>(values, t.head_dim, Range{common.end, clip(r).end}, weights + r * kScoreRow,
                  acc + r * acc_row, acc_row);
  }
}

// Where each key of the tile's range begins. Positions outside it (block table -1) are never touched:
// their entries, for whole groups and panels of keys, repeat the first or the last.
TF_INLINE void locate(const AttendTile& t, int64_t span, Range positions, const uint8_t** keys) {
  int64_t block = (span * kSpan + positions.begin) / t.block_tokens;
  int slot = static_cast<int>((span * kSpan + positions.begin) % t.block_tokens);
  for (int p = positions.begin; p < positions.end; ++block, slot = 0) {
    const uint8_t* key = t.cache + t.table[block] * t.cache_block + slot * t.cache_token;
    for (; slot < t.block_tokens && p < positions.end; ++slot, ++p, key += t.cache_token) keys[p] = key;
  }
  for (int p = positions.begin; p % kPanel != 0; --p) keys[p - 1] = keys[p];
  for (int p = positions.end; p % kPanel != 0; ++p) keys[p] = keys[p - 1];
}

template <int Most, class F>
TF_INLINE void with_rows(int rows, const F& f) {
  if constexpr (Most > 1) {
    if (rows < Most) return with_rows<Most - 1>(rows, f);
  }
  f(std::integral_constant<int, Most>{});
}

template <int Most, class F>
TF_INLINE void each_tile(int rows, const F& f) {
  const int tiles = (rows + Most - 1) / Most;
  for (int i = 0; i < tiles; ++i) {
    const TileRange tile = tile_of(rows, Most, i);
    with_rows<Most>(tile.rows, [&](auto n) TF_LAMBDA { f(n, static_cast<int>(tile.begin)); });
  }
}

// The factors of a slice of int8 rows, which stand behind their codes.
TF_INLINE void read_scales(const uint8_t* const* rows, int depth, Range slice, float* scales) {
  for (int p = slice.begin; p < slice.end; ++p) std::memcpy(scales + p, rows[p] + depth, sizeof(float));
}

// Weights of a slice times their values' factors. What lies outside a row's own range is never read.
TF_INLINE void scale_weights(const float* scales, Range slice, float* weights) {
  for (int p = slice.begin; p < slice.end; p += 8) {
    const int n = slice.end - p < 8 ? slice.end - p : 8;
    Simd::store_n(weights + p, Simd::mul(Simd::load_n(weights + p, n), Simd::load_n(scales + p, n)), n);
  }
}

// A slice of rows as float32 lanes in `floats`; returns their addresses, in `list` at the same places.
template <class Row>
const uint8_t* const* widen(const uint8_t* const* rows, int depth, Range slice, float* floats,
                            const uint8_t** list) {
  for (int p = slice.begin; p < slice.end; ++p) {
    list[p] = reinterpret_cast<const uint8_t*>(floats);
    int d = 0;
    for (; d + 8 <= depth; d += 8) Simd::store(floats + d, Row::load(rows[p], d));
    if (d < depth) Simd::store(floats + d, Row::load_n(rows[p], d, depth - d));
    floats += (depth + 7) / 8 * 8;
  }
  return list;
}

template <class Row>
void attend_span_of(const AttendTile& t, int64_t span, Range all, float* partial, float* scratch) {
  const int rows = t.tokens * t.group, depth = t.head_dim;
  const int64_t row_floats = attend_row_floats(depth);
  float* scores = scratch;
  float* scales = scores + rows * kScoreRow;
  const uint8_t** cached = reinterpret_cast<const uint8_t**>(scales + 2 * kScoreRow);
  const uint8_t** widened = cached + kScoreRow;
  float* floats = scales + 6 * kScoreRow;
  const bool many = rows >= Wide::many_rows;  // a slice is made float32 for all rows
  locate(t, span, all, cached);

  // Slices small enough to stay in the first-level cache while all rows pass.
  const int step = depth <= 64 ? 32 : depth <= 128 ? 16 : 8;
  const int keys_step = many ? kPanel : step, round = many ? kPanel : 4;
  const auto each_slice = [&](int begin, int size, const auto& f) TF_LAMBDA {
    for (int p = begin; p < all.end; p += size) f(Range{p, p + size < all.end ? p + size : all.end});
  };
  each_slice(all.begin / round * round, keys_step, [&](Range slice) TF_LAMBDA {
    fetch_ahead(t, cached, slice, all.end);
    if constexpr (Row::scaled) read_scales(cached, depth, slice, scales);
    if (many) {
      transpose<Row>(cached + slice.begin, depth, floats);
      each_tile<Wide::panel_rows>(rows, [&](auto n, int r) TF_LAMBDA {
        score_panel<n>(t, floats, r, scores + r * kScoreRow + slice.begin);
      });
    } else {
      each_tile<Wide::attend_rows>(rows, [&](auto n, int r) TF_LAMBDA {
        score_rows<n, Row>(t, cached, slice, r, scores + r * kScoreRow);
      });
    }
  });
  for (int r = 0; r < rows; ++r) {
    const Range seen = row_range(t, span, r / t.group);
    float* head = partial + r * row_floats;
    if (seen.empty()) head[1] = -1.0f;
    else soften<Row::scaled>(t, seen, scales, scores + r * kScoreRow, head);
  }
  for (int p = all.begin; p < all.end; ++p) cached[p] += t.cache_values;
  each_slice(all.begin, 2 * step, [&](Range slice) TF_LAMBDA {
    if constexpr (Row::scaled) {
      read_scales(cached, depth, slice, scales);
      for (int r = 0; r < rows; ++r) scale_weights(scales, slice, scores + r * kScoreRow);
    }
    const auto weigh_all = [&](auto row, const uint8_t* const* values) TF_LAMBDA {
      each_tile<Wide::attend_rows>(rows, [&](auto n, int r) TF_LAMBDA {
        weigh_tile<n, decltype(row)>(t, span, values, slice, r, scores + r * kScoreRow,
                                     partial + r * row_floats + 8, row_floats);
      });
    };
    if (many && !std::is_same_v<Row, RowF32>) weigh_all(RowF32{}, widen<Row>(cached, depth, slice, floats, widened));
    else weigh_all(Row{}, cached);
  });
}

void attend_span(const AttendTile& t, int64_t span, float* partial, float* scratch) {
  const int rows = t.tokens * t.group;
  const int64_t row_floats = attend_row_floats(t.head_dim);
  const Range all{row_range(t, span, 0).begin, row_range(t, span, t.tokens - 1).end};
  std::memset(partial, 0, rows * row_floats * sizeof(float));
  if (all.empty()) {
    for (int r = 0; r < rows; ++r) partial[r * row_floats + 1] = -1.0f;
    return;
  }
  with_kv_row(t.type, [&](auto row) TF_LAMBDA {
    attend_span_of<decltype(row)>(t, span, all, partial, scratch);
  });
}

// total := total merged with the next span's partial.
void attend_merge(const AttendTile& t, float* total, const float* partial) {
  const int64_t row_floats = attend_row_floats(t.head_dim);
  for (int r = 0; r < t.tokens * t.group; ++r, total += row_floats, partial += row_floats) {
    if (partial[1] < 0.0f) continue;
    if (total[1] < 0.0f) {
      std::memcpy(total, partial, row_floats * sizeof(float));
      continue;
    }
    const Simd::F old_m = Simd::set(total[0]), new_m = Simd::set(partial[0]);
    const Simd::F m = Simd::max(old_m, new_m);
    const Simd::F a = exp_lanes(Simd::sub(old_m, m)), b = exp_lanes(Simd::sub(new_m, m));
    for (int64_t d = 0; d < row_floats; d += 8) {  // the head's l is merged like the rest
      const Simd::F sum = Simd::mul(Simd::load(partial + d), b);
      Simd::store(total + d, Simd::fma(Simd::load(total + d), a, sum));
    }
    Simd::store_n(total, m, 1);
  }
}

// Numerator over denominator. A sink is one more logit of the row's softmax, without a value.
void attend_finish(const AttendTile& t, const float* total) {
  const int64_t row_floats = attend_row_floats(t.head_dim);
  for (int r = 0; r < t.tokens * t.group; ++r, total += row_floats) {
    const int token = r / t.group, head = r % t.group;
    float* out = t.out + token * t.out_token + head * t.out_head;
    Simd::F top = Simd::set(total[0]), sum = Simd::set(total[1]), share = Simd::set(1.0f);
    if (t.sinks) {
      const Simd::F sink = Simd::set(t.sinks[head]), most = Simd::max(sink, top);
      share = exp_lanes(Simd::sub(top, most));
      sum = Simd::fma(sum, share, exp_lanes(Simd::sub(sink, most)));
      top = most;
    }
    for (int d = 0; d < t.head_dim; d += 8) {
      const int n = t.head_dim - d < 8 ? t.head_dim - d : 8;
      Simd::store_n(out + d, Simd::div(Simd::mul(Simd::load(total + 8 + d), share), sum), n);
    }
    if (t.lse) t.lse[token * t.lse_token + head] = Simd::max_lane(top) + std::log(Simd::max_lane(sum));
  }
}
