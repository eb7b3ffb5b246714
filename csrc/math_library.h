// Functions of the C library, element by element, for what is too rare to have vector code.
#pragma once

#include "math_vector.h"

namespace cello {
namespace CELLO_ISA {
namespace math {

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

template <typename V>
CELLO_INLINE V atan(V x) {
  return lane_by_lane(x, [](auto a) { return __builtin_atan(a); });
}

template <typename V>
CELLO_INLINE V asinh(V x) {
  return lane_by_lane(x, [](auto a) { return __builtin_asinh(a); });
}

template <typename V>
CELLO_INLINE V acosh(V x) {
  return lane_by_lane(x, [](auto a) { return __builtin_acosh(a); });
}

template <typename V>
CELLO_INLINE V erfc(V x) {
  return lane_by_lane(x, [](auto a) { return __builtin_erfc(a); });
}

template <typename V>
CELLO_INLINE V atan2(V y, V x) {
  return lane_by_lane(y, x, [](auto a, auto b) { return __builtin_atan2(a, b); });
}

template <typename V>
CELLO_INLINE V hypot(V x, V y) {
  return lane_by_lane(x, y, [](auto a, auto b) { return __builtin_hypot(a, b); });
}

// The rest of a division that has the sign of what is divided.
template <typename V>
CELLO_INLINE V fmod(V x, V y) {
  return lane_by_lane(x, y, [](auto a, auto b) { return __builtin_fmod(a, b); });
}

// The rest of a division that has the sign of the divisor.
inline double rest_of(double x, double y) {
  const double rest = __builtin_fmod(x, y);
  return rest != 0 && (y < 0) != (rest < 0) ? rest + y : rest;
}

template <typename V>
CELLO_INLINE V remainder(V x, V y) {
  return lane_by_lane(x, y, [](auto a, auto b) { return rest_of(a, b); });
}

// The quotient rounded down, of the division that `remainder` is the rest of.
template <typename T>
inline T quotient_of(T x, T y) {
  if (y == 0) return x / y;
  const T rest = static_cast<T>(__builtin_fmod(x, y));
  T quotient = (x - rest) / y;
  if (rest != 0 && (y < 0) != (rest < 0)) quotient -= 1;
  if (quotient == 0) return __builtin_copysign(T(0), x / y);
  const T whole = static_cast<T>(__builtin_floor(quotient));
  return quotient - whole > T(0.5) ? whole + 1 : whole;
}

template <typename V>
CELLO_INLINE V floor_divide(V x, V y) {
  return lane_by_lane(x, y, [](auto a, auto b) { return quotient_of(a, b); });
}

}  // namespace math
}  // namespace CELLO_ISA
}  // namespace cello
