// Elementary functions on vectors. Each errs by at most about 2 units in the last place, denormals
// included, and treats infinities, NaN and signed zeros as torch does; tests/math_test.cc measures
// it.
//
// Polynomials marked "own fit" are minimax (Remez) fits made for this file at 300 bits and rounded
// to the type. Nothing here relies on a fused multiply-add, and contracting any product into one
// does no harm: products that have to be exact are, because their factors have few bits.
//
// Include it as "math.h" and keep this folder off the path searched for <math.h>.
#pragma once

#include "simd.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace cello {
namespace CELLO_ISA {

namespace math {

template <typename T>
struct BitsOf;

template <>
struct BitsOf<float> {
  typedef uint32_t type __attribute__((vector_size(CELLO_VECTOR_BYTES)));
};

template <>
struct BitsOf<double> {
  typedef uint64_t type __attribute__((vector_size(CELLO_VECTOR_BYTES)));
};

// Unsigned, so that sums and shifts may wrap.
template <typename T>
using Bits = typename BitsOf<T>::type;

float lane_of(Vec<float>);
double lane_of(Vec<double>);

// The type of a vector's elements.
template <typename V>
using Lane = decltype(lane_of(V{}));

template <typename T>
struct Num;

template <>
struct Num<float> {
  using Word = uint32_t;
  static constexpr int kMantissa = 23;
  static constexpr Word kBias = 127;
  static constexpr Word kSign = 0x80000000u;
  static constexpr Word kSqrtHalf = 0x3f3504f3u;
  static constexpr float kInf = __builtin_inff();
  static constexpr float kNan = __builtin_nanf("");
  static constexpr float kUnit = 0x1p23f;  // from here on all numbers are integers
  // x + kMagic rounds x to an integer and leaves that in the lowest bits.
  static constexpr float kMagic = 0x1.8p23f;
  static constexpr float kLog2e = 0x1.715476p+0f;
  // ln 2 in two parts, the first short enough for a product with an exponent to be exact (Cephes).
  static constexpr float kLn2High = 0x1.63p-1f;
  static constexpr float kLn2Low = -0x1.bd0106p-13f;
  static constexpr float kExpMin = -104.0f;  // exp rounds to 0 from here down
  static constexpr float kExpMax = 89.0f;    // and overflows from here up
  static constexpr float kExpm1Min = -20.0f;
  static constexpr float kTanhMax = 10.0f;  // tanh rounds to 1 from here up
  static constexpr float kTiny = 0x1p-26f;  // below, f(x) = x for the functions with f'(0) = 1
};

template <>
struct Num<double> {
  using Word = uint64_t;
  static constexpr int kMantissa = 52;
  static constexpr Word kBias = 1023;
  static constexpr Word kSign = 0x8000000000000000u;
  static constexpr Word kSqrtHalf = 0x3fe6a09e667f3bcdu;
  static constexpr double kInf = __builtin_inf();
  static constexpr double kNan = __builtin_nan("");
  static constexpr double kUnit = 0x1p52;
  static constexpr double kMagic = 0x1.8p52;
  static constexpr double kLog2e = 0x1.71547652b82fep+0;
  static constexpr double kLn2High = 0x1.62e42ffp-1;
  static constexpr double kLn2Low = -0x1.718432a1b0e26p-35;
  static constexpr double kExpMin = -746.0;
  static constexpr double kExpMax = 710.0;
  static constexpr double kExpm1Min = -40.0;
  static constexpr double kTanhMax = 20.0;
  static constexpr double kTiny = 0x1p-54;
};

// c0 + c1 x + c2 x^2 + ..., by Horner's rule in x^2, whose chain of operations is half as long.
template <typename V, typename T>
CELLO_INLINE V poly_pairs(V x, V, T c0, T c1) {
  return x * c1 + c0;
}
template <typename V, typename T>
CELLO_INLINE V poly_pairs(V x, V square, T c0, T c1, T c2) {
  return square * c2 + (x * c1 + c0);
}
template <typename V, typename T, typename... Ts>
CELLO_INLINE V poly_pairs(V x, V square, T c0, T c1, T c2, T c3, Ts... cs) {
  return poly_pairs(x, square, c2, c3, cs...) * square + (x * c1 + c0);
}
template <typename V, typename... Ts>
CELLO_INLINE V poly(V x, Ts... cs) {
  return poly_pairs(x, x * x, cs...);
}

template <typename V>
CELLO_INLINE V abs(V x) {
  using T = Lane<V>;
  return (V)((Bits<T>)x & ~Num<T>::kSign);
}

// `x`, which has no sign, with that of `y`.
template <typename V>
CELLO_INLINE V with_sign(V x, V y) {
  using T = Lane<V>;
  return (V)((Bits<T>)x | ((Bits<T>)y & Num<T>::kSign));
}

// a < b ? a : b and a > b ? a : b, which compilers do not always recognise in vectors: b if either
// is NaN.
#if CELLO_VECTOR_BYTES == 64 && defined(__AVX512F__)
// Of the 512-bit intrinsics those with a mask are called, for GCC 12 warns about an undefined
// operand inside the others.
constexpr __mmask16 kAll = 0xffff;
constexpr __mmask8 kAll8 = 0xff;
CELLO_INLINE Vec<float> lesser(Vec<float> a, Vec<float> b) {
  return (Vec<float>)_mm512_maskz_min_ps(kAll, (__m512)a, (__m512)b);
}
CELLO_INLINE Vec<float> greater(Vec<float> a, Vec<float> b) {
  return (Vec<float>)_mm512_maskz_max_ps(kAll, (__m512)a, (__m512)b);
}
CELLO_INLINE Vec<double> lesser(Vec<double> a, Vec<double> b) {
  return (Vec<double>)_mm512_maskz_min_pd(kAll8, (__m512d)a, (__m512d)b);
}
CELLO_INLINE Vec<double> greater(Vec<double> a, Vec<double> b) {
  return (Vec<double>)_mm512_maskz_max_pd(kAll8, (__m512d)a, (__m512d)b);
}
#elif CELLO_VECTOR_BYTES == 32 && defined(__AVX2__)
CELLO_INLINE Vec<float> lesser(Vec<float> a, Vec<float> b) {
  return (Vec<float>)_mm256_min_ps((__m256)a, (__m256)b);
}
CELLO_INLINE Vec<float> greater(Vec<float> a, Vec<float> b) {
  return (Vec<float>)_mm256_max_ps((__m256)a, (__m256)b);
}
CELLO_INLINE Vec<double> lesser(Vec<double> a, Vec<double> b) {
  return (Vec<double>)_mm256_min_pd((__m256d)a, (__m256d)b);
}
CELLO_INLINE Vec<double> greater(Vec<double> a, Vec<double> b) {
  return (Vec<double>)_mm256_max_pd((__m256d)a, (__m256d)b);
}
#elif CELLO_VECTOR_BYTES == 16 && defined(__SSE2__)
CELLO_INLINE Vec<float> lesser(Vec<float> a, Vec<float> b) {
  return (Vec<float>)_mm_min_ps((__m128)a, (__m128)b);
}
CELLO_INLINE Vec<float> greater(Vec<float> a, Vec<float> b) {
  return (Vec<float>)_mm_max_ps((__m128)a, (__m128)b);
}
CELLO_INLINE Vec<double> lesser(Vec<double> a, Vec<double> b) {
  return (Vec<double>)_mm_min_pd((__m128d)a, (__m128d)b);
}
CELLO_INLINE Vec<double> greater(Vec<double> a, Vec<double> b) {
  return (Vec<double>)_mm_max_pd((__m128d)a, (__m128d)b);
}
#else
template <typename V>
CELLO_INLINE V lesser(V a, V b) {
  return a < b ? a : b;
}
template <typename V>
CELLO_INLINE V greater(V a, V b) {
  return a > b ? a : b;
}
#endif

// These two let NaN through.
template <typename V, typename T = Lane<V>>
CELLO_INLINE V at_most(V x, T bound) {
  return lesser(broadcast<T>(bound), x);
}
template <typename V, typename T = Lane<V>>
CELLO_INLINE V at_least(V x, T bound) {
  return greater(broadcast<T>(bound), x);
}

// Whether a mask, or any vector as wide, has a bit set.
template <typename M>
CELLO_INLINE bool any(M mask) {
#if CELLO_VECTOR_BYTES == 64 && defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif CELLO_VECTOR_BYTES == 32 && defined(__AVX2__)
  return _mm256_movemask_epi8((__m256i)mask) != 0;
#elif CELLO_VECTOR_BYTES == 16 && defined(__SSE2__)
  return _mm_movemask_epi8((__m128i)mask) != 0;
#else
  const Bits<double> words = (Bits<double>)mask;
  uint64_t all = 0;
  for (int i = 0; i < kLanes<double>; ++i) all |= words[i];
  return all != 0;
#endif
}

enum Rounding { kNearest = 0, kDown = 1, kUp = 2, kToZero = 3 };  // as the instructions number them

#if CELLO_VECTOR_BYTES == 64 && defined(__AVX512F__)
template <Rounding kMode>
CELLO_INLINE Vec<float> round_to(Vec<float> x) {
  return (Vec<float>)_mm512_maskz_roundscale_ps(kAll, (__m512)x, kMode | 8);
}
template <Rounding kMode>
CELLO_INLINE Vec<double> round_to(Vec<double> x) {
  return (Vec<double>)_mm512_maskz_roundscale_pd(kAll8, (__m512d)x, kMode | 8);
}
#elif CELLO_VECTOR_BYTES == 32 && defined(__AVX2__)
template <Rounding kMode>
CELLO_INLINE Vec<float> round_to(Vec<float> x) {
  return (Vec<float>)_mm256_round_ps((__m256)x, kMode | 8);
}
template <Rounding kMode>
CELLO_INLINE Vec<double> round_to(Vec<double> x) {
  return (Vec<double>)_mm256_round_pd((__m256d)x, kMode | 8);
}
#else
template <Rounding kMode, typename V>
CELLO_INLINE V round_to(V x) {
  using T = Lane<V>;
  const V a = abs(x), unit = broadcast<T>(Num<T>::kUnit), one = broadcast<T>(1);
  V r = (a + unit) - unit;
  if (kMode == kToZero) r = r > a ? r - one : r;
  r = with_sign(r, x);
  if (kMode == kDown) r = r > x ? r - one : r;
  if (kMode == kUp) r = r < x ? r + one : r;
  // The sign again, for ceil(-0.7) is -0; what has no fraction, and NaN, stays.
  return a < unit ? with_sign(abs(r), x) : x;
}
#endif

#if CELLO_VECTOR_BYTES == 64 && defined(__AVX512F__)
CELLO_INLINE Vec<float> sqrt(Vec<float> x) {
  return (Vec<float>)_mm512_maskz_sqrt_ps(kAll, (__m512)x);
}
CELLO_INLINE Vec<double> sqrt(Vec<double> x) {
  return (Vec<double>)_mm512_maskz_sqrt_pd(kAll8, (__m512d)x);
}
#elif CELLO_VECTOR_BYTES == 32 && defined(__AVX2__)
CELLO_INLINE Vec<float> sqrt(Vec<float> x) { return (Vec<float>)_mm256_sqrt_ps((__m256)x); }
CELLO_INLINE Vec<double> sqrt(Vec<double> x) { return (Vec<double>)_mm256_sqrt_pd((__m256d)x); }
#elif CELLO_VECTOR_BYTES == 16 && defined(__SSE2__)
CELLO_INLINE Vec<float> sqrt(Vec<float> x) { return (Vec<float>)_mm_sqrt_ps((__m128)x); }
CELLO_INLINE Vec<double> sqrt(Vec<double> x) { return (Vec<double>)_mm_sqrt_pd((__m128d)x); }
#else
CELLO_INLINE Vec<float> sqrt(Vec<float> x) {
  for (int i = 0; i < kLanes<float>; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
}
CELLO_INLINE Vec<double> sqrt(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = __builtin_sqrt(x[i]);
  return x;
}
#endif

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

// Functions of the C library, number by number, for what is too rare to have vector code.
template <typename V, typename F>
CELLO_INLINE V lane_by_lane(V x, const F& f) {
  for (int i = 0; i < kLanes<Lane<V>>; ++i) x[i] = static_cast<Lane<V>>(f(x[i]));
  return x;
}

template <typename V, typename F>
CELLO_INLINE V lane_by_lane(V x, V y, const F& f) {
  for (int i = 0; i < kLanes<Lane<V>>; ++i) x[i] = static_cast<Lane<V>>(f(x[i], y[i]));
  return x;
}

// The rest of a division that has the sign of the divisor.
inline double remainder(double x, double y) {
  const double rest = __builtin_fmod(x, y);
  return rest != 0 && (y < 0) != (rest < 0) ? rest + y : rest;
}

// The quotient rounded down, of the division that `remainder` is the rest of.
template <typename T>
inline T floor_divide(T x, T y) {
  if (y == 0) return x / y;
  const T rest = static_cast<T>(__builtin_fmod(x, y));
  T quotient = (x - rest) / y;
  if (rest != 0 && (y < 0) != (rest < 0)) quotient -= 1;
  if (quotient == 0) return __builtin_copysign(T(0), x / y);
  const T whole = static_cast<T>(__builtin_floor(quotient));
  return quotient - whole > T(0.5) ? whole + 1 : whole;
}

}  // namespace math

// V is Vec<float> or Vec<double> in all of them.

template <typename V>
CELLO_INLINE V vabs(V x) {
  return math::abs(x);
}

template <typename V>
CELLO_INLINE V vsqrt(V x) {
  return math::sqrt(x);
}

template <typename V>
CELLO_INLINE V vfloor(V x) {
  return math::round_to<math::kDown>(x);
}

template <typename V>
CELLO_INLINE V vceil(V x) {
  return math::round_to<math::kUp>(x);
}

// Halves go to the even neighbour.
template <typename V>
CELLO_INLINE V vround(V x) {
  return math::round_to<math::kNearest>(x);
}

template <typename V>
CELLO_INLINE V vtrunc(V x) {
  return math::round_to<math::kToZero>(x);
}

// 0 for NaN and for zeros of either sign, as torch.sign.
template <typename V>
CELLO_INLINE V vsign(V x) {
  const V zero{}, one = broadcast<math::Lane<V>>(1);
  return (x > zero ? one : zero) - (x < zero ? one : zero);
}

template <typename V>
CELLO_INLINE V vexp(V x) {
  using N = math::Num<math::Lane<V>>;
  return math::exp_bounded(math::at_least(math::at_most(x, N::kExpMax), N::kExpMin));
}

template <typename V>
CELLO_INLINE V vexpm1(V x) {
  return math::expm1(x);
}

template <typename V>
CELLO_INLINE V vlog(V x) {
  return math::log(x);
}

template <typename V>
CELLO_INLINE V vlog1p(V x) {
  return math::log1p(x);
}

template <typename V>
CELLO_INLINE V vtanh(V x) {
  return math::tanh(x);
}

template <typename V>
CELLO_INLINE V vsigmoid(V x) {
  return math::sigmoid(x);
}

template <typename V>
CELLO_INLINE V verf(V x) {
  return math::erf(x);
}

template <typename V>
CELLO_INLINE V vsin(V x) {
  return math::circular<0>(x);
}

template <typename V>
CELLO_INLINE V vcos(V x) {
  return math::circular<1>(x);
}

template <typename V>
CELLO_INLINE V vpow(V x, V y) {
  return math::pow(x, y);
}

template <typename V>
CELLO_INLINE V vatan(V x) {
  return math::lane_by_lane(x, [](auto a) { return __builtin_atan(a); });
}

template <typename V>
CELLO_INLINE V vasinh(V x) {
  return math::lane_by_lane(x, [](auto a) { return __builtin_asinh(a); });
}

template <typename V>
CELLO_INLINE V vacosh(V x) {
  return math::lane_by_lane(x, [](auto a) { return __builtin_acosh(a); });
}

template <typename V>
CELLO_INLINE V verfc(V x) {
  return math::lane_by_lane(x, [](auto a) { return __builtin_erfc(a); });
}

template <typename V>
CELLO_INLINE V vatan2(V y, V x) {
  return math::lane_by_lane(y, x, [](auto a, auto b) { return __builtin_atan2(a, b); });
}

template <typename V>
CELLO_INLINE V vhypot(V x, V y) {
  return math::lane_by_lane(x, y, [](auto a, auto b) { return __builtin_hypot(a, b); });
}

// The rest of a division that has the sign of what is divided.
template <typename V>
CELLO_INLINE V vfmod(V x, V y) {
  return math::lane_by_lane(x, y, [](auto a, auto b) { return __builtin_fmod(a, b); });
}

template <typename V>
CELLO_INLINE V vremainder(V x, V y) {
  return math::lane_by_lane(x, y, [](auto a, auto b) { return math::remainder(a, b); });
}

template <typename V>
CELLO_INLINE V vfloor_divide(V x, V y) {
  return math::lane_by_lane(x, y, [](auto a, auto b) { return math::floor_divide(a, b); });
}

// NaN if either is.
template <typename V>
CELLO_INLINE V vmax(V x, V y) {
  return x != x ? x : math::greater(x, y);
}

template <typename V>
CELLO_INLINE V vmin(V x, V y) {
  return x != x ? x : math::lesser(x, y);
}

}  // namespace CELLO_ISA
}  // namespace cello
