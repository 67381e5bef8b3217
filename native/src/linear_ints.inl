// y = x W^T + bias with activations as integers (grid.hpp). Included once per instruction set.
//
// Each output is, over the blocks of 32 columns in ascending order (of 16 for q6_k):
//   y = fused(float(integer sum of the block), weight scale * step, y), and where weights have minima
//   y = fused(minimum, sum of the block's activations, y)
// from zero; then, over those that are fine,
//   y = fused(float(integer sum of the low bytes), weight scale * (step / 256), y)
// and the bias. Integer sums are exact, so this order of rounded operations is all that
// decides the bits: one row or many, any instruction set.

// Codes of one block of a panel, behind its scales.
template <class Scale, bool HasMin, bool Centred>
struct FourBitInts {
  static constexpr bool four_bit = true;
  static constexpr bool has_min = HasMin, centred = Centred;
  static constexpr int scale_bytes = kPanel * Scale::bytes * (HasMin ? 2 : 1);
  static constexpr int step = scale_bytes + kPanel * kBlock / 2;

  static TF_INLINE Ints::F scale(const uint8_t* p, int v) { return Scale::wide(p, v * Ints::lanes); }
  static TF_INLINE Ints::F low(const uint8_t* p, int v) { return Scale::wide(p, kPanel + v * Ints::lanes); }
};

template <class Scale, int PerScale>
struct EightBitInts {
  static constexpr bool four_bit = false;
  static constexpr int flush = PerScale / 2;  // pairs under one scale
  static constexpr int scale_bytes = kPanel * Scale::bytes * (kBlock / PerScale);
  static constexpr int step = scale_bytes + kPanel * kBlock;

  static TF_INLINE Ints::F scale(const uint8_t* p, int s, int v) {
    return Scale::wide(p, s * kPanel + v * Ints::lanes);
  }
};

struct HalfInts {
  static constexpr int bytes = 2;
  static TF_INLINE Ints::F wide(const uint8_t* p, int lane) { return Ints::load_f16(p + lane * 2); }
};
struct FloatInts {
  static constexpr int bytes = 4;
  static TF_INLINE Ints::F wide(const uint8_t* p, int lane) { return Ints::load_f32(p + lane * 4); }
};

// Word g of lanes v of a block's codes.
template <class Code>
TF_INLINE Ints::I word_of(const uint8_t* p, int g, int v) {
  return Ints::load(p + Code::scale_bytes + (g * kPanel + v * Ints::lanes) * 4);
}

// What one block adds to y: Rows x Count vectors of lanes from vector `first` on.
template <class Code, int Rows, int Count>
TF_INLINE void pair_block(const uint8_t* p, int first, const int32_t* x, Ints::F (&y)[Rows][Count]) {
  const float* step = reinterpret_cast<const float*>(x) + Rows * kPairs;
  unroll<kPairs / Code::flush>([&](auto s) TF_LAMBDA {
    Ints::I sum[Rows][Count];
    unroll<Rows>([&](auto r) TF_LAMBDA {
      unroll<Count>([&](auto v) TF_LAMBDA { sum[r][v] = Ints::zero(); });
    });
    unroll<Code::flush / 2>([&](auto g) TF_LAMBDA {
      constexpr int k = s * Code::flush + g * 2;
      Ints::I word[Count];
      unroll<Count>([&](auto v) TF_LAMBDA { word[v] = word_of<Code>(p, k / 2, first + v); });
      unroll<2>([&](auto j) TF_LAMBDA {
        Ints::I w[Count];
        unroll<Count>([&](auto v) TF_LAMBDA { w[v] = Ints::bytes<j>(word[v]); });
        unroll<Rows>([&](auto r) TF_LAMBDA {
          unroll<Count>([&](auto v) TF_LAMBDA {
            sum[r][v] = Ints::pair_dot(sum[r][v], w[v], x + r * kPairs + k + j);
          });
        });
      });
    });
    unroll<Count>([&](auto v) TF_LAMBDA {
      const Ints::F scale = Code::scale(p, s, first + v);
      unroll<Rows>([&](auto r) TF_LAMBDA {
        const Ints::F whole = Ints::to_float(sum[r][v]);
        y[r][v] = Ints::fused(whole, Ints::mul(scale, Ints::spread(step + r)), y[r][v]);
      });
    });
  });
}

template <class Code, int Rows, int Count>
TF_INLINE void quad_block(const uint8_t* p, int first, const int32_t* x, Ints::F (&y)[Rows][Count]) {
  const int32_t* rest = x + Rows * 2 * kQuads;  // step, sum, low_sum, fine
  const float* step = reinterpret_cast<const float*>(rest);
  Ints::I sum[Rows][Count];
  unroll<Rows>([&](auto r) TF_LAMBDA {
    unroll<Count>([&](auto v) TF_LAMBDA { sum[r][v] = Ints::zero(); });
  });
  unroll<kQuads / 2>([&](auto g) TF_LAMBDA {
    Ints::I word[Count];
    unroll<Count>([&](auto v) TF_LAMBDA { word[v] = word_of<Code>(p, g, first + v); });
    unroll<2>([&](auto j) TF_LAMBDA {
      Ints::I w[Count];
      unroll<Count>([&](auto v) TF_LAMBDA { w[v] = Ints::nibbles<j>(word[v]); });
      unroll<Rows>([&](auto r) TF_LAMBDA {
        unroll<Count>([&](auto v) TF_LAMBDA {
          sum[r][v] = Ints::quad_dot(sum[r][v], w[v], x + r * kQuads + g * 2 + j);
        });
      });
    });
  });
  unroll<Count>([&](auto v) TF_LAMBDA {
    const Ints::F scale = Code::scale(p, first + v);
    unroll<Rows>([&](auto r) TF_LAMBDA {
      Ints::I whole = Ints::settle(sum[r][v]);
      if (Code::centred) whole = Ints::add(whole, rest + Rows + r);
      y[r][v] = Ints::fused(Ints::to_float(whole), Ints::mul(scale, Ints::spread(step + r)), y[r][v]);
    });
    if (Code::has_min) {
      const Ints::F minimum = Code::low(p, first + v);
      unroll<Rows>([&](auto r) TF_LAMBDA {
        y[r][v] = Ints::fused(minimum, Ints::spread(step + Rows + r), y[r][v]);
      });
    }
  });
}

// What the low bytes of one block add to the sums of the rows in whose mask it is fine. The codes are
// taken apart once for them all.
template <class Code, int Rows>
TF_INLINE void low_block(const uint8_t* p, int v, const int32_t* x, uint32_t fine, float* sums) {
  const int32_t *low = x + Rows * kQuads, *rest = low + Rows * kQuads;
  const float* step = reinterpret_cast<const float*>(rest);
  const Ints::F scale = Code::scale(p, v);
  Ints::I w[kQuads];
  unroll<kQuads / 2>([&](auto g) TF_LAMBDA {
    const Ints::I word = word_of<Code>(p, g, v);
    w[g * 2] = Ints::nibbles<0>(word);
    w[g * 2 + 1] = Ints::nibbles<1>(word);
  });
  for (; fine; fine &= fine - 1) {
    const int r = __builtin_ctz(fine);
    Ints::I sum = Ints::zero();
    unroll<kQuads>([&](auto q) TF_LAMBDA { sum = Ints::quad_dot(sum, w[q], low + r * kQuads + q); });
    sum = Ints::settle(sum);
    if (Code::centred) sum = Ints::add(sum, rest + 2 * Rows + r);
    const float low_step = step[r] * (1.0f / 256.0f);
    float* out = sums + r * kPanel + v * Ints::lanes;
    const Ints::F y = Ints::load_f32(out);
    Ints::store_f32(out, Ints::fused(Ints::to_float(sum), Ints::mul(scale, Ints::spread(&low_step)), y));
  }
}

constexpr int kAhead = 1536;  // bytes of weights asked for before they are read

// All lanes of a panel for one tile of rows, some vectors of lanes after the others so that their sums
// stay in registers. Codes are taken apart again for every tile: on these machines that costs less than
// storing them unpacked and reading those.
template <class Code, int Rows>
void int_panel(const uint8_t* panel, const int32_t* tile, int64_t blocks, int64_t columns, float* y,
               int64_t y_row, const float* bias) {
  constexpr int all = kPanel / Ints::lanes, count = Rows == 1 ? all : Ints::vectors;
  constexpr int words = Rows * row_words(Code::four_bit);
  alignas(64) float sums[Rows * kPanel];
  for (int first = 0; first < all; first += count) {
    Ints::F sum[Rows][count];
    unroll<Rows>([&](auto r) TF_LAMBDA {
      unroll<count>([&](auto v) TF_LAMBDA { sum[r][v] = Ints::zero_f(); });
    });
    const uint8_t* p = panel;
    const int32_t* x = tile;
    for (int64_t b = 0; b < blocks; ++b, p += Code::step, x += words) {
      if (first == 0) {
        for (int ahead = 0; ahead < Code::step; ahead += 64) __builtin_prefetch(p + kAhead + ahead);
      }
      if constexpr (Code::four_bit) quad_block<Code>(p, first, x, sum);
      else pair_block<Code>(p, first, x, sum);
    }
    unroll<Rows>([&](auto r) TF_LAMBDA {
      unroll<count>([&](auto v) TF_LAMBDA {
        Ints::store_f32(sums + r * kPanel + (first + v) * Ints::lanes, sum[r][v]);
      });
    });
  }
  if constexpr (Code::four_bit) {
    for (int64_t b = 0; b < blocks; ++b) {
      const int32_t* x = tile + b * words;
      const auto fine = static_cast<uint32_t>(x[Rows * (2 * kQuads + 3)]);
      if (!fine) continue;
      for (int v = 0; v < all; ++v) low_block<Code, Rows>(panel + b * Code::step, v, x, fine, sums);
    }
  }
  const int64_t lanes = columns < kPanel ? columns : kPanel;
  for (int r = 0; r < Rows; ++r) {
    const float* sum = sums + r * kPanel;
    for (int64_t o = 0; o < lanes; ++o) y[r * y_row + o] = bias ? sum[o] + bias[o] : sum[o];
  }
}

template <class F>
TF_INLINE void with_rows(int rows, const F& f) {
  unroll<Ints::tile_rows>([&](auto less) TF_LAMBDA {
    if (rows == less + 1) f(std::integral_constant<int, less + 1>{});
  });
}

template <class Code>
void int_panels(const Matrix& w, const int32_t* x, int64_t n, int64_t panel0, int64_t panel1, float* y,
                int64_t y_row) {
  const int64_t blocks = w.cols / kBlock, tiles = (n + Ints::tile_rows - 1) / Ints::tile_rows;
  for (int64_t panel = panel0; panel < panel1; ++panel) {
    const uint8_t* p = w.data + panel * blocks * Code::step;
    const int64_t at = panel * kPanel;
    for (int64_t t = 0; t < tiles; ++t) {
      const TileRange tile = tile_of(n, Ints::tile_rows, t);
      with_rows(tile.rows, [&](auto rows) TF_LAMBDA {
        int_panel<Code, rows>(p, x + int_tile_words(w.kind, tile.begin, w.cols), blocks, w.rows - at,
                              y + tile.begin * y_row + at, y_row, w.bias ? w.bias + at : nullptr);
      });
    }
  }
}

// x holds the rows' tiles as quantise_row left them. Quantised kinds only.
void linear_ints(const Matrix& w, const int32_t* x, int64_t n, int64_t panel0, int64_t panel1, float* y,
                 int64_t y_row) {
  const auto run = [&](auto code) TF_LAMBDA { int_panels<decltype(code)>(w, x, n, panel0, panel1, y, y_row); };
  switch (w.kind) {
    case Kind::q4_0: return run(FourBitInts<HalfInts, false, true>{});
    case Kind::q4_1: return run(FourBitInts<HalfInts, true, false>{});
    case Kind::q4_k: return run(FourBitInts<FloatInts, true, false>{});
    case Kind::q5_0:
    case Kind::q8_0: return run(EightBitInts<HalfInts, 32>{});
    case Kind::q6_k: return run(EightBitInts<FloatInts, 16>{});
    default: return;
  }
}

void quantise_pairs(const float* from, int64_t cols, int rows, int row, int32_t* tile) {
  for (int64_t k = 0; k < cols; k += kBlock, tile += rows * row_words(false)) {
    const Grid grid = grid_of(Ints::largest(from + k));
    Ints::quantise_pairs(from + k, grid.inverse, tile + row * kPairs);
    std::memcpy(tile + rows * kPairs + row, &grid.step, 4);
  }
}

void quantise_quads(Kind kind, const float* from, int64_t cols, int rows, int row, int32_t* tile) {
  const int64_t block = rows * row_words(true), steps = rows * 2 * kQuads + row;
  float total = 0.0f;
  for (int64_t b = 0; b < cols / kBlock; ++b) {
    const int32_t largest = Ints::largest(from + b * kBlock);
    tile[b * block + steps] = largest;
    total += float_of(static_cast<uint32_t>(largest));
  }
  const float count = static_cast<float>(cols / kBlock), bound = kStandsOut * total;
  for (int64_t b = 0; b < cols / kBlock; ++b, tile += block) {
    int32_t* rest = tile + rows * 2 * kQuads;  // step, sum, low_sum, fine
    const int32_t largest = rest[row];
    const Grid grid = byte_grid_of(largest);
    const bool fine = float_of(static_cast<uint32_t>(largest)) * count > bound;
    int32_t* to = tile + row * kQuads;
    ByteSums sums{0, 0};
    if (grid.step == grid.step) {
      sums = Ints::quantise_quads(from + b * kBlock, grid.inverse, to, to + rows * kQuads);
    } else {
      std::memset(to, 0, kQuads * 4);
      std::memset(to + rows * kQuads, 0, kQuads * 4);
    }
    const float high = static_cast<float>(sums.high) * grid.step;
    const float both = static_cast<float>(sums.high * 256 + sums.low) * (grid.step * (1.0f / 256.0f));
    const int32_t high_offset = -8 * sums.high, low_offset = -8 * sums.low;
    std::memcpy(rest + row, &grid.step, 4);
    std::memcpy(rest + rows + row, fine ? &both : &high, 4);
    if (kind == Kind::q4_0) rest[rows + row] = high_offset;
    rest[2 * rows + row] = low_offset;
    if (row == 0) rest[3 * rows] = 0;
    rest[3 * rows] |= fine << row;
  }
}

// Row `row` of a tile of `rows` rows, for a weight of this kind. A tile's rows are written in order.
void quantise_row(Kind kind, const float* from, int64_t cols, int rows, int row, int32_t* tile) {
  if (is_four_bit(kind)) quantise_quads(kind, from, cols, rows, row, tile);
  else quantise_pairs(from, cols, rows, row, tile);
}
