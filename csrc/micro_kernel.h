// The micro kernel of all products: a tile of a few rows and columns of the result, whose sums stay
// in registers while k goes on.
#pragma once

#include "bfloat16.h"
#include "simd.h"

namespace cello {
namespace CELLO_ISA {

// What products of T are summed in.
template <typename T>
struct SumOf {
  typedef T type;
};
template <>
struct SumOf<Pair> {
  typedef float type;
};
template <typename T>
using Sum = typename SumOf<T>::type;
template <typename T>
constexpr bool kIsPair = false;
template <>
constexpr bool kIsPair<Pair> = true;

// sum + a w; for pairs, both products of each.
template <typename T>
CELLO_INLINE Vec<T> multiply_add(Vec<T> sum, Vec<T> a, Vec<T> w) {
  return sum + a * w;
}
template <typename T>
CELLO_INLINE Vec<float> multiply_add(Vec<float> sum, Vec<Pair> a, Vec<Pair> w) {
#if defined(__AVX512BF16__)
  return (Vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)w);
#else
  const Vec<float> a_first = (Vec<float>)(a << 16), w_first = (Vec<float>)(w << 16);
  const Vec<float> a_second = (Vec<float>)(a >> 16 << 16), w_second = (Vec<float>)(w >> 16 << 16);
  return sum + a_first * w_first + a_second * w_second;
#endif
}

// Columns of a panel of a packed matrix.
template <typename T>
constexpr int kPanel = 2 * kLanes<T>;

// Rows of the largest tile: rows x 2 accumulators, the two vectors of W and one of A fill the
// registers.
#if defined(__AVX512F__)
constexpr int kTileRows = 14;
#elif defined(__aarch64__)
constexpr int kTileRows = 12;
#else
constexpr int kTileRows = 6;
#endif

// sum[R][V] += sum_k A[R][k] W[k][V * lanes]. With `packed`, A is [k][R]; otherwise its rows lie
// a_stride apart. Two vectors of W make a panel, and panels lie panel_stride apart.
template <typename T, int R, int V, bool packed>
CELLO_INLINE void add_products(const T* a, int64_t a_stride, int64_t K, const T* w,
                               int64_t panel_stride, Vec<Sum<T>> (&sum)[R][V]) {
  constexpr int lanes = kLanes<T>;
  for (int64_t k = 0; k < K; ++k) {
    Vec<T> w_k[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      w_k[v] = load(w + k * kPanel<T> + v / 2 * panel_stride + v % 2 * lanes);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec<T> a_rk = broadcast(packed ? a[k * R + r] : a[r * a_stride + k]);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[r][v] = multiply_add<T>(sum[r][v], a_rk, w_k[v]);
    }
  }
}

// Rows that are multiplied by the first K rows of a matrix, and others by the K2 rows below.
template <typename T>
struct Left {
  const T* a;
  int64_t stride, K;
  const T* a2 = nullptr;
  int64_t stride2 = 0, K2 = 0;

  CELLO_INLINE Left from_row(int64_t row) const {
    return {a + row * stride, stride, K, K2 ? a2 + row * stride2 : nullptr, stride2, K2};
  }
};

// C[R][V * lanes] (+)= bias[V * lanes] + sum_k A[R][k] W[k][V * lanes], without `bias` if it is
// null.
template <typename T, int R, int V, bool packed>
CELLO_INLINE void tile(const Left<T>& left, const T* w, int64_t panel_stride, const Sum<T>* bias,
                       Sum<T>* c, int64_t c_stride, bool accumulate) {
  constexpr int lanes = kLanes<T>;
  if (accumulate) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) __builtin_prefetch(c + r * c_stride + v * lanes, 1);
    }
  }
  Vec<Sum<T>> sum[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[r][v] = bias ? load(bias + v * lanes) : Vec<Sum<T>>{};
  }
  add_products<T, R, V, packed>(left.a, left.stride, left.K, w, panel_stride, sum);
  if (left.K2) {
    add_products<T, R, V, packed>(left.a2, left.stride2, left.K2, w + left.K * kPanel<T>,
                                  panel_stride, sum);
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      Sum<T>* to = c + r * c_stride + v * lanes;
      store(to, accumulate ? load(to) + sum[r][v] : sum[r][v]);
    }
  }
}

// to[j] (+)= from[j], j < columns.
template <typename T>
CELLO_INLINE void add_part(const T* from, int columns, T* to, bool accumulate) {
  for (int j = 0; j < columns; ++j) to[j] = accumulate ? to[j] + from[j] : from[j];
}

// The same for the `columns` < kPanel<T> columns of a matrix's last panel.
template <typename T, int R, bool packed>
CELLO_INLINE void last_tile(const Left<T>& left, const T* w, int columns, const Sum<T>* bias,
                            Sum<T>* c, int64_t c_stride, bool accumulate) {
  constexpr int lanes = kLanes<T>;
  Sum<T> whole[R * kPanel<T>];
  if (columns <= lanes) {
    tile<T, R, 1, packed>(left, w, 0, bias, whole, kPanel<T>, false);
  } else {
    tile<T, R, 2, packed>(left, w, 0, bias, whole, kPanel<T>, false);
  }
  for (int r = 0; r < R; ++r) {
    add_part(whole + r * kPanel<T>, columns, c + r * c_stride, accumulate);
  }
}

// Heights of the tiles of `rows` rows: as few as `limit` allows, and as even as can be.
struct Heights {
  int64_t count, low, higher;  // the first `higher` tiles have low + 1 rows
  CELLO_INLINE Heights(int64_t rows, int64_t limit)
      : count(ceil_div(rows, limit)), low(rows / count), higher(rows % count) {}
  CELLO_INLINE int64_t begin(int64_t i) const { return i * low + min_of(i, higher); }
  CELLO_INLINE int height(int64_t i) const { return static_cast<int>(low + (i < higher)); }
};

// Calls F<T, height>::run(arguments...), 1 <= height <= kTileRows.
template <typename T, template <typename, int> class F, int R = kTileRows>
struct ByHeight {
  template <typename... Arguments>
  static CELLO_INLINE void run(int height, Arguments... arguments) {
    if constexpr (R > 1) {
      if (height < R) return ByHeight<T, F, R - 1>::run(height, arguments...);
    }
    F<T, R>::run(arguments...);
  }
};

}  // namespace CELLO_ISA
}  // namespace cello
