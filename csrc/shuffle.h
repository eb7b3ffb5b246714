// Shuffles of vectors: transposes, and the sums of many vectors at once.
#pragma once

#include "simd.h"

namespace cello {
namespace CELLO_ISA {

template <int... I>
struct Indices {};
template <int N, int... I>
struct MakeIndices : MakeIndices<N - 1, N - 1, I...> {};
template <int... I>
struct MakeIndices<0, I...> {
  typedef Indices<I...> type;
};

// a[from] b[from] a[from + 1] b[from + 1] ...
template <typename T, int from, int... I>
CELLO_INLINE Vec<T> interleave(Vec<T> a, Vec<T> b, Indices<I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (from + I / 2 + I % 2 * kLanes<T>)...);
#else
  return __builtin_shuffle(a, b, Mask<T>{(from + I / 2 + I % 2 * kLanes<T>)...});
#endif
}

template <typename T>
CELLO_INLINE Vec<T> interleave_low(Vec<T> a, Vec<T> b) {
  return interleave<T, 0>(a, b, typename MakeIndices<kLanes<T>>::type());
}

template <typename T>
CELLO_INLINE Vec<T> interleave_high(Vec<T> a, Vec<T> b) {
  return interleave<T, kLanes<T> / 2>(a, b, typename MakeIndices<kLanes<T>>::type());
}

// v[i][j] becomes v[j][i]. Each stage moves the highest bit of the vector's index into the lane's.
template <typename T>
CELLO_INLINE void transpose(Vec<T>* v) {
  constexpr int n = kLanes<T>;
#pragma GCC unroll 4
  for (int stage = 1; stage < n; stage *= 2) {
    Vec<T> next[n];
#pragma GCC unroll 8
    for (int i = 0; i < n / 2; ++i) {
      next[2 * i] = interleave_low<T>(v[i], v[i + n / 2]);
      next[2 * i + 1] = interleave_high<T>(v[i], v[i + n / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) v[i] = next[i];
  }
}

// All lanes are what `f`, whose order does not matter, makes of the lanes of v.
template <typename T, typename F>
CELLO_INLINE Vec<T> fold_lanes(Vec<T> v, const F& f) {
#pragma GCC unroll 4
  for (int n = 1; n < kLanes<T>; n *= 2) v = f(interleave_low<T>(v, v), interleave_high<T>(v, v));
  return v;
}

// Lane i is the sum of the lanes of v[i].
template <typename T>
CELLO_INLINE Vec<T> sum_each(Vec<T>* v) {
#pragma GCC unroll 4
  for (int n = kLanes<T> / 2; n > 0; n /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) {
      v[i] = interleave_low<T>(v[i], v[i + n]) + interleave_high<T>(v[i], v[i + n]);
    }
  }
  return v[0];
}

}  // namespace CELLO_ISA
}  // namespace cello
