// Products of matrices that both differ from row to row: sums of products over the innermost axis.
#pragma once

#include "block.h"
#include "shuffle.h"

namespace cello {
namespace CELLO_ISA {

// A tile of the result, whose sums stay in registers: `high` places of the outer axis, `wide`
// vectors of the middle one. An operand `a` has one number for a whole vector, `b` the same vectors
// for every place of a tile.
template <int high, int wide, typename T>
CELLO_INLINE void multiply_tile(int64_t n, int64_t rest, T* to, int64_t to_outer, const T* a,
                                int64_t a_outer, int64_t a_inner, const T* b, int64_t b_inner) {
  constexpr int64_t lanes = kLanes<T>;
  Vec<T> sums[high][wide] = {};
  for (int64_t j = 0; j < n; ++j) {
    Vec<T> right[wide];
    for (int v = 0; v < wide; ++v) {
      const T* p = b + j * b_inner + v * lanes;
      right[v] = wide > 1 || rest >= lanes ? load(p) : load_part(p, static_cast<int>(rest));
    }
    for (int i = 0; i < high; ++i) {
      const Vec<T> left = broadcast<T>(a[i * a_outer + j * a_inner]);
      for (int v = 0; v < wide; ++v) sums[i][v] += left * right[v];
    }
  }
  for (int i = 0; i < high; ++i) {
    for (int v = 0; v < wide; ++v) store_any(to + i * to_outer + v * lanes, sums[i][v], 1, rest);
  }
}

template <int high, typename T>
CELLO_INLINE void multiply_tiles(const int64_t* sizes, T* to, int64_t to_outer, const T* from_a,
                                 const Block<T>& a, const T* from_b, const Block<T>& b) {
  constexpr int64_t lanes = kLanes<T>;
  int64_t m = 0;
  if constexpr (high == 1) {
    for (; m + 4 * lanes <= sizes[1]; m += 4 * lanes) {
      multiply_tile<high, 4>(sizes[2], 4 * lanes, to + m, to_outer, from_a, a.outer, a.inner,
                             from_b + m, b.inner);
    }
  }
  for (; m + 2 * lanes <= sizes[1]; m += 2 * lanes) {
    multiply_tile<high, 2>(sizes[2], 2 * lanes, to + m, to_outer, from_a, a.outer, a.inner,
                           from_b + m, b.inner);
  }
  for (; m < sizes[1]; m += lanes) {
    multiply_tile<high, 1>(sizes[2], sizes[1] - m, to + m, to_outer, from_a, a.outer, a.inner,
                           from_b + m, b.inner);
  }
}

template <typename T>
__attribute__((noinline)) void multiply_in_tiles(int64_t rows, const int64_t* sizes,
                                                 const Block<T>& out, const Block<T>& a,
                                                 const Block<T>& b) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* from_b = b.base + r * b.row;
    int64_t i = 0;
    for (; b.outer == 0 && i + 4 <= sizes[0]; i += 4) {
      multiply_tiles<4>(sizes, out.base + r * out.row + i * out.outer, out.outer,
                        a.base + r * a.row + i * a.outer, a, from_b, b);
    }
    for (; i < sizes[0]; ++i) {
      multiply_tiles<1>(sizes, out.base + r * out.row + i * out.outer, out.outer,
                        a.base + r * a.row + i * a.outer, a, from_b + i * b.outer, b);
    }
  }
}

// `count` sums at once, each of which waits for its last addition.
template <int count, typename T>
CELLO_INLINE void multiply_line(int64_t n, const T* a, int64_t a_step, const T* b, int64_t b_step,
                                Vec<T>* sums) {
  constexpr int64_t lanes = kLanes<T>;
  Vec<T> totals[count] = {};
  int64_t j = 0;
  for (; j + lanes <= n; j += lanes) {
    for (int l = 0; l < count; ++l)
      totals[l] += load(a + l * a_step + j) * load(b + l * b_step + j);
  }
  if (j < n) {
    const int rest = static_cast<int>(n - j);
    for (int l = 0; l < count; ++l) {
      totals[l] += load_part(a + l * a_step + j, rest) * load_part(b + l * b_step + j, rest);
    }
  }
  for (int l = 0; l < count; ++l) sums[l] = totals[l];
}

// Both operands have the numbers of a sum next to each other; the lanes of many sums are added up
// at once.
template <typename T>
__attribute__((noinline)) void multiply_lines(int64_t rows, const int64_t* sizes,
                                              const Block<T>& out, const Block<T>* in) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t n = sizes[2];
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < sizes[0]; ++i) {
      for (int64_t m = 0; m < sizes[1]; m += lanes) {
        const int64_t count = min_of(lanes, sizes[1] - m);
        Vec<T> sums[lanes];
        const T* a = in[0].base + r * in[0].row + i * in[0].outer + m * in[0].middle;
        const T* b = in[1].base + r * in[1].row + i * in[1].outer + m * in[1].middle;
        int64_t l = 0;
        for (; l + 4 <= count; l += 4) {
          multiply_line<4>(n, a + l * in[0].middle, in[0].middle, b + l * in[1].middle,
                           in[1].middle, sums + l);
        }
        for (; l < count; ++l) {
          multiply_line<1>(n, a + l * in[0].middle, 0, b + l * in[1].middle, 0, sums + l);
        }
        for (; l < lanes; ++l) sums[l] = Vec<T>{};
        T* to = out.base + r * out.row + i * out.outer + m * out.middle;
        if (count == 1) {
          *to = fold_lanes<T>(sums[0], [](Vec<T> x, Vec<T> y) { return x + y; })[0];
        } else {
          store_any(to, sum_each<T>(sums), out.middle, count);
        }
      }
    }
  }
}

// Whether there is code of its own for the blocks, which has run then.
template <typename T>
CELLO_INLINE bool multiply_rows(int64_t rows, const int64_t* sizes, const Block<T>& out,
                                const Block<T>* in) {
  if (in[0].inner == 1 && in[1].inner == 1) {
    multiply_lines(rows, sizes, out, in);
    return true;
  }
  for (int k = 0; k < 2; ++k) {
    const Block<T>&a = in[k], &b = in[1 - k];
    if (a.middle != 0 || b.middle != 1 || out.middle != 1) continue;
    const bool is_wide = sizes[1] >= 2 * kLanes<T>;
    if (is_wide || (b.outer == 0 && sizes[0] > 1)) {
      multiply_in_tiles(rows, sizes, out, a, b);
      return true;
    }
  }
  return false;
}

}  // namespace CELLO_ISA
}  // namespace cello
