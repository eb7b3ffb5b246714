// What elementary functions are made of: the bits and constants of a type, polynomials, bounds,
// rounding, square roots.
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

template <typename V>
CELLO_INLINE V floor(V x) {
  return round_to<kDown>(x);
}

template <typename V>
CELLO_INLINE V ceil(V x) {
  return round_to<kUp>(x);
}

// Halves go to the even neighbour.
template <typename V>
CELLO_INLINE V round(V x) {
  return round_to<kNearest>(x);
}

template <typename V>
CELLO_INLINE V trunc(V x) {
  return round_to<kToZero>(x);
}

// 0 for NaN and for zeros of either sign, as torch.sign.
template <typename V>
CELLO_INLINE V sign(V x) {
  const V zero{}, one = broadcast<Lane<V>>(1);
  return (x > zero ? one : zero) - (x < zero ? one : zero);
}

// NaN if either is.
template <typename V>
CELLO_INLINE V max(V x, V y) {
  return x != x ? x : greater(x, y);
}

template <typename V>
CELLO_INLINE V min(V x, V y) {
  return x != x ? x : lesser(x, y);
}

}  // namespace math
}  // namespace CELLO_ISA
}  // namespace cello
