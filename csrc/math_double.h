// Functions of floats that are computed in double, where plain formulas are exact enough: sines,
// cosines and powers. For doubles, sines and cosines take more care, and powers the C library.
#pragma once

#include "math_exp.h"

namespace cello {
namespace CELLO_ISA {
namespace math {

// sin r / r and cos r in r and z = r^2 for |r| <= pi/4: r + r z S(z), 1 - z/2 + z^2 C(z).
// Own fits: 2^-58.0 and 2^-64.2, and for float results 2^-37.6 and 2^-43.2.
CELLO_INLINE Vec<double> sin_s(Vec<double> z) {  // without its first term
  return poly(z, 0x1.111111110f8a4p-7, -0x1.a01a019c15b3dp-13, 0x1.71de357aab11cp-19,
              -0x1.ae5e68376cb6ap-26, 0x1.5d9382d1bbf8dp-33);
}
constexpr double kSinFirst = -0x1.5555555555549p-3;
CELLO_INLINE Vec<double> cos_c(Vec<double> z) {
  return poly(z, 0x1.555555555554cp-5, -0x1.6c16c16c1521fp-10, 0x1.a01a019cbf576p-16,
              -0x1.27e4f812a38bep-22, 0x1.1ee9f13dda159p-29, -0x1.8fb1222870f90p-37);
}
CELLO_INLINE Vec<double> sin_s_short(Vec<double> z) {
  return poly(z, -0x1.5555554cbb3bfp-3, 0x1.1111089643050p-7, -0x1.a00f9d2d61471p-13,
              0x1.6cd82cd83798fp-19);
}
CELLO_INLINE Vec<double> cos_c_short(Vec<double> z) {
  return poly(z, 0x1.5555554f53890p-5, -0x1.6c16b89d85ac3p-10, 0x1.a01122dc159d1p-16,
              -0x1.242b55565f84fp-22);
}

constexpr double kTwoOverPi = 0x1.45f306dc9c883p-1;
// pi/2 in parts of 33 bits: their products with n are exact up to n = 2^20.
constexpr double kHalfPi1 = 0x1.921fb544p+0, kHalfPi2 = 0x1.0b4611a6p-34;
constexpr double kHalfPi3 = 0x1.3198a2ep-69, kHalfPi4 = 0x1.b839a252049c1p-104;
constexpr double kHalfPi2Rest = 0x1.0b4611a626331p-34;  // all that follows the first
constexpr double kCircularMax = 0x1p20;                 // beyond, n has too many bits

// a + b = sum + rest, exactly (Knuth).
CELLO_INLINE Vec<double> two_sum(Vec<double> a, Vec<double> b, Vec<double>* rest) {
  const Vec<double> sum = a + b, back = sum - a;
  *rest = (a - (sum - back)) + (b - back);
  return sum;
}

// The value of sin or cos at n quarter turns and a rest, given both functions of the rest; kShift
// is 1 for cos.
template <int kShift>
CELLO_INLINE Vec<double> quadrant(Vec<double> magic, Vec<double> sin, Vec<double> cos) {
  const Bits<double> n = (Bits<double>)magic + (uint64_t)kShift;
  const Vec<double> y = (n & 1) != 0 ? cos : sin;
  return (Vec<double>)((Bits<double>)y ^ ((n & 2) << 62));
}

template <int kShift>
CELLO_INLINE Vec<double> circular(Vec<double> x) {
  const Vec<double> magic = x * kTwoOverPi + Num<double>::kMagic;
  const Vec<double> n = magic - Num<double>::kMagic;
  Vec<double> rest1, rest2;
  Vec<double> h = two_sum(x - n * kHalfPi1, -(n * kHalfPi2), &rest1);
  h = two_sum(h, -(n * kHalfPi3), &rest2);
  const Vec<double> tail = (rest1 + rest2) - n * kHalfPi4;
  const Vec<double> r = h + tail, low = (h - r) + tail;
  const Vec<double> z = r * r, cube = z * r, half = 0.5 * z;
  // Arranged as in fdlibm's k_sin.c and k_cos.c, so that the rest's low part counts.
  const Vec<double> sin = r - ((z * (0.5 * low - cube * sin_s(z)) - low) - cube * kSinFirst);
  const Vec<double> w = 1.0 - half;
  const Vec<double> cos = w + (((1.0 - w) - half) + (z * z * cos_c(z) - r * low));
  Vec<double> y = quadrant<kShift>(magic, sin, cos);
  const Vec<double> a = abs(x);
  if (kShift == 0) y = a < Vec<double>{} + 0x1p-27 ? x : y;
  const Mask<double> far = a > Vec<double>{} + kCircularMax;
  if (__builtin_expect(any(far), 0)) {
    for (int i = 0; i < kLanes<double>; ++i) {
      if (far[i]) y[i] = kShift == 0 ? __builtin_sin(x[i]) : __builtin_cos(x[i]);
    }
  }
  return y;
}

// Float functions computed in double, where plain formulas are exact enough.
struct Wide {
  Vec<double> low, high;
};

typedef float HalfVec __attribute__((vector_size(CELLO_VECTOR_BYTES / 2)));

CELLO_INLINE Wide widen(Vec<float> x) {
  HalfVec half[2];
  memcpy(half, &x, sizeof x);
  return {__builtin_convertvector(half[0], Vec<double>),
          __builtin_convertvector(half[1], Vec<double>)};
}

CELLO_INLINE Vec<float> narrow(Wide x) {
  const HalfVec half[2] = {__builtin_convertvector(x.low, HalfVec),
                           __builtin_convertvector(x.high, HalfVec)};
  Vec<float> y;
  memcpy(&y, half, sizeof y);
  return y;
}

template <int kShift>
CELLO_INLINE Vec<double> circular_short(Vec<double> x) {
  const Vec<double> magic = x * kTwoOverPi + Num<double>::kMagic;
  const Vec<double> n = magic - Num<double>::kMagic;
  const Vec<double> r = (x - n * kHalfPi1) - n * kHalfPi2Rest;
  const Vec<double> z = r * r;
  return quadrant<kShift>(magic, r * z * sin_s_short(z) + r,
                          (1.0 - 0.5 * z) + z * z * cos_c_short(z));
}

template <int kShift>
CELLO_INLINE Vec<float> circular(Vec<float> x) {
  const Wide wide = widen(x);
  Vec<float> y = narrow({circular_short<kShift>(wide.low), circular_short<kShift>(wide.high)});
  if (kShift == 0) y = x == Vec<float>{} ? x : y;  // for -0
  const Mask<float> far = abs(x) > Vec<float>{} + (float)kCircularMax;
  if (__builtin_expect(any(far), 0)) {
    for (int i = 0; i < kLanes<float>; ++i) {
      if (far[i]) y[i] = kShift == 0 ? __builtin_sinf(x[i]) : __builtin_cosf(x[i]);
    }
  }
  return y;
}

template <typename V>
CELLO_INLINE V sin(V x) {
  return circular<0>(x);
}

template <typename V>
CELLO_INLINE V cos(V x) {
  return circular<1>(x);
}

// x^y for x >= 0 and NaN, to float's precision; 0^0, 1^inf and the like come out as NaN.
CELLO_INLINE Vec<double> pow_short(Vec<double> x, Vec<double> y) {
  using V = Vec<double>;
  constexpr double kLn2 = 0x1.62e42fefa39efp-1;
  const V inf = broadcast<double>(Num<double>::kInf), zero{};
  const Split<V> a = split(x);
  const V f = a.m - 1.0, s = f / (f + 2.0), z = s * s;
  // The same function as in log_sum, own fit: 2^-36.6.
  const V r = poly(z, 0x1.555554fdc15d4p-1, 0x1.999a7a67384fdp-2, 0x1.2438dd5bff7cbp-2,
                   0x1.e2f5c7788f25fp-3);
  V log = a.k * kLn2 + (s * z * r + 2.0 * s);
  log = x < inf ? log : x;
  log = x == zero ? -inf : log;
  // No float lies beyond exp(+-200), and narrowing rounds to it or to infinity.
  const Reduced<V> b = reduce<1023>(at_least(at_most(y * log, 200.0), -200.0));
  // As exp_q, own fit: 2^-34.3.
  const V q = poly(b.r, 0x1.000000430ccb9p-1, 0x1.5555559859273p-3, 0x1.5554800d22d12p-5,
                   0x1.11107c669c1e7p-7, 0x1.6d96c8c8d2994p-10, 0x1.a1b8c49861611p-13);
  return power_of_2(b.magic) * ((q * b.r + 1.0) * b.r + 1.0);
}

CELLO_INLINE Vec<float> pow(Vec<float> x, Vec<float> y) {
  using V = Vec<float>;
  const V one = broadcast<float>(1), nan = broadcast<float>(Num<float>::kNan), zero{};
  const V a = abs(x);
  const Wide wx = widen(a), wy = widen(y);
  V z = narrow({pow_short(wx.low, wy.low), pow_short(wx.high, wy.high)});
  z = ((a == one) & (y == y)) ? one : z;  // (+-1)^inf too
  const V half = 0.5f * y;
  const Mask<float> whole = round_to<kToZero>(y) == y;
  const Mask<float> odd = whole & (round_to<kToZero>(half) != half);
  const Bits<float> sign = (Bits<float>)x & (Bits<float>)odd & Num<float>::kSign;
  z = (V)((Bits<float>)z ^ sign);
  z = ((x < zero) & (a < zero + Num<float>::kInf) & ~whole) ? nan : z;
  return ((x == one) | (y == zero)) ? one : z;
}

// No double pow in vectors: it needs a logarithm of twice the precision, and is rarely used.
CELLO_INLINE Vec<double> pow(Vec<double> x, Vec<double> y) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = __builtin_pow(x[i], y[i]);
  return x;
}

}  // namespace math
}  // namespace CELLO_ISA
}  // namespace cello
