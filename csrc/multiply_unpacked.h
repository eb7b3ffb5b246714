// Products of few rows with weights where they are, for packing them would cost more. Threads share
// one by ranges of outputs.
#pragma once

#include "micro_kernel.h"
#include "shuffle.h"

namespace cello {
namespace CELLO_ISA {

// How W lies where it is not packed.
template <typename T>
struct StoredAs {
  typedef T type;
};
template <>
struct StoredAs<Pair> {
  typedef Bfloat16 type;
};
template <typename T>
using Stored = typename StoredAs<T>::type;

// The last K % lanes of a row's K elements, in some lanes, and zeros in the others: from the row's
// last whole vector where there is one, as parts of vectors are slow without masks.
template <typename T>
struct Tail {
  int64_t K;
  int left;
  Mask<T> keep;

  explicit CELLO_INLINE Tail(int64_t K_) : K(K_), left(static_cast<int>(K_ % kLanes<T>)) {
    Mask<T> lane;
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; ++i) lane[i] = i;
    keep = lane >= kLanes<T> - left;
  }
  CELLO_INLINE Vec<T> of_a(const T* row) const { return of_w(row); }
  CELLO_INLINE Vec<T> of_w(const T* row) const {
    if (K < kLanes<T>) return load_part(row, left);
    const Vec<T> last = load(row + K - kLanes<T>);
    return keep ? last : Vec<T>{};
  }
};

// Rows of A have zeros up to whole vectors.
template <>
struct Tail<Pair> {
  int64_t whole;
  int left;

  explicit CELLO_INLINE Tail(int64_t K)
      : whole(K / (2 * kLanes<Pair>)*(2 * kLanes<Pair>)), left(static_cast<int>(K - whole)) {}
  CELLO_INLINE Vec<Pair> of_a(const Pair* row) const { return load(row + whole / 2); }
  CELLO_INLINE Vec<Pair> of_w(const Bfloat16* row) const { return load_pairs(row + whole, left); }
};

CELLO_INLINE Vec<float> load_stored(const float* p) { return load(p); }
CELLO_INLINE Vec<double> load_stored(const double* p) { return load(p); }
CELLO_INLINE Vec<Pair> load_stored(const Bfloat16* p) { return load_pairs(p, 2 * kLanes<Pair>); }

// sums[R][J] of whole vectors: lanes of sum_k A[r][k] W[j][k]. Fetches the J rows after these.
template <typename T, int R, int J>
CELLO_INLINE void dot_tile(const T* a, int64_t a_stride, int64_t K, const Stored<T>* w,
                           int64_t n_stride, Vec<Sum<T>> (*sums)[kLanes<T>]) {
  constexpr int each = kIsPair<T> ? 2 : 1, step = kLanes<T> * each;
  Vec<Sum<T>> sum[R][J];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) sum[r][j] = Vec<Sum<T>>{};
  }
  int64_t k = 0;
  for (; k + step <= K; k += step) {
    Vec<T> a_k[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) a_k[r] = load(a + r * a_stride + k / each);
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) {
      const Vec<T> w_j = load_stored(w + j * n_stride + k);
      __builtin_prefetch(w + (j + J) * n_stride + k);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) sum[r][j] = multiply_add<T>(sum[r][j], a_k[r], w_j);
    }
  }
  if (k < K) {
    const Tail<T> tail(K);
    Vec<T> a_k[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) a_k[r] = tail.of_a(a + r * a_stride);
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) {
      const Vec<T> w_j = tail.of_w(w + j * n_stride);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) sum[r][j] = multiply_add<T>(sum[r][j], a_k[r], w_j);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) sums[r][j] = sum[r][j];
  }
}

template <typename T, int R>
__attribute__((noinline)) void multiply_few(const T* a, int64_t a_stride, int64_t K,
                                            const Stored<T>* w, int64_t n_stride, int64_t n_begin,
                                            int64_t n_end, Sum<T>* c, int64_t c_stride,
                                            bool accumulate) {
  constexpr int lanes = kLanes<T>;
  constexpr int wanted = R == 1 ? 8 : kTileRows > 8 || R < 3 ? 4 : 2;
  constexpr int at_once = wanted < lanes ? wanted : lanes;
  for (int64_t n = n_begin; n < n_end; n += lanes) {
    const int outputs = static_cast<int>(min_of(lanes, n_end - n));
    Vec<Sum<T>> sums[R][lanes];
    int j = 0;
    for (; j + at_once <= outputs; j += at_once) {
      Vec<Sum<T>>(*to)[lanes] = reinterpret_cast<Vec<Sum<T>>(*)[lanes]>(&sums[0][j]);
      dot_tile<T, R, at_once>(a, a_stride, K, w + (n + j) * n_stride, n_stride, to);
    }
    for (; j < outputs; ++j) {
      Vec<Sum<T>>(*to)[lanes] = reinterpret_cast<Vec<Sum<T>>(*)[lanes]>(&sums[0][j]);
      dot_tile<T, R, 1>(a, a_stride, K, w + (n + j) * n_stride, n_stride, to);
    }
    for (; j < lanes; ++j) {
      for (int r = 0; r < R; ++r) sums[r][j] = Vec<Sum<T>>{};
    }
    for (int r = 0; r < R; ++r) {
      Sum<T>* to = c + r * c_stride + n;
      const Vec<Sum<T>> sum = sum_each<Sum<T>>(sums[r]);
      if (outputs == lanes) {
        store(to, accumulate ? load(to) + sum : sum);
      } else {
        store_part(to, accumulate ? load_part(to, outputs) + sum : sum, outputs);
      }
    }
  }
}

// C[r][n] (+)= sum_k A[r][k] W[n][k] for n in [n_begin, n_end), W as it is stored: for few rows,
// where packing W would cost more than the product. Rows of pairs go on with zeros to whole
// vectors.
template <typename T>
void multiply_unpacked(int64_t rows, const T* a, int64_t a_stride, int64_t K, const Stored<T>* w,
                       int64_t n_stride, int64_t n_begin, int64_t n_end, Sum<T>* c,
                       int64_t c_stride, bool accumulate) {
  for (; rows > 0; rows -= 4, a += 4 * a_stride, c += 4 * c_stride) {
    switch (rows) {
      case 1:
        multiply_few<T, 1>(a, a_stride, K, w, n_stride, n_begin, n_end, c, c_stride, accumulate);
        break;
      case 2:
        multiply_few<T, 2>(a, a_stride, K, w, n_stride, n_begin, n_end, c, c_stride, accumulate);
        break;
      case 3:
        multiply_few<T, 3>(a, a_stride, K, w, n_stride, n_begin, n_end, c, c_stride, accumulate);
        break;
      default:
        multiply_few<T, 4>(a, a_stride, K, w, n_stride, n_begin, n_end, c, c_stride, accumulate);
    }
  }
}

}  // namespace CELLO_ISA
}  // namespace cello
