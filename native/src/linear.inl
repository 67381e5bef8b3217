// y = x W^T + bias over packed panels. Included once per instruction set.
//
// Each output is: per chunk of 256 columns a sum from zero in ascending order, the chunks added in
// order, then the bias. All three forms below perform exactly these operations, so a row's result does
// not depend on how many rows are computed with it.

TF_INLINE int lanes_left(const Matrix& w, int64_t at) {
  return w.rows - at < 8 ? static_cast<int>(w.rows - at) : 8;
}

// A few rows: weights go from their codes to the sums in registers. a is [k][row]. Lane vectors
// [First, First + Count) of one panel; Rows x Count running sums.
template <class Codec, int Rows, int First, int Count>
void few_rows(const Matrix& w, const float* a, const uint8_t* p, int64_t panel, float* y, int64_t y_row) {
  Simd::F total[Rows][Count];
  unroll<Rows>([&](auto r) TF_LAMBDA {
    unroll<Count>([&](auto v) TF_LAMBDA { total[r][v] = Simd::zero(); });
  });
  for (int64_t begin = 0; begin < w.cols; begin += kChunk) {
    const int64_t end = begin + kChunk < w.cols ? begin + kChunk : w.cols;
    Simd::F acc[Rows][Count];
    unroll<Rows>([&](auto r) TF_LAMBDA {
      unroll<Count>([&](auto v) TF_LAMBDA { acc[r][v] = Simd::zero(); });
    });
    for (int64_t k = begin; k < end; k += Codec::columns, p += Codec::step) {
      const float* ak = a + k * Rows;
      Codec::template block<First, Count>(p, [&](int j, int v, Simd::F weight) TF_LAMBDA {
        unroll<Rows>([&](auto r) TF_LAMBDA {
          acc[r][v] = Simd::fma(weight, Simd::set(ak[j * Rows + r]), acc[r][v]);
        });
      });
    }
    for (int r = 0; r < Rows; ++r) {
      for (int v = 0; v < Count; ++v) total[r][v] = begin ? Simd::add(total[r][v], acc[r][v]) : acc[r][v];
    }
  }
  for (int v = 0; v < Count; ++v) {
    const int64_t at = panel * kPanel + (First + v) * 8;
    if (at >= w.rows) return;
    const int n = lanes_left(w, at);
    for (int r = 0; r < Rows; ++r) {
      if (w.bias) total[r][v] = Simd::add(total[r][v], Simd::load_n(w.bias + at, n));
      Simd::store_n(y + r * y_row + at, total[r][v], n);
    }
  }
}

template <class Codec, int Rows>
void few_rows_panels(const Matrix& w, const float* a, int64_t panel0, int64_t panel1, float* y,
                     int64_t y_row) {
  for (int64_t panel = panel0; panel < panel1; ++panel) {
    const uint8_t* p = w.data + panel * panel_bytes(w.kind, w.cols);
    if constexpr (Rows <= 2) {
      few_rows<Codec, Rows, 0, 4>(w, a, p, panel, y, y_row);
    } else {  // as many sums as registers hold
      few_rows<Codec, Rows, 0, 2>(w, a, p, panel, y, y_row);
      few_rows<Codec, Rows, 2, 2>(w, a, p, panel, y, y_row);
    }
  }
}

// Many rows: 16 columns of weights are unpacked once per chunk and stay in the first-level cache while
// all rows pass. Rows x 16 outputs: c = or += a b, with the bias after the last chunk.
template <int Rows>
void tile_kernel(const float* a, const float* b, int64_t depth, float* c, int64_t c_row, bool first,
                 const float* bias) {
  Simd::F acc[Rows][2];
  unroll<Rows>([&](auto r) TF_LAMBDA {
    acc[r][0] = acc[r][1] = Simd::zero();
    __builtin_prefetch(c + r * c_row, 1);
  });
  for (int64_t k = 0; k < depth; ++k, a += Rows, b += 16) {
    const Simd::F b0 = Simd::load(b), b1 = Simd::load(b + 8);
    unroll<Rows>([&](auto r) TF_LAMBDA {
      const Simd::F ar = Simd::set(a[r]);
      acc[r][0] = Simd::fma(b0, ar, acc[r][0]);
      acc[r][1] = Simd::fma(b1, ar, acc[r][1]);
    });
  }
  unroll<Rows>([&](auto r) TF_LAMBDA {
    for (int v = 0; v < 2; ++v) {
      float* out = c + r * c_row + v * 8;
      Simd::F sum = first ? acc[r][v] : Simd::add(Simd::load(out), acc[r][v]);
      if (bias) sum = Simd::add(sum, Simd::load(bias + v * 8));
      Simd::store(out, sum);
    }
  });
}

using TileKernel = void (*)(const float*, const float*, int64_t, float*, int64_t, bool, const float*);

TF_INLINE TileKernel tile_kernel_for(int rows) {
  TileKernel kernel = nullptr;
  unroll<Simd::tile_rows>([&](auto less) TF_LAMBDA {
    if (rows == less + 1) kernel = tile_kernel<less + 1>;
  });
  return kernel;
}

// Where fewer than 16 outputs are left: through a small buffer, the same additions.
TF_INLINE void narrow_tile(TileKernel kernel, const float* a, const float* b, int64_t depth, int rows,
                           int64_t columns, float* c, int64_t c_row, bool first, const float* bias,
                           float* buffer) {
  kernel(a, b, depth, buffer, 16, true, nullptr);
  for (int r = 0; r < rows; ++r) {
    for (int64_t o = 0; o < columns; ++o) {
      float& out = c[r * c_row + o];
      out = first ? buffer[r * 16 + o] : out + buffer[r * 16 + o];
      if (bias) out += bias[o];
    }
  }
}

template <class Codec, int First>
void unpack_chunk(const uint8_t* p, int64_t depth, float* scratch) {
  for (int64_t k = 0; k < depth; k += Codec::columns, p += Codec::step) {
    float* row = scratch + k * 16;
    Codec::template block<First, 2>(p, [&](int j, int v, Simd::F weight) TF_LAMBDA {
      Simd::store(row + j * 16 + v * 8, weight);
    });
  }
}

template <class Codec>
void many_rows(const Matrix& w, const float* a, int64_t n, int64_t panel0, int64_t panel1, float* y,
               int64_t y_row, float* scratch) {
  const int64_t tiles = (n + Simd::tile_rows - 1) / Simd::tile_rows;
  float* buffer = scratch + kChunk * 16;
  for (int64_t begin = 0; begin < w.cols; begin += kChunk) {
    const int64_t depth = begin + kChunk < w.cols ? kChunk : w.cols - begin;
    const bool first = begin == 0, last = begin + depth == w.cols;
    for (int64_t at = panel0 * kPanel; at < panel1 * kPanel && at < w.rows; at += 16) {
      const uint8_t* p = w.data + at / kPanel * panel_bytes(w.kind, w.cols) +
                         begin / Codec::columns * Codec::step;
      if (at % kPanel) unpack_chunk<Codec, 2>(p, depth, scratch);
      else unpack_chunk<Codec, 0>(p, depth, scratch);
      const float* bias = last && w.bias ? w.bias + at : nullptr;
      for (int64_t t = 0; t < tiles; ++t) {
        const TileRange tile = tile_of(n, Simd::tile_rows, t);
        const float* at_a = a + tile.begin * w.cols + begin * tile.rows;
        float* c = y + tile.begin * y_row + at;
        const TileKernel kernel = tile_kernel_for(tile.rows);
        if (at + 16 <= w.rows) kernel(at_a, scratch, depth, c, y_row, first, bias);
        else narrow_tile(kernel, at_a, scratch, depth, tile.rows, w.rows - at, c, y_row, first, bias, buffer);
      }
    }
  }
}

// a holds the rows' tiles; for one row that is the row itself.
void linear(const Matrix& w, const float* a, int64_t n, int64_t panel0, int64_t panel1, float* y,
            int64_t y_row, float* scratch) {
  with_codec(w.kind, [&](auto codec) {
    using Codec = decltype(codec);
    if (n > Simd::few_rows) return many_rows<Codec>(w, a, n, panel0, panel1, y, y_row, scratch);
    unroll<Simd::few_rows>([&](auto less) TF_LAMBDA {
      if (n == less + 1) few_rows_panels<Codec, less + 1>(w, a, panel0, panel1, y, y_row);
    });
  });
}
