// exp, tanh and sigmoid on the lanes of S, within about two units in the last place. Every lane runs the
// same operations, so a value's result does not depend on its place. NaN stays NaN.

template <class S = Simd>
TF_INLINE typename S::F exp_lanes(typename S::F x) {
  x = S::min(S::set(88.37f), S::max(S::set(-87.33f), x));
  const typename S::F n = S::round(S::mul(x, S::set(1.44269504088896341f)));
  typename S::F f = S::fma(n, S::set(-0.693359375f), x);  // ln 2 in two parts
  f = S::fma(n, S::set(2.12194440e-4f), f);
  typename S::F y = S::set(1.0f / 5040.0f);  // Taylor: |f| <= 0.347, the next term is below 6e-9
  y = S::fma(y, f, S::set(1.0f / 720.0f));
  y = S::fma(y, f, S::set(1.0f / 120.0f));
  y = S::fma(y, f, S::set(1.0f / 24.0f));
  y = S::fma(y, f, S::set(1.0f / 6.0f));
  y = S::fma(y, f, S::set(0.5f));
  y = S::fma(S::mul(y, f), f, S::add(f, S::set(1.0f)));
  return S::mul(y, S::exp2_int(n));
}

// Series below 0.4 (the quotient would lose digits there), (1 - e) / (1 + e) with e = exp(-2|x|) above.
template <class S = Simd>
TF_INLINE typename S::F tanh_lanes(typename S::F x) {
  const typename S::F size = S::abs(x), square = S::mul(x, x), one = S::set(1.0f);
  typename S::F p = S::set(21844.0f / 6081075.0f);
  p = S::fma(p, square, S::set(-1382.0f / 155925.0f));
  p = S::fma(p, square, S::set(62.0f / 2835.0f));
  p = S::fma(p, square, S::set(-17.0f / 315.0f));
  p = S::fma(p, square, S::set(2.0f / 15.0f));
  p = S::fma(p, square, S::set(-1.0f / 3.0f));
  const typename S::F small = S::fma(S::mul(p, square), x, x);
  const typename S::F e = exp_lanes<S>(S::mul(size, S::set(-2.0f)));
  const typename S::F large = S::div(S::sub(one, e), S::add(one, e));
  return S::less(size, S::set(0.4f), small, S::copy_sign(large, x));
}
