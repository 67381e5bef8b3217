// Operations on one row at a time. Included once per instruction set.

void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* y) {
  Simd::F sum[4] = {Simd::zero(), Simd::zero(), Simd::zero(), Simd::zero()};
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    unroll<4>([&](auto v) TF_LAMBDA {
      const Simd::F a = Simd::load(x + i + v * 8);
      sum[v] = Simd::fma(a, a, sum[v]);
    });
  }
  for (int64_t at = i; at < n; at += 8) {
    const Simd::F a = Simd::load_n(x + at, n - at < 8 ? static_cast<int>(n - at) : 8);
    sum[0] = Simd::fma(a, a, sum[0]);
  }
  const float squares = Simd::sum(Simd::add(Simd::add(sum[0], sum[1]), Simd::add(sum[2], sum[3])));
  const Simd::F mean = Simd::set(squares / static_cast<float>(n) + eps);
  const Simd::F factor = Simd::div(Simd::set(1.0f), Simd::sqrt(mean));
  for (i = 0; i + 8 <= n; i += 8) {
    Simd::store(y + i, Simd::mul(Simd::mul(Simd::load(x + i), factor), Simd::load(weight + i)));
  }
  if (const int left = static_cast<int>(n - i)) {
    const Simd::F a = Simd::mul(Simd::load_n(x + i, left), factor);
    Simd::store_n(y + i, Simd::mul(a, Simd::load_n(weight + i, left)), left);
  }
}

// silu(x) = x / (1 + exp(-x)); gelu_tanh(x) is the same with the exponent 2 sqrt(2/pi) (x + 0.044715 x^3).
TF_INLINE Simd::F activate(Simd::F x, bool gelu) {
  Simd::F t = x;
  if (gelu) {
    const Simd::F cubic = Simd::fma(Simd::mul(x, x), Simd::set(0.044715f), Simd::set(1.0f));
    t = Simd::mul(Simd::mul(x, cubic), Simd::set(1.5957691216057308f));
  }
  const Simd::F e = exp_lanes(Simd::sub(Simd::zero(), t));
  return Simd::div(x, Simd::add(Simd::set(1.0f), e));
}

void gated(const float* gate, const float* up, bool gelu, int64_t n, float* y) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    Simd::store(y + i, Simd::mul(activate(Simd::load(gate + i), gelu), Simd::load(up + i)));
  }
  if (const int left = static_cast<int>(n - i)) {
    const Simd::F a = activate(Simd::load_n(gate + i, left), gelu);
    Simd::store_n(y + i, Simd::mul(a, Simd::load_n(up + i, left)), left);
  }
}

int64_t largest(const float* x, int64_t n) {
  constexpr int64_t kPiece = 256;
  int64_t best = 0;
  for (int64_t begin = 0; begin < n; begin += kPiece) {
    const int64_t end = begin + kPiece < n ? begin + kPiece : n;
    Simd::F top = Simd::set(x[best]), odd = Simd::zero();
    int64_t i = begin;
    for (; i + 8 <= end; i += 8) {
      const Simd::F v = Simd::load(x + i);
      top = Simd::max(v, top);
      odd = Simd::fma(v, Simd::zero(), odd);  // anything but zero: infinities or NaN
    }
    if (i == end && Simd::sum(odd) == 0.0f && !(Simd::max_lane(top) > x[best])) continue;
    for (int64_t j = begin; j < end; ++j) {
      if (x[j] > x[best]) best = j;
      if (x[j] != x[j]) return j;
    }
  }
  return best;
}

// x := cap tanh(x / cap)
void softcap(float* x, float cap, int64_t n) {
  const Simd::F size = Simd::set(cap);
  for (int64_t i = 0; i < n; i += 8) {
    const int left = n - i < 8 ? static_cast<int>(n - i) : 8;
    Simd::store_n(x + i, Simd::mul(tanh_lanes(Simd::div(Simd::load_n(x + i, left), size)), size), left);
  }
}

void rope(float* x, const float* cos, const float* sin, int64_t half) {
  for (int64_t i = 0; i < half; i += 8) {
    const int n = half - i < 8 ? static_cast<int>(half - i) : 8;
    const Simd::F a = Simd::load_n(x + i, n), b = Simd::load_n(x + half + i, n);
    const Simd::F c = Simd::load_n(cos + i, n), s = Simd::load_n(sin + i, n);
    Simd::store_n(x + i, Simd::sub(Simd::mul(a, c), Simd::mul(b, s)), n);
    Simd::store_n(x + half + i, Simd::add(Simd::mul(b, c), Simd::mul(a, s)), n);
  }
}
