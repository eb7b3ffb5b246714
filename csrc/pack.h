// Weights packed for products: panels of as many columns as a tile has, in the order in which tiles
// read them.
#pragma once

#include "micro_kernel.h"
#include "shuffle.h"

namespace cello {
namespace CELLO_ISA {

// Elements of a packed matrix: panels of [K][kPanel], zeros beyond column N.
template <typename T>
int64_t packed_size(int64_t K, int64_t N) {
  return ceil_div(N, kPanel<T>) * kPanel<T> * K;
}

// Packs panels [panel_begin, panel_end) of w, whose element [k][n] is w[k * k_stride + n *
// n_stride], as the first K of `depth` rows.
template <typename T>
void pack(const T* w, int64_t k_stride, int64_t n_stride, int64_t K, int64_t N, int64_t panel_begin,
          int64_t panel_end, T* packed, int64_t depth) {
  constexpr int lanes = kLanes<T>;
  for (int64_t n = panel_begin * kPanel<T>; n < panel_end * kPanel<T>; n += lanes) {
    const int columns = static_cast<int>(max_of(0, min_of(lanes, N - n)));
    const T* from = w + n * n_stride;
    T* to = packed + n / kPanel<T> * kPanel<T> * depth + n % kPanel<T>;
    if (columns == lanes && n_stride == 1) {
      for (int64_t k = 0; k < K; ++k) store(to + k * kPanel<T>, load(from + k * k_stride));
    } else if (columns == lanes && k_stride == 1) {
      for (int64_t k = 0; k < K; k += lanes) {
        const int depth = static_cast<int>(min_of(lanes, K - k));
        Vec<T> block[lanes];
        if (depth == lanes) {
#pragma GCC unroll 16
          for (int j = 0; j < lanes; ++j) block[j] = load(from + j * n_stride + k);
        } else {
          for (int j = 0; j < lanes; ++j) block[j] = load_part(from + j * n_stride + k, depth);
        }
        transpose<T>(block);
        if (depth == lanes) {
#pragma GCC unroll 16
          for (int j = 0; j < lanes; ++j) store(to + (k + j) * kPanel<T>, block[j]);
        } else {
          for (int j = 0; j < depth; ++j) store(to + (k + j) * kPanel<T>, block[j]);
        }
      }
    } else {
      for (int64_t k = 0; k < K; ++k) {
        for (int j = 0; j < lanes; ++j) {
          to[k * kPanel<T> + j] = j < columns ? from[k * k_stride + j * n_stride] : T(0);
        }
      }
    }
  }
}

// One weight's part of a matrix of pairs: `columns` of w from `column` of the matrix on, which has
// N, and K rows that become rows from `row` on of the matrix's `depth` pairs of rows. Element
// [k][n] is w[k * k_stride + n * n_stride]. Where both rows of a pair come from w, or nothing else
// writes the second, whole pairs are `owned`, and pairs are written in vectors.
template <typename S>
void pack_pairs(const S* w, int64_t k_stride, int64_t n_stride, int64_t K, int64_t row,
                int64_t columns, int64_t column, int64_t N, bool owned, Pair* packed,
                int64_t depth) {
  constexpr int64_t lanes = kLanes<Pair>, width = kPanel<Pair>;
  const int64_t last = column + columns;
  for (int64_t n = column; n < last;) {
    const int64_t stop = min_of(last, (n / lanes + 1) * lanes);
    const int count = static_cast<int>(stop - n);
    const S* from = w + (n - column) * n_stride;
    Pair* to = packed + n / width * width * depth + row / 2 * width + n % width;
    const bool is_vector = owned && n % lanes == 0 && (count == lanes || stop == N);
    if (is_vector && n_stride == 1) {
      for (int64_t k = 0; k < K; k += 2) {
        const S* second = k + 1 < K ? from + (k + 1) * k_stride : nullptr;
        store(to + k / 2 * width, load_columns(from + k * k_stride, second, count));
      }
    } else if (is_vector && k_stride == 1) {
      for (int64_t k = 0; k < K; k += 2 * lanes) {
        const int numbers = static_cast<int>(min_of(2 * lanes, K - k));
        Vec<Pair> block[lanes];
#pragma GCC unroll 16
        for (int j = 0; j < lanes; ++j) {
          block[j] = j < count ? load_pairs(from + j * n_stride + k, numbers) : Vec<Pair>{};
        }
        transpose<Pair>(block);
        for (int j = 0; j < (numbers + 1) / 2; ++j) store(to + (k / 2 + j) * width, block[j]);
      }
    } else {
      for (int64_t k = 0; k < K; ++k) {
        for (int j = 0; j < count; ++j) {
          const Bfloat16 x = to_bfloat16(from[k * k_stride + j * n_stride]);
          char* half = reinterpret_cast<char*>(to + (row % 2 + k) / 2 * width + j);
          memcpy(half + (row + k) % 2 * 2, &x, 2);
        }
      }
    }
    n = stop;
  }
}

}  // namespace CELLO_ISA
}  // namespace cello
