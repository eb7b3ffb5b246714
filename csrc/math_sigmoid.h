// Functions with an S-shaped curve: tanh, sigmoid, erf.
#pragma once

#include "math_exp.h"

namespace cello {
namespace CELLO_ISA {
namespace math {

// (tanh(x) - x) / x^3 in z = x^2 for |x| <= 0.35, own fits for the relative error of tanh: 2^-29.0
// and 2^-59.4.
CELLO_INLINE Vec<float> tanh_small(Vec<float> z) {
  return poly(z, -0x1.55554ep-2f, 0x1.110bfp-3f, -0x1.b81ap-5f, 0x1.3e3ce2p-6f);
}
CELLO_INLINE Vec<double> tanh_small(Vec<double> z) {
  return poly(z, -0x1.5555555555553p-2, 0x1.1111111110b82p-3, -0x1.ba1ba1b97e195p-5,
              0x1.664f483e51a0bp-6, -0x1.226e24875af6bp-7, 0x1.d6cecc61644cap-9,
              -0x1.7d2cf8ddbc436p-10, 0x1.2eb4598850019p-11, -0x1.89a7f3aa17033p-13);
}

// With t = expm1(2 |x|): t / (t + 2), where errors of t largely cancel unless t is small.
template <typename V>
CELLO_INLINE V tanh(V x) {
  using T = Lane<V>;
  using N = Num<T>;
  const V a = at_most(abs(x), N::kTanhMax);
  const Reduced<V> b = reduce<(int)N::kBias>(a + a);
  const V s = power_of_2(b.magic);
  const V t = s * (b.r * b.r * exp_q(b.r) + b.r) + (s - T(1));
  const V z = a * a;
  const V small = a * z * tanh_small(z) + a;
  return with_sign(a < V{} + T(0.35) ? small : t / (t + T(2)), x);
}

// With x = k ln 2 + r and s = 2^k: s / (s + 1 + p) where exp(-r) = 1 + p.
template <typename V>
CELLO_INLINE V sigmoid(V x) {
  using T = Lane<V>;
  using N = Num<T>;
  const V a = at_least(at_most(x, 2 * N::kTanhMax), N::kExpMin);
  const V magic = a * N::kLog2e + N::kMagic, k = magic - N::kMagic;
  const V p = expm1_reduced((k * N::kLn2High - a) + k * N::kLn2Low);
  const V one = broadcast<T>(1);
  const Power<V> power = power_of(magic, k);
  const V s = power.times(one);
  // The smaller ones first, so that only the last sum's rounding counts.
  return power.times(one / (greater(s, one) + (lesser(s, one) + p)));
}

// (erf(x) - x) / x in z = x^2 for |x| <= 1, own fit: 2^-29.5.
CELLO_INLINE Vec<float> erf_small(Vec<float> z) {
  return poly(z, 0x1.06eba8p-3f, -0x1.81274p-2f, 0x1.ce2d5p-4f, -0x1.b7fe92p-6f, 0x1.542e2p-8f,
              -0x1.a50b22p-11f, 0x1.4c32d6p-14f);
}
// -log(1 - erf(x)) for 1 <= x <= 4, own fit for the relative error of erf: 2^-35.2.
CELLO_INLINE Vec<float> erf_large(Vec<float> x) {
  return poly(x, -0x1.8b3668p-13f, 0x1.212c2cp+0f, 0x1.4434f2p-1f, 0x1.bc18dap-4f, -0x1.9d0c3cp-6f,
              0x1.139a3p-8f, -0x1.cef196p-12f, 0x1.6c14c2p-16f);
}
// The same for double, own fits: 2^-55.3 and, up to 6, 2^-63.0.
CELLO_INLINE Vec<double> erf_small(Vec<double> z) {
  return poly(z, 0x1.06eba8214db69p-3, -0x1.812746b037a27p-2, 0x1.ce2f21a045b85p-4,
              -0x1.b82ce3136b072p-6, 0x1.565bcd315e875p-8, -0x1.c02dba5e75ef8p-11,
              0x1.f9a3e29f7ced2p-14, -0x1.f4e082e32c204p-17, 0x1.ba9bf5cdbcbc6p-20,
              -0x1.656439ff90c8dp-23, 0x1.1d92a2819844ap-26, -0x1.0435b3f9eb52ep-29,
              0x1.9a8d64e898b6dp-33);
}
CELLO_INLINE Vec<double> erf_large(Vec<double> x) {
  return poly(
      x, -0x1.2e3e2c45d39fcp-25, 0x1.20dd7c5f59f10p+0, 0x1.45f2b0199362cp-1, 0x1.a4fef4025d511p-4,
      -0x1.39d034928fe1dp-6, -0x1.4e75c42716a91p-13, 0x1.a894c273efeb0p-10, -0x1.03f744b5f711bp-11,
      -0x1.1ee0a3a2a2d76p-14, 0x1.2923dda019ca2p-13, -0x1.56214b8993d4cp-14, 0x1.0a736cd799937p-15,
      -0x1.3f114e87f2902p-17, 0x1.31c13659847fep-19, -0x1.daa6a49617b4fp-22, 0x1.29ec31eda35f8p-24,
      -0x1.2af76947ecce2p-27, 0x1.d566194fb485ap-31, -0x1.162fd338d38acp-34, 0x1.d4db5d05d6278p-39,
      -0x1.f585c6cef2ebcp-44, 0x1.006d66ea4eea7p-49);
}

template <typename V>
CELLO_INLINE V erf(V x) {
  using T = Lane<V>;
  const V a = abs(x), one = broadcast<T>(1);
  const V small = x * erf_small(x * x) + x;
  const V tail = erf_large(at_most(a, T(sizeof(T) == sizeof(float) ? 4 : 6)));
  const Reduced<V> b = reduce<(int)Num<T>::kBias>(-tail);
  const V s = power_of_2(b.magic);
  const V large = (one - s) - s * expm1_reduced(b.r);  // 1 - exp(-tail)
  return a < one ? small : with_sign(large, x);
}

}  // namespace math
}  // namespace CELLO_ISA
}  // namespace cello
