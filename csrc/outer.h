// Products that sum over many rows: gradients of weights. Threads share one by rows of the result.
#pragma once

#include "micro_kernel.h"
#include "shuffle.h"

namespace cello {
namespace CELLO_ISA {

// Blocks of `outer`: rows summed at a time, and columns of the two operands packed at a time.
// Panels for a single block of tiles are used at once, and few of them stay in the second-level
// cache.
template <typename T>
constexpr int64_t kOuterDepth = 1024 / sizeof(T);
constexpr int64_t kOuterTileColumns = kTileRows * 16;
constexpr int64_t kOuterPanelColumns = 2048;
constexpr int64_t kOuterFewPanelColumns = 256;

// Where tile i of a packed block of `depth` rows begins. Between tiles lies room for the vector
// that `Summed::copy` writes beyond a tile's last row.
template <typename T>
CELLO_INLINE int64_t tile_offset(const Heights& heights, int64_t i, int64_t depth) {
  return heights.begin(i) * depth + i * kLanes<T>;
}

// Rows that `outer` sums over: [rows][...], `stride` apart. A row of pairs is made of two of them.
template <typename T>
struct Summed {
  const Sum<T>* from;
  int64_t stride, rows;

  static constexpr int64_t kRows = kIsPair<T> ? 2 : 1;

  CELLO_INLINE Summed at(int64_t row, int64_t column) const {
    return {from + row * kRows * stride + column, stride, rows - row * kRows};
  }

  // `width` elements in whole vectors: what is written beyond them, the next row overwrites. There
  // are `readable` ones; zeros follow them.
  CELLO_INLINE void copy(int width, int64_t readable, T* to) const {
    constexpr int lanes = kLanes<T>;
    for (int j = 0; j < width; j += lanes) {
      const int64_t left = readable - j;
      if constexpr (kIsPair<T>) {
        const Sum<T>* second = rows > 1 ? from + stride + j : nullptr;
        store(to + j, left > 0
                          ? load_columns(from + j, second, static_cast<int>(min_of(left, lanes)))
                          : Vec<T>{});
      } else {
        store(to + j, left >= lanes ? load(from + j)
                      : left > 0    ? load_part(from + j, static_cast<int>(left))
                                    : Vec<T>{});
      }
    }
  }

  CELLO_INLINE void fetch() const {
    __builtin_prefetch(from);
    if constexpr (kIsPair<T>) __builtin_prefetch(from + stride);
  }
};

// Rows copied at a time: few enough that their lines are still in the cache for the next tile, and
// those of the next rows, fetched in the meantime, as well.
constexpr int64_t kCopyRows = 8;

// [depth][columns] into tiles [depth][height].
template <typename T>
void pack_tiles(int64_t depth, const Summed<T>& from, const Heights& heights, int64_t readable,
                T* to) {
  for (int64_t r0 = 0; r0 < depth; r0 += kCopyRows) {
    const int64_t r1 = min_of(depth, r0 + kCopyRows);
    for (int64_t i = 0; i < heights.count; ++i) {
      const int64_t column = heights.begin(i);
      const int height = heights.height(i);
      T* tile = to + tile_offset<T>(heights, i, depth);
      for (int64_t r = r0; r < r1; ++r) {
        from.at(r + kCopyRows, column).fetch();
        from.at(r, column).copy(height, readable - column, tile + r * height);
      }
    }
  }
}

// [depth][columns] into panels [depth][kPanel], zeros beyond the last column.
template <typename T>
void pack_panels(int64_t depth, const Summed<T>& from, int64_t columns, T* to, int64_t room) {
  for (int64_t r0 = 0; r0 < depth; r0 += kCopyRows) {
    const int64_t r1 = min_of(depth, r0 + kCopyRows);
    for (int64_t n = 0; n < columns; n += kPanel<T>) {
      for (int64_t r = r0; r < r1; ++r) {
        from.at(r + kCopyRows, n).fetch();
        from.at(r + kCopyRows, n + kLanes<T>).fetch();
        from.at(r, n).copy(kPanel<T>, columns - n, to + n * room + r * kPanel<T>);
      }
    }
  }
}

// c[j][i] (+)= tile[i][j], i < R, j < columns <= kPanel.
template <typename T, int R>
CELLO_INLINE void store_transposed(const T* tile, int columns, T* c, int64_t c_stride,
                                   bool accumulate) {
  constexpr int lanes = kLanes<T>;
  for (int j0 = 0; j0 < columns; j0 += lanes) {
#pragma GCC unroll 16
    for (int i0 = 0; i0 < R; i0 += lanes) {
      const int height = R - i0 < lanes ? R - i0 : lanes;
      Vec<T> block[lanes];
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) {
        block[i] = i < height ? load(tile + (i0 + i) * kPanel<T> + j0) : Vec<T>{};
      }
      transpose<T>(block);
      const int width = columns - j0 < lanes ? columns - j0 : lanes;
      for (int j = 0; j < width; ++j) {
        T* to = c + (j0 + j) * c_stride + i0;
        if (height == lanes) {
          store(to, accumulate ? load(to) + block[j] : block[j]);
        } else {
          store_part(to, accumulate ? load_part(to, height) + block[j] : block[j], height);
        }
      }
    }
  }
}

// One packed tile against a packed panel of `columns` columns; of C's two strides one is 1.
template <typename T, int R>
struct OuterTile {
  static __attribute__((noinline)) void run(const T* s, int64_t depth, const T* v, int columns,
                                            Sum<T>* c, int64_t c_row_stride,
                                            int64_t c_column_stride, bool accumulate) {
    if (c_column_stride != 1) {
      Sum<T> whole[R * kPanel<T>];
      if (accumulate) {
        for (int j = 0; j < columns; ++j) __builtin_prefetch(c + j * c_column_stride, 1);
      }
      tile<T, R, 2, true>({s, 0, depth}, v, 0, nullptr, whole, kPanel<T>, false);
      store_transposed<Sum<T>, R>(whole, columns, c, c_column_stride, accumulate);
    } else if (columns == kPanel<T>) {
      tile<T, R, 2, true>({s, 0, depth}, v, 0, nullptr, c, c_row_stride, accumulate);
    } else {
      last_tile<T, R, true>({s, 0, depth}, v, columns, nullptr, c, c_row_stride, accumulate);
    }
  }
};

// C[i][j] (+)= sum_r s[r][i] v[r][j], i < tile_columns, j < panel_columns.
template <typename T>
void outer_product(const Summed<T>& s, int64_t tile_columns, const Summed<T>& v,
                   int64_t panel_columns, Sum<T>* c, int64_t c_row_stride, int64_t c_column_stride,
                   bool accumulate, T* scratch) {
  const int64_t rows = ceil_div(s.rows, Summed<T>::kRows);
  const int64_t blocks = max_of(1, ceil_div(rows, kOuterDepth<T>));
  const int64_t tile_blocks = ceil_div(tile_columns, kOuterTileColumns);
  const int64_t panel_block = tile_blocks == 1 ? kOuterFewPanelColumns : kOuterPanelColumns;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t r0 = rows * block / blocks;
    const int64_t depth = rows * (block + 1) / blocks - r0;
    T* panels = scratch;
    T* tiles =
        scratch + ceil_div(min_of(panel_block, panel_columns), kPanel<T>) * kPanel<T> * depth;
    for (int64_t j0 = 0; j0 < panel_columns; j0 += panel_block) {
      const int64_t j_count = min_of(panel_block, panel_columns - j0);
      pack_panels(depth, v.at(r0, j0), j_count, panels, depth);
      for (int64_t tile_block = 0; tile_block < tile_blocks; ++tile_block) {
        const int64_t i0 = tile_columns * tile_block / tile_blocks;
        const int64_t i1 = tile_columns * (tile_block + 1) / tile_blocks;
        const Heights heights(i1 - i0, kTileRows);
        if (tile_blocks > 1 || j0 == 0) {
          pack_tiles(depth, s.at(r0, i0), heights, tile_columns - i0, tiles);
        }
        for (int64_t j = 0; j < j_count; j += kPanel<T>) {
          const int columns = static_cast<int>(min_of(kPanel<T>, j_count - j));
          for (int64_t i = 0; i < heights.count; ++i) {
            ByHeight<T, OuterTile>::run(
                heights.height(i), tiles + tile_offset<T>(heights, i, depth), depth,
                static_cast<const T*>(panels + j * depth), columns,
                c + (i0 + heights.begin(i)) * c_row_stride + (j0 + j) * c_column_stride,
                c_row_stride, c_column_stride, accumulate || block > 0);
          }
        }
      }
    }
  }
}

// Elements of the scratch memory that `outer` needs for these sizes or smaller ones.
template <typename T>
int64_t outer_scratch(int64_t rows, int64_t M, int64_t N) {
  const int64_t depth = min_of(ceil_div(rows, Summed<T>::kRows), kOuterDepth<T>);
  const int64_t larger = max_of(M, N);
  const int64_t panels = ceil_div(min_of(larger, kOuterPanelColumns), kPanel<T>);
  const int64_t tile_columns = min_of(larger, kOuterTileColumns);
  return (panels * kPanel<T> + tile_columns) * depth + (tile_columns + 2) * kLanes<T>;
}

// Whether `outer` lays its vectors along n and not along m: what the padding to whole vectors costs
// each, and about a sixteenth for turning each tile where the vectors do not lie along C.
template <typename T>
CELLO_INLINE bool is_along_n(int64_t M, int64_t N, bool lies_along_n) {
  const int64_t along_n = ceil_div(N, kLanes<T>) * kLanes<T> * M * (lies_along_n ? 16 : 17);
  const int64_t along_m = ceil_div(M, kLanes<T>) * kLanes<T> * N * (lies_along_n ? 17 : 16);
  return along_n <= along_m;
}

// C[m][n] (+)= sum_r A[r][m] B[r][n] for m in [m_begin, m_end) and all n < N. One of C's strides
// is 1. `scratch` has outer_scratch elements, best aligned to 64 bytes. For pairs A and B are
// floats, rounded on the way.
template <typename T>
void outer(int64_t rows, const Sum<T>* a, int64_t a_stride, const Sum<T>* b, int64_t b_stride,
           int64_t m_begin, int64_t m_end, int64_t N, Sum<T>* c, int64_t c_row_stride,
           int64_t c_column_stride, bool accumulate, T* scratch) {
  const int64_t M = m_end - m_begin;
  if (M <= 0 || N <= 0) return;
  const Summed<T> along_m = {a + m_begin, a_stride, rows}, along_n = {b, b_stride, rows};
  c += m_begin * c_row_stride;
  if (is_along_n<T>(M, N, c_column_stride == 1)) {
    outer_product(along_m, M, along_n, N, c, c_row_stride, c_column_stride, accumulate, scratch);
  } else {
    outer_product(along_n, N, along_m, M, c, c_column_stride, c_row_stride, accumulate, scratch);
  }
}

}  // namespace CELLO_ISA
}  // namespace cello
