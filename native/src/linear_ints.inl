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

// One block: Rows x Count vectors of lanes from vector First on; adds to sums[row][lane].
template <class Code, int Rows, int Count>
TF_INLINE void int_block(const uint8_t* p, int first, const int32_t* x, float* sums) {
  const float* step = reinterpret_cast<const float*>(x) + Rows * kPairs;
  unroll<kPairs / Code::flush>([&](auto s) TF_LAMBDA {
    Ints::I sum[Rows][Count];
    unroll<Rows>([&](auto r) TF_LAMBDA {
      unroll<Count>([&](auto v) TF_LAMBDA {
        sum[r][v] = Code::centred ? Ints::spread(x + Rows * (kPairs + 1) + r) : Ints::zero();
      });
    });
    constexpr int words = 4 / Code::pairs;  // a turn of the loop takes four pairs
    for (int k = s * Code::flush; k < (s + 1) * Code::flush; k += 4) {
      unroll<words>([&](auto i) TF_LAMBDA {
        Ints::I word[Count];
        unroll<Count>([&](auto v) TF_LAMBDA { word[v] = Code::word(p, k / Code::pairs + i, first + v); });
        const int32_t* at = x + k + i * Code::pairs;
        unroll<Code::pairs>([&](auto j) TF_LAMBDA {
          Ints::I w[Count];
          unroll<Count>([&](auto v) TF_LAMBDA { w[v] = Code::template pair<j>(word[v]); });
          unroll<Rows>([&](auto r) TF_LAMBDA {
            const Ints::I pair = Ints::spread(at + r * kPairs + j);
            unroll<Count>([&](auto v) TF_LAMBDA { sum[r][v] = Ints::dot(sum[r][v], w[v], pair); });
          });
        });
      });
    }
    unroll<Count>([&](auto v) TF_LAMBDA {
      const Ints::F scale = Code::scale(p, s, first + v);
      const Ints::F low = Code::low(p, first + v);
      unroll<Rows>([&](auto r) TF_LAMBDA {
        float* out = sums + r * kPanel + (first + v) * Ints::lanes;
        Ints::F y = Ints::fused(Ints::to_float(sum[r][v]), Ints::mul(scale, Ints::spread(step + r)),
                                Ints::load_f32(out));
        if (Code::has_min) y = Ints::fused(low, Ints::spread(step + Rows + r), y);
        Ints::store_f32(out, y);
      });
    });
  });
}

constexpr int kAhead = 1536;  // bytes of weights asked for before they are read

// All lanes of a panel for one tile of rows. Codes are taken apart again for every tile: on these
// machines that costs less than storing them as int16 and reading those.
template <class Code, int Rows>
void int_panel(const uint8_t* p, const int32_t* x, int64_t blocks, int64_t columns, float* y, int64_t y_row,
               const float* bias) {
  constexpr int all = kPanel / Ints::lanes, count = Rows == 1 ? all : 2;
  alignas(64) float sums[Rows * kPanel] = {};
  for (int64_t b = 0; b < blocks; ++b, p += Code::step, x += Rows * kRowWords) {
    for (int ahead = 0; ahead < Code::step; ahead += 64) __builtin_prefetch(p + kAhead + ahead);
    for (int first = 0; first < all; first += count) int_block<Code, Rows, count>(p, first, x, sums);
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
        int_panel<Code, rows>(p, x + int_tile_words(tile.begin, w.cols), blocks, w.rows - at,
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
