// How one cached key or value row of each type becomes float lanes, and how it is written.
//
// Every type but int8 is plain storage. An int8 row is one code per value, then the row's scale as a
// float32: value = code * scale. `load` gives codes; whoever adds them up multiplies by the scale once
// (see attention.inl). A row's bytes depend on that row alone.

template <int Bytes, class Codec>
struct PlainRow {
  static constexpr bool scaled = false;
  template <class S = Simd>
  static TF_INLINE typename S::F load(const uint8_t* row, int at) {
    return Codec::template load<S>(row + at * Bytes);
  }
  static TF_INLINE Simd::F load_n(const uint8_t* row, int at, int n) {
    alignas(32) uint8_t part[8 * Bytes] = {};
    std::memcpy(part, row + at * Bytes, n * Bytes);
    return Codec::template load<Simd>(part);
  }
  static TF_INLINE void store_n(uint8_t* row, int at, Simd::F v, int n) {
    if (n >= 8) return Codec::store(row + at * Bytes, v);
    alignas(32) uint8_t part[8 * Bytes];
    Codec::store(part, v);
    std::memcpy(row + at * Bytes, part, n * Bytes);
  }
};

struct CodecF32 {
  template <class S>
  static TF_INLINE typename S::F load(const uint8_t* p) { return S::load(reinterpret_cast<const float*>(p)); }
  static TF_INLINE void store(uint8_t* p, Simd::F v) { Simd::store(reinterpret_cast<float*>(p), v); }
};
struct CodecF16 {
  template <class S>
  static TF_INLINE typename S::F load(const uint8_t* p) { return S::load_f16(p); }
  static TF_INLINE void store(uint8_t* p, Simd::F v) { Simd::store_f16(p, v); }
};
struct CodecBf16 {
  template <class S>
  static TF_INLINE typename S::F load(const uint8_t* p) { return S::load_bf16(p); }
  static TF_INLINE void store(uint8_t* p, Simd::F v) { Simd::store_bf16(p, v); }
};
struct CodecI8 {
  template <class S>
  static TF_INLINE typename S::F load(const uint8_t* p) { return S::load_i8(p); }
  static TF_INLINE void store(uint8_t* p, Simd::F v) { Simd::store_i8(p, v); }
};

using RowF32 = PlainRow<4, CodecF32>;
using RowF16 = PlainRow<2, CodecF16>;
using RowBf16 = PlainRow<2, CodecBf16>;
struct RowI8 : PlainRow<1, CodecI8> {
  static constexpr bool scaled = true;
};

template <class F>
TF_INLINE void with_kv_row(KvType type, const F& f) {
  switch (type) {
    case KvType::f32: return f(RowF32{});
    case KvType::f16: return f(RowF16{});
    case KvType::bf16: return f(RowBf16{});
    case KvType::int8: return f(RowI8{});
  }
}

// scale = largest size / 127, NaN where a value is not finite (the codes are then 0).
void store_scaled(const float* x, int n, uint8_t* to) {
  Simd::F top = Simd::zero(), broken = Simd::zero();
  for (int i = 0; i < n; i += 8) {
    const Simd::F v = Simd::load_n(x + i, n - i < 8 ? n - i : 8);
    top = Simd::max(Simd::abs(v), top);
    broken = Simd::add(broken, Simd::sub(v, v));  // NaN for infinities and NaN, else 0
  }
  const bool finite = Simd::sum(broken) == 0.0f;
  const float scale = finite ? Simd::max_lane(top) / 127.0f : __builtin_nanf("");
  const Simd::F unit = Simd::set(scale > 0.0f ? scale : 1.0f), most = Simd::set(127.0f);
  for (int i = 0; i < n; i += 8) {
    const int count = n - i < 8 ? n - i : 8;
    Simd::F v = Simd::zero();
    if (finite) {  // the limit is for scales so small that they are rounded themselves
      v = Simd::div(Simd::load_n(x + i, count), unit);
      v = Simd::round(Simd::max(Simd::min(v, most), Simd::set(-127.0f)));
    }
    RowI8::store_n(to, i, v, count);
  }
  std::memcpy(to + n, &scale, sizeof(float));
}

void store_row(KvType type, const float* x, int n, uint8_t* to) {
  if (type == KvType::int8) return store_scaled(x, n, to);
  with_kv_row(type, [&](auto row) TF_LAMBDA {
    for (int i = 0; i < n; i += 8) {
      const int count = n - i < 8 ? n - i : 8;
      decltype(row)::store_n(to, i, Simd::load_n(x + i, count), count);
    }
  });
}
