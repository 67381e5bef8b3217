// exp, tanh and sigmoid on eight lanes, within about two units in the last place. Every lane runs the
// same operations, so a value's result does not depend on its place. NaN stays NaN.

TF_INLINE Simd::F exp_lanes(Simd::F x) {
  x = Simd::min(Simd::set(88.37f), Simd::max(Simd::set(-87.33f), x));
  const Simd::F n = Simd::round(Simd::mul(x, Simd::set(1.44269504088896341f)));
  Simd::F f = Simd::fma(n, Simd::set(-0.693359375f), x);  // ln 2 in two parts
  f = Simd::fma(n, Simd::set(2.12194440e-4f), f);
  Simd::F y = Simd::set(1.0f / 5040.0f);  // Taylor: |f| <= 0.347, the next term is below 6e-9
  y = Simd::fma(y, f, Simd::set(1.0f / 720.0f));
  y = Simd::fma(y, f, Simd::set(1.0f / 120.0f));
  y = Simd::fma(y, f, Simd::set(1.0f / 24.0f));
  y = Simd::fma(y, f, Simd::set(1.0f / 6.0f));
  y = Simd::fma(y, f, Simd::set(0.5f));
  y = Simd::fma(Simd::mul(y, f), f, Simd::add(f, Simd::set(1.0f)));
  return Simd::mul(y, Simd::exp2_int(n));
}

// Series below 0.4 (the quotient would lose digits there), (1 - e) / (1 + e) with e = exp(-2|x|) above.
TF_INLINE Simd::F tanh_lanes(Simd::F x) {
  const Simd::F size = Simd::abs(x), square = Simd::mul(x, x), one = Simd::set(1.0f);
  Simd::F p = Simd::set(21844.0f / 6081075.0f);
  p = Simd::fma(p, square, Simd::set(-1382.0f / 155925.0f));
  p = Simd::fma(p, square, Simd::set(62.0f / 2835.0f));
  p = Simd::fma(p, square, Simd::set(-17.0f / 315.0f));
  p = Simd::fma(p, square, Simd::set(2.0f / 15.0f));
  p = Simd::fma(p, square, Simd::set(-1.0f / 3.0f));
  const Simd::F small = Simd::fma(Simd::mul(p, square), x, x);
  const Simd::F e = exp_lanes(Simd::mul(size, Simd::set(-2.0f)));
  const Simd::F large = Simd::div(Simd::sub(one, e), Simd::add(one, e));
  return Simd::less(size, Simd::set(0.4f), small, Simd::copy_sign(large, x));
}
