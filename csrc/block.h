// Blocks: the operands of pointwise and row instructions, and how they are read and written in
// vectors.
#pragma once

#include "simd.h"

namespace cello {
namespace CELLO_ISA {

// An operand with its memory: where the block of the first row starts, and the next row's.
template <typename T>
struct Block {
  T* base;
  int64_t row, outer, middle, inner;
};

// Reads `n` numbers from a place, in vectors.
template <typename T>
CELLO_INLINE Vec<T> load_any(const T* p, int64_t stride, int64_t n) {
  if (stride == 1) return n >= kLanes<T> ? load(p) : load_part(p, static_cast<int>(n));
  if (stride == 0) return broadcast<T>(*p);
  Vec<T> v{};
  for (int64_t i = 0; i < n && i < kLanes<T>; ++i) v[i] = p[i * stride];
  return v;
}

template <typename T>
CELLO_INLINE void store_any(T* p, Vec<T> v, int64_t stride, int64_t n) {
  if (stride == 1) {
    if (n >= kLanes<T>) {
      store(p, v);
    } else {
      store_part(p, v, static_cast<int>(n));
    }
    return;
  }
  for (int64_t i = 0; i < n && i < kLanes<T>; ++i) p[i * stride] = v[i];
}

// Calls `line(out, in...)` for every innermost line of a block.
template <int count, typename T, typename Line>
CELLO_INLINE void each_line(int64_t rows, const int64_t* sizes, const Block<T>& out,
                            const Block<T>* in, const Line& line) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < sizes[0]; ++i) {
      for (int64_t j = 0; j < sizes[1]; ++j) {
        const T* from[4];
        for (int k = 0; k < count; ++k) {
          from[k] = in[k].base + r * in[k].row + i * in[k].outer + j * in[k].middle;
        }
        line(out.base + r * out.row + i * out.outer + j * out.middle, from);
      }
    }
  }
}

}  // namespace CELLO_ISA
}  // namespace cello
