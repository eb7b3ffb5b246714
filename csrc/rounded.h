// Products of floats that are rounded to bfloat16 on the way, with sums in float32: on the vector
// unit or, where there is one, on the matrix unit. Without either there are none, and products with
// weights in bfloat16 are products in float32.
#pragma once

#include "product.h"
#include "tiles.h"

namespace cello {
namespace CELLO_ISA {

#if defined(__AVX512BF16__)
constexpr bool kMultipliesBfloat16 = true;
#else
constexpr bool kMultipliesBfloat16 = false;
#endif

// Whether products of T with weights in bfloat16 are products in bfloat16.
template <typename T>
constexpr bool kMayRound = kMultipliesBfloat16 && sizeof(T) == sizeof(float);

// The numbers of a row are rounded up to a multiple of this, with zeros.
#if defined(__AMX_BF16__)
constexpr int64_t kDepthUnit = 2 * kUnitPairs;
#else
constexpr int64_t kDepthUnit = 2;
#endif

CELLO_INLINE int64_t padded_depth(int64_t K) { return ceil_div(K, kDepthUnit) * kDepthUnit; }

// A row of A as pairs, with the second part behind the first. Rows that are a power of two apart
// share sets of the cache.
CELLO_INLINE int64_t rounded_stride(int64_t K, int64_t K2) {
  const int64_t pairs = ceil_div(padded_depth(K) + padded_depth(K2), 32) * 16;
  return pairs % 256 ? pairs : pairs + 16;
}

// Rows rounded at a time.
CELLO_INLINE int64_t rounded_rows(int64_t stride) {
  return max_of(8 * kTileRows, kRowBlockBytes / (stride * 4));
}

// Pairs of scratch memory for so many rows of K + K2 numbers.
CELLO_INLINE int64_t rounded_scratch(int64_t rows, int64_t K, int64_t K2) {
  const int64_t stride = rounded_stride(K, K2);
  return min_of(rows, rounded_rows(stride)) * stride;
}

// As `multiply`, of pairs; `depth` counts numbers.
inline void multiply_rounded(int64_t rows, const Left<float>& left, const Pair* packed,
                             int64_t depth, int64_t N, const float* bias, int64_t panel_begin,
                             int64_t panel_end, float* c, int64_t c_stride, bool accumulate,
                             int direction, Pair* scratch) {
  if (rows <= 0 || panel_begin >= panel_end) return;
  const int64_t first = padded_depth(left.K) / 2, second = padded_depth(left.K2) / 2;
  const int64_t stride = rounded_stride(left.K, left.K2), block = rounded_rows(stride);
  for (int64_t r = 0; r < rows; r += block) {
    const int64_t count = min_of(block, rows - r);
    round_rows(count, left.a + r * left.stride, left.stride, left.K, scratch, stride, first);
    if (left.K2) {
      round_rows(count, left.a2 + r * left.stride2, left.stride2, left.K2, scratch + first, stride,
                 second);
    }
#if defined(__AMX_BF16__)
    multiply_tiles<AmxTiles>(count, scratch, stride, first + second, packed, depth / 2, N, bias,
                             panel_begin, panel_end, c + r * c_stride, c_stride, accumulate,
                             direction);
#else
    multiply<Pair>(count, {scratch, stride, first + second}, packed, depth / 2, N, bias,
                   panel_begin, panel_end, c + r * c_stride, c_stride, accumulate, direction);
#endif
  }
}

// As `multiply_unpacked`, for no more rows than `rounded_rows` has.
inline void multiply_unpacked_rounded(int64_t rows, const float* a, int64_t a_stride, int64_t K,
                                      const Bfloat16* w, int64_t n_stride, int64_t n_begin,
                                      int64_t n_end, float* c, int64_t c_stride, Pair* scratch) {
  const int64_t stride = rounded_stride(K, 0);
  round_rows(rows, a, a_stride, K, scratch, stride, ceil_div(K, 32) * 16);
  multiply_unpacked<Pair>(rows, scratch, stride, K, w, n_stride, n_begin, n_end, c, c_stride, true);
}

inline int64_t outer_rounded_scratch(int64_t rows, int64_t M, int64_t N) {
#if defined(__AMX_BF16__)
  return outer_tiles_scratch(rows, M, N);
#else
  return outer_scratch<Pair>(rows, M, N);
#endif
}

// As `outer`.
inline void outer_rounded(int64_t rows, const float* a, int64_t a_stride, const float* b,
                          int64_t b_stride, int64_t m_begin, int64_t m_end, int64_t N, float* c,
                          int64_t c_row_stride, int64_t c_column_stride, bool accumulate,
                          Pair* scratch) {
#if defined(__AMX_BF16__)
  const int64_t M = m_end - m_begin;
  if (M <= 0 || N <= 0) return;
  const Summed<Pair> along_m = {a + m_begin, a_stride, rows}, along_n = {b, b_stride, rows};
  c += m_begin * c_row_stride;
  if (c_column_stride == 1) {
    outer_tiles<AmxTiles>(along_m, M, along_n, N, c, c_row_stride, accumulate, scratch);
  } else {
    outer_tiles<AmxTiles>(along_n, N, along_m, M, c, c_column_stride, accumulate, scratch);
  }
#else
  outer<Pair>(rows, a, a_stride, b, b_stride, m_begin, m_end, N, c, c_row_stride, c_column_stride,
              accumulate, scratch);
#endif
}

}  // namespace CELLO_ISA
}  // namespace cello
