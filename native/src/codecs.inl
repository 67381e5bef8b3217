// How each packed block becomes float weights. Included once per instruction set.
//
// `block<First, Count>(p, sink)` calls sink(k, v, w) for every column k of the block, ascending, and
// v in [0, Count): w holds lanes 8 (First + v) ... of the panel. The one-row product and the many-row
// product use the same codec, so that they multiply the same floats.

template <int N, class F, int... J>
TF_INLINE void unroll_all(const F& f, std::integer_sequence<int, J...>) {
  (f(std::integral_constant<int, J>{}), ...);
}
template <int N, class F>
TF_INLINE void unroll(const F& f) {
  unroll_all<N>(f, std::make_integer_sequence<int, N>{});
}
#define TF_LAMBDA __attribute__((always_inline))

constexpr int kVectors = kPanel / 8;

struct HalfScale {
  static constexpr int bytes = 2;
  static TF_INLINE Simd::F load(const uint8_t* p) { return Simd::load_f16(p); }
};
struct FloatScale {
  static constexpr int bytes = 4;
  static TF_INLINE Simd::F load(const uint8_t* p) {
    return Simd::load(reinterpret_cast<const float*>(p));
  }
};

// w = scale * code + min, where min is stored or (q4_0) is -8 scales. Rounded once, as when the
// product (exact in float32) and the sum are done one after the other.
template <class Scale, bool HasMin>
struct FourBit {
  static constexpr int columns = kBlock;
  static constexpr int step = kPanel * Scale::bytes * (HasMin ? 2 : 1) + kPanel * kBlock / 2;

  template <int First, int Count, class Sink>
  static TF_INLINE void block(const uint8_t* p, const Sink& sink) {
    Simd::F scale[Count], low[Count];
    unroll<Count>([&](auto v) TF_LAMBDA {
      const int lane = (First + v) * 8;
      scale[v] = Scale::load(p + lane * Scale::bytes);
      low[v] = HasMin ? Scale::load(p + (kPanel + lane) * Scale::bytes)
                      : Simd::mul(scale[v], Simd::set(-8.0f));
    });
    const uint8_t* codes = p + kPanel * Scale::bytes * (HasMin ? 2 : 1) + First * 32;
    for (int k = 0; k < kBlock; k += 8, codes += kPanel * 4) {
      Simd::I word[Count];
      unroll<Count>([&](auto v) TF_LAMBDA { word[v] = Simd::load_codes(codes + v * 32); });
      unroll<8>([&](auto j) TF_LAMBDA {
        unroll<Count>([&](auto v) TF_LAMBDA {
          sink(k + j, v, Simd::fma(Simd::nibble<j>(word[v]), scale[v], low[v]));
        });
      });
    }
  }
};

template <class Scale, int PerScale>
struct EightBit {
  static constexpr int columns = kBlock;
  static constexpr int scale_bytes = kPanel * Scale::bytes * (kBlock / PerScale);
  static constexpr int step = scale_bytes + kPanel * kBlock;

  template <int First, int Count, class Sink>
  static TF_INLINE void block(const uint8_t* p, const Sink& sink) {
    const uint8_t* codes = p + scale_bytes + First * 32;
    for (int group = 0; group < kBlock; group += PerScale, p += kPanel * Scale::bytes) {
      Simd::F scale[Count];
      unroll<Count>([&](auto v) TF_LAMBDA {
        scale[v] = Simd::mul(Scale::load(p + (First + v) * 8 * Scale::bytes), Simd::set(0x1p-24f));
      });
      for (int k = group; k < group + PerScale; k += 4, codes += kPanel * 4) {
        Simd::I word[Count];
        unroll<Count>([&](auto v) TF_LAMBDA { word[v] = Simd::load_codes(codes + v * 32); });
        unroll<4>([&](auto j) TF_LAMBDA {
          unroll<Count>([&](auto v) TF_LAMBDA {
            sink(k + j, v, Simd::mul(Simd::high_byte<j>(word[v]), scale[v]));
          });
        });
      }
    }
  }
};

template <int Bytes, Simd::F (*Load)(const uint8_t*)>
struct Dense {
  static constexpr int columns = 1;
  static constexpr int step = kPanel * Bytes;

  template <int First, int Count, class Sink>
  static TF_INLINE void block(const uint8_t* p, const Sink& sink) {
    unroll<Count>([&](auto v) TF_LAMBDA { sink(0, v, Load(p + (First + v) * 8 * Bytes)); });
  }
};

TF_INLINE Simd::F dense_f32(const uint8_t* p) { return FloatScale::load(p); }
TF_INLINE Simd::F dense_f16(const uint8_t* p) { return Simd::load_f16(p); }
TF_INLINE Simd::F dense_bf16(const uint8_t* p) { return Simd::load_bf16(p); }

// Calls f with the codec of this kind.
template <class F>
TF_INLINE void with_codec(Kind kind, const F& f) {
  switch (kind) {
    case Kind::f32: return f(Dense<4, dense_f32>{});
    case Kind::f16: return f(Dense<2, dense_f16>{});
    case Kind::bf16: return f(Dense<2, dense_bf16>{});
    case Kind::q4_0: return f(FourBit<HalfScale, false>{});
    case Kind::q4_1: return f(FourBit<HalfScale, true>{});
    case Kind::q4_k: return f(FourBit<FloatScale, true>{});
    case Kind::q5_0:
    case Kind::q8_0: return f(EightBit<HalfScale, 32>{});
    case Kind::q6_k: return f(EightBit<FloatScale, 16>{});
  }
}
