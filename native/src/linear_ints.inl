// y = x W^T + bias with int16 activations (grid.hpp). Included once per instruction set.
//
// Each output is, over the blocks of 32 columns in ascending order (of 16 for q6_k):
//   y = fused(float(integer sum of the block), weight scale * step, y), and where weights have minima
//   y = fused(minimum, sum of the block's activations, y)
// from zero, then the bias. Integer sums are exact, and the multiplication by a step is, so this order
// of rounded operations is all that decides the bits: one row or many, any instruction set.

// Codes of one block of a panel: `word(p, g, v)` loads word g of lanes v, holding `pairs` pairs.
template <class Scale, bool HasMin, bool Centred>
struct FourBitInts {
  static constexpr int pairs = 4;            // of a word
  static constexpr int flush = kPairs;       // pairs under one scale
  static constexpr bool has_min = HasMin, centred = Centred;
  static constexpr int scale_bytes = kPanel * Scale::bytes * (HasMin ? 2 : 1);
  static constexpr int step = scale_bytes + kPanel * kBlock / 2;

  static TF_INLINE Ints::I word(const uint8_t* p, int g, int v) {
    return Ints::load(p + scale_bytes + (g * kPanel + v * Ints::lanes) * 4);
  }
  template <int J>
  static TF_INLINE Ints::I pair(Ints::I word) { return Ints::nibbles<J>(word); }
  static TF_INLINE Ints::F scale(const uint8_t* p, int, int v) { return Scale::wide(p, v * Ints::lanes); }
  static TF_INLINE Ints::F low(const uint8_t* p, int v) { return Scale::wide(p, kPanel + v * Ints::lanes); }
};

template <class Scale, int PerScale>
struct EightBitInts {
  static constexpr int pairs = 2;
  static constexpr int flush = PerScale / 2;
  static constexpr bool has_min = false, centred = false;
  static constexpr int scale_bytes = kPanel * Scale::bytes * (kBlock / PerScale);
  static constexpr int step = scale_bytes + kPanel * kBlock;

  static TF_INLINE Ints::I word(const uint8_t* p, int g, int v) {
    return Ints::load(p + scale_bytes + (g * kPanel + v * Ints::lanes) * 4);
  }
  template <int J>
  static TF_INLINE Ints::I pair(Ints::I word) { return Ints::bytes<J>(word); }
  static TF_INLINE Ints::F scale(const uint8_t* p, int s, int v) {
    return Scale::wide(p, s * kPanel + v * Ints::lanes);
  }
  static TF_INLINE Ints::F low(const uint8_t*, int) { return Ints::zero_f(); }
};

struct HalfInts {
  static constexpr int bytes = 2;
  static TF_INLINE Ints::F wide(const uint8_t* p, int lane) { return Ints::load_f16(p + lane * 2); }
};
struct FloatInts {
  static constexpr int bytes = 4;
  static TF_INLINE Ints::F wide(const uint8_t* p, int lane) { return Ints::load_f32(p + lane * 4); }
};

// A block taken apart for one tile's lanes: scales (minima) as floats, then a word per pair.
constexpr int kTileLanes = Ints::vectors * Ints::lanes;

template <class Code>
struct Apart {
  static constexpr int pairs = 1;
  static constexpr int flush = Code::flush;
  static constexpr bool has_min = Code::has_min, centred = Code::centred;
  static constexpr int scales = kPairs / flush;
  static constexpr int scale_bytes = kTileLanes * 4 * (scales + has_min);
  static constexpr int step = scale_bytes + kTileLanes * kPairs * 4;

  static TF_INLINE Ints::I word(const uint8_t* p, int g, int v) {
    return Ints::load(p + scale_bytes + (g * kTileLanes + v * Ints::lanes) * 4);
  }
  template <int J>
  static TF_INLINE Ints::I pair(Ints::I word) { return word; }
  static TF_INLINE Ints::F scale(const uint8_t* p, int s, int v) {
    return Ints::load_f32(p + (s * kTileLanes + v * Ints::lanes) * 4);
  }
  static TF_INLINE Ints::F low(const uint8_t* p, int v) {
    return Ints::load_f32(p + (scales * kTileLanes + v * Ints::lanes) * 4);
  }

  static void take(const uint8_t* from, int64_t blocks, int first, uint8_t* to) {
    for (int64_t b = 0; b < blocks; ++b, from += Code::step, to += step) {
      unroll<Ints::vectors>([&](auto v) TF_LAMBDA {
        float* floats = reinterpret_cast<float*>(to) + v * Ints::lanes;
        for (int s = 0; s < scales; ++s) Ints::store_f32(floats + s * kTileLanes, Code::scale(from, s, first + v));
        if (has_min) Ints::store_f32(floats + scales * kTileLanes, Code::low(from, first + v));
        uint8_t* words = to + scale_bytes + v * Ints::lanes * 4;
        for (int g = 0; g < kPairs / Code::pairs; ++g) {
          const Ints::I word = Code::word(from, g, first + v);
          unroll<Code::pairs>([&](auto j) TF_LAMBDA {
            Ints::store(words + (g * Code::pairs + j) * kTileLanes * 4, Code::template pair<j>(word));
          });
        }
      });
    }
  }
};

// One block: Rows x Count vectors of lanes from vector First on; adds to sums[row][Vectors].
template <class Code, int Rows, int Count>
TF_INLINE void int_block(const uint8_t* p, int first, const int32_t* x, float* sums, int sums_row) {
  const float* step = reinterpret_cast<const float*>(x) + Rows * kPairs;
  unroll<kPairs / Code::flush>([&](auto s) TF_LAMBDA {
    Ints::I sum[Rows][Count];
    unroll<Rows>([&](auto r) TF_LAMBDA {
      unroll<Count>([&](auto v) TF_LAMBDA {
        sum[r][v] = Code::centred ? Ints::spread(x + Rows * (kPairs + 1) + r) : Ints::zero();
      });
    });
    for (int g = s * Code::flush / Code::pairs; g < (s + 1) * Code::flush / Code::pairs; ++g) {
      Ints::I word[Count];
      unroll<Count>([&](auto v) TF_LAMBDA { word[v] = Code::word(p, g, first + v); });
      const int32_t* at = x + g * Code::pairs;
      unroll<Code::pairs>([&](auto j) TF_LAMBDA {
        Ints::I w[Count];
        unroll<Count>([&](auto v) TF_LAMBDA { w[v] = Code::template pair<j>(word[v]); });
        unroll<Rows>([&](auto r) TF_LAMBDA {
          const Ints::I pair = Ints::spread(at + r * kPairs + j);
          unroll<Count>([&](auto v) TF_LAMBDA { sum[r][v] = Ints::dot(sum[r][v], w[v], pair); });
        });
      });
    }
    unroll<Count>([&](auto v) TF_LAMBDA {
      const Ints::F scale = Code::scale(p, s, first + v);
      const Ints::F low = Code::low(p, first + v);
      unroll<Rows>([&](auto r) TF_LAMBDA {
        float* out = sums + r * sums_row + (first + v) * Ints::lanes;
        Ints::F y = Ints::fused(Ints::to_float(sum[r][v]), Ints::mul(scale, Ints::spread(step + r)),
                                Ints::load_f32(out));
        if (Code::has_min) y = Ints::fused(low, Ints::spread(step + Rows + r), y);
        Ints::store_f32(out, y);
      });
    });
  });
}

constexpr int kAhead = 1536;  // bytes of weights asked for before they are read

template <int Lanes>
void put_sums(const float* sums, int rows, int64_t columns, float* c, int64_t c_row, const float* bias) {
  for (int r = 0; r < rows; ++r) {
    for (int64_t o = 0; o < Lanes && o < columns; ++o) {
      c[r * c_row + o] = bias ? sums[r * Lanes + o] + bias[o] : sums[r * Lanes + o];
    }
  }
}

// All lanes of a panel for one tile of rows, straight from the codes.
template <class Code, int Rows>
void int_panel(const uint8_t* p, const int32_t* x, int64_t blocks, int64_t columns, float* c, int64_t c_row,
               const float* bias) {
  constexpr int all = kPanel / Ints::lanes, count = Rows == 1 ? all : Ints::vectors;
  alignas(64) float sums[Rows * kPanel] = {};
  for (int64_t b = 0; b < blocks; ++b, p += Code::step, x += Rows * kRowWords) {
    for (int ahead = 0; ahead < Code::step; ahead += 64) __builtin_prefetch(p + kAhead + ahead);
    for (int first = 0; first < all; first += count) int_block<Code, Rows, count>(p, first, x, sums, kPanel);
  }
  put_sums<kPanel>(sums, Rows, columns, c, c_row, bias);
}

// The lanes of one tile over a chunk whose codes were taken apart.
template <class Code, int Rows>
void int_tile(const uint8_t* p, const int32_t* x, int64_t blocks, int64_t columns, float* c, int64_t c_row,
              bool first, const float* bias) {
  alignas(64) float sums[Rows * kTileLanes] = {};
  if (!first) {
    for (int r = 0; r < Rows; ++r) {
      for (int64_t o = 0; o < kTileLanes && o < columns; ++o) sums[r * kTileLanes + o] = c[r * c_row + o];
    }
  }
  for (int64_t b = 0; b < blocks; ++b, p += Apart<Code>::step, x += Rows * kRowWords) {
    int_block<Apart<Code>, Rows, Ints::vectors>(p, 0, x, sums, kTileLanes);
  }
  put_sums<kTileLanes>(sums, Rows, columns, c, c_row, bias);
}

template <class F>
TF_INLINE void with_rows(int rows, const F& f) {
  unroll<Ints::tile_rows>([&](auto less) TF_LAMBDA {
    if (rows == less + 1) f(std::integral_constant<int, less + 1>{});
  });
}

template <class Code>
void int_direct(const Matrix& w, const int32_t* x, int64_t n, int64_t panel0, int64_t panel1, float* y,
                int64_t y_row) {
  const int64_t blocks = w.cols / kBlock, tiles = (n + Ints::tile_rows - 1) / Ints::tile_rows;
  for (int64_t panel = panel0; panel < panel1; ++panel) {
    const uint8_t* p = w.data + panel * blocks * Code::step;
    const int64_t at = panel * kPanel;
    for (int64_t t = 0; t < tiles; ++t) {
      const TileRange tile = tile_of(n, Ints::tile_rows, t);
      with_rows(tile.rows, [&](auto rows) TF_LAMBDA {
        int_panel<Code, rows>(p, x + int_tile_words(tile.begin, w.cols), blocks, w.rows - at,
                              y + tile.begin * y_row + at, y_row, w.bias ? w.bias + at : nullptr);
      });
    }
  }
}

template <class Code>
void int_unpacked(const Matrix& w, const int32_t* x, int64_t n, int64_t panel0, int64_t panel1, float* y,
                  int64_t y_row, uint8_t* scratch) {
  static_assert(Apart<Code>::step * (kChunk / kBlock) <= kLinearScratch * 4, "scratch");
  const int64_t tiles = (n + Ints::tile_rows - 1) / Ints::tile_rows;
  const int64_t end = panel1 * kPanel < w.rows ? panel1 * kPanel : w.rows;
  for (int64_t begin = 0; begin < w.cols; begin += kChunk) {
    const int64_t blocks = (begin + kChunk < w.cols ? kChunk : w.cols - begin) / kBlock;
    const bool last = begin + kChunk >= w.cols;
    for (int64_t at = panel0 * kPanel; at < end; at += kTileLanes) {
      const uint8_t* p = w.data + (at / kPanel * (w.cols / kBlock) + begin / kBlock) * Code::step;
      Apart<Code>::take(p, blocks, static_cast<int>(at % kPanel / Ints::lanes), scratch);
      for (int64_t t = 0; t < tiles; ++t) {
        const TileRange tile = tile_of(n, Ints::tile_rows, t);
        const int32_t* at_x = x + int_tile_words(tile.begin, w.cols) + int_tile_words(tile.rows, begin);
        with_rows(tile.rows, [&](auto rows) TF_LAMBDA {
          int_tile<Code, rows>(scratch, at_x, blocks, w.rows - at, y + tile.begin * y_row + at, y_row,
                               begin == 0, last && w.bias ? w.bias + at : nullptr);
        });
      }
    }
  }
}

// x holds the rows' tiles as quantise_row left them. Quantised kinds only.
void linear_ints(const Matrix& w, const int32_t* x, int64_t n, int64_t panel0, int64_t panel1, float* y,
                 int64_t y_row, float* scratch) {
  const auto run = [&](auto code) TF_LAMBDA {
    using Code = decltype(code);
    if (n <= Ints::direct_rows) int_direct<Code>(w, x, n, panel0, panel1, y, y_row);
    else int_unpacked<Code>(w, x, n, panel0, panel1, y, y_row, reinterpret_cast<uint8_t*>(scratch));
  };
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

// Row `row` of a tile of `rows` rows, for a weight of this kind.
void quantise_row(Kind kind, const float* from, int64_t cols, int rows, int row, int32_t* tile) {
  for (int64_t k = 0; k < cols; k += kBlock, tile += rows * kRowWords) {
    int32_t* pairs = tile + row * kPairs;
    float step;
    const int32_t sum = is_four_bit(kind) ? Ints::quantise<4>(from + k, pairs, &step)
                                          : Ints::quantise<2>(from + k, pairs, &step);
    const float times = static_cast<float>(sum) * step;
    const int32_t minus = -8 * sum;
    std::memcpy(tile + rows * kPairs + row, &step, 4);
    if (kind == Kind::q4_0) std::memcpy(tile + rows * (kPairs + 1) + row, &minus, 4);
    else std::memcpy(tile + rows * (kPairs + 1) + row, &times, 4);
  }
}
