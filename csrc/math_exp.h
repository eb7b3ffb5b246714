// Exponentials and logarithms.
#pragma once

#include "math_vector.h"

namespace cello {
namespace CELLO_ISA {
namespace math {

// x = k ln 2 + r with |r| <= ln 2 / 2. `magic` holds k + kOffset in its lowest bits.
template <typename V>
struct Reduced {
  V r, k, magic;
};

template <int kOffset, typename V>
CELLO_INLINE Reduced<V> reduce(V x) {
  using N = Num<Lane<V>>;
  constexpr Lane<V> kMagic = N::kMagic + kOffset;
  const V magic = x * N::kLog2e + kMagic;
  const V k = magic - kMagic;
  return {(x - k * N::kLn2High) - k * N::kLn2Low, k, magic};
}

// 2^k, where `magic` holds k + bias and that is a normal number's exponent.
template <typename V>
CELLO_INLINE V power_of_2(V magic) {
  using T = Lane<V>;
  return (V)((Bits<T>)magic << Num<T>::kMantissa);
}

// Multiplies by 2^k where 2^k may be no normal number, and rounds a denormal result once.
#if CELLO_VECTOR_BYTES == 64 && defined(__AVX512F__)
template <typename V>
struct Power {
  V k;

  CELLO_INLINE V times(V x) const {
    if constexpr (sizeof(Lane<V>) == sizeof(float)) {
      return (V)_mm512_maskz_scalef_ps(kAll, (__m512)x, (__m512)k);
    } else {
      return (V)_mm512_maskz_scalef_pd(kAll8, (__m512d)x, (__m512d)k);
    }
  }
};

template <typename V>
CELLO_INLINE Power<V> power_of(V, V k) {
  return {k};
}
#else
template <typename V>
struct Power {
  V first, second;  // each a normal number; the first is about as far from 1 as the second

  CELLO_INLINE V times(V x) const { return x * first * second; }
};

template <typename V>
CELLO_INLINE Power<V> power_of(V magic, V) {
  using T = Lane<V>;
  using N = Num<T>;
  const V zero = broadcast<T>(N::kMagic);
  const Bits<T> biased = ((Bits<T>)magic - (Bits<T>)zero) + 2 * N::kBias;
  const Bits<T> first = biased >> 1, second = biased - first;
  return {(V)(first << N::kMantissa), (V)(second << N::kMantissa)};
}
#endif

// exp(r) = 1 + r + r^2 q(r) for |r| <= ln 2 / 2. Own fit for the relative error of expm1: 2^-25.9.
CELLO_INLINE Vec<float> exp_q(Vec<float> r) {
  return poly(r, 0.5f, 0x1.5554bp-3f, 0x1.555486p-5f, 0x1.122834p-7f, 0x1.6d997cp-10f);
}
// The same with one term more, own fit: 2^-28.7. expm1, sigmoid and erf need it.
CELLO_INLINE Vec<float> expm1_q(Vec<float> r) {
  return poly(r, 0.5f, 0x1.555556p-3f, 0x1.5554aep-5f, 0x1.11109p-7f, 0x1.6d74cap-10f,
              0x1.a1a18ap-13f);
}
// Own fit: 2^-60.7.
CELLO_INLINE Vec<double> expm1_q(Vec<double> r) {
  return poly(r, 0.5, 0x1.5555555555559p-3, 0x1.555555555555ap-5, 0x1.111111110f699p-7,
              0x1.6c16c16c1446fp-10, 0x1.a01a01afeeedfp-13, 0x1.a01a01b0b1dfcp-16,
              0x1.71ddf8386c5e5p-19, 0x1.27e4c5a600459p-22, 0x1.af5ef28b63cc5p-26,
              0x1.1f95618e5a6d6p-29);
}
CELLO_INLINE Vec<double> exp_q(Vec<double> r) { return expm1_q(r); }

template <typename V>
CELLO_INLINE V expm1_reduced(V r) {
  return r * r * expm1_q(r) + r;
}

// exp(x) for kExpMin <= x <= kExpMax.
template <typename V>
CELLO_INLINE V exp_bounded(V x) {
  using T = Lane<V>;
  const Reduced<V> a = reduce<0>(x);
  return power_of(a.magic, a.k).times((exp_q(a.r) * a.r + T(1)) * a.r + T(1));
}

template <typename V>
CELLO_INLINE V exp(V x) {
  using N = Num<Lane<V>>;
  return exp_bounded(at_least(at_most(x, N::kExpMax), N::kExpMin));
}

// log(2^k (1 + f)) for sqrt(1/2) <= 1 + f <= sqrt(2).
CELLO_INLINE Vec<float> log_sum(Vec<float> f, Vec<float> k) {
  using N = Num<float>;
  // (log(1 + f) - f + f^2/2) / f^3, own fit for the relative error of the whole: 2^-28.7.
  const Vec<float> p =
      poly(f, 0x1.555546p-2f, -0x1.00009cp-2f, 0x1.99a66ap-3f, -0x1.551d56p-3f, 0x1.22e048p-3f,
           -0x1.021c1ap-3f, 0x1.f3ef6ep-4f, -0x1.b43cdep-4f, 0x1.8b0c02p-5f);
  const Vec<float> square = f * f;
  const Vec<float> low = (k * N::kLn2Low + square * f * p) - 0.5f * square;
  return k * N::kLn2High + (f + low);
}

// As fdlibm's e_log.c arranges it, in s = f / (2 + f): log(1 + f) = f - f^2/2 + s (f^2/2 + R(s^2)).
CELLO_INLINE Vec<double> log_sum(Vec<double> f, Vec<double> k) {
  using N = Num<double>;
  const Vec<double> s = f / (f + 2.0), z = s * s, half = 0.5 * f * f;
  // ((log(1 + s) - log(1 - s)) / s - 2) / s^2, own fit: 2^-58.5.
  const Vec<double> r =
      poly(z, 0x1.5555555555592p-1, 0x1.999999997ff19p-2, 0x1.24924941e1ad7p-2,
           0x1.c71c5213ba3f6p-3, 0x1.74663d1c6cbdcp-3, 0x1.39a1e28b647a8p-3, 0x1.2f0406b05926fp-3);
  return k * N::kLn2High - ((half - (s * (half + z * r) + k * N::kLn2Low)) - f);
}

// A positive normal x as 2^k m with sqrt(1/2) <= m < sqrt(2).
template <typename V>
struct Split {
  V m, k;
  Bits<Lane<V>> biased;  // k + bias
};

template <typename V>
CELLO_INLINE Split<V> split(V x) {
  using T = Lane<V>;
  using N = Num<T>;
  constexpr typename N::Word kOne = N::kBias << N::kMantissa;
  constexpr typename N::Word kFraction = (typename N::Word(1) << N::kMantissa) - 1;
  const Bits<T> shifted = (Bits<T>)x + (kOne - N::kSqrtHalf);
  const Bits<T> biased = shifted >> N::kMantissa;
  const V m = (V)((shifted & kFraction) + N::kSqrtHalf);
  // An integer below 2^kMantissa becomes a number of the type under the exponent of kUnit.
  const V unit = broadcast<T>(N::kUnit);
  const V k = (V)(biased | (Bits<T>)unit) - (N::kUnit + T(N::kBias));
  return {m, k, biased};
}

template <typename V>
CELLO_INLINE V log(V x) {
  using T = Lane<V>;
  using N = Num<T>;
  const V zero{}, inf = broadcast<T>(N::kInf), nan = broadcast<T>(N::kNan);
  const T smallest = sizeof(T) == 4 ? T(0x1p-126) : T(0x1p-1022);  // normal number
  const Mask<T> denormal = x < zero + smallest;
  const Split<V> a = split(denormal ? x * N::kUnit : x);
  const V k = denormal ? a.k - T(N::kMantissa) : a.k;
  V y = log_sum(a.m - T(1), k);
  y = x < inf ? y : x;
  y = x < zero ? nan : y;
  return x == zero ? -inf : y;
}

template <typename V>
CELLO_INLINE V log1p(V x) {
  using T = Lane<V>;
  using N = Num<T>;
  const V one = broadcast<T>(1), inf = broadcast<T>(N::kInf), nan = broadcast<T>(N::kNan);
  const V zero{};
  // From 2^60 on everything is scaled by 2^-64, so that 2^-k below stays normal.
  const Mask<T> big = x > zero + T(0x1p60);
  const V scaled = big ? x * T(0x1p-64) : x, unit = big ? one * T(0x1p-64) : one;
  const Split<V> a = split(scaled + unit);
  const V down = (V)((2 * N::kBias - a.biased) << N::kMantissa);  // 2^-k
  // (1 + x) 2^-k - 1 from the x given, whatever 1 + x has been rounded to.
  const V f = scaled * down + (unit * down - one);
  V y = log_sum(f, big ? a.k + T(64) : a.k);
  y = ((x == inf) | (x == zero)) ? x : y;
  y = x < -one ? nan : y;
  return x == -one ? -inf : y;
}

template <typename V>
CELLO_INLINE V expm1(V x) {
  using T = Lane<V>;
  using N = Num<T>;
  const Reduced<V> a = reduce<(int)N::kBias - 1>(at_least(at_most(x, N::kExpMax), N::kExpm1Min));
  // 2^(k-1), for 2^k may be beyond the largest number where the result is not.
  const V s = power_of_2(a.magic);
  const V y = s * expm1_reduced(a.r) + (s - T(0.5));
  return abs(x) < V{} + N::kTiny ? x : y + y;
}

}  // namespace math
}  // namespace CELLO_ISA
}  // namespace cello
