// Products with packed weights. Threads share one by ranges of panels.
#pragma once

#include "micro_kernel.h"

namespace cello {
namespace CELLO_ISA {

// Rows this far apart share one set of the first-level cache; tiles of at most kAliasedRows rows
// then keep their lines in it.
constexpr int64_t kAliasBytes = 4096;
constexpr int kAliasedRows = kTileRows < 8 ? kTileRows : 8;

// What is to stay in the second-level cache: panels of W beside a block of rows of A.
constexpr int64_t kPanelGroupBytes = 256 << 10;
constexpr int64_t kRowBlockBytes = 256 << 10;

// What the tiles of one group of panels share: panels begin + i, or end - 1 - i when going
// backwards, for i in [first, last).
template <typename T>
struct PanelWalk {
  int64_t depth, N;  // rows and columns of the packed matrix
  const T* packed;   // at the first row used
  const Sum<T>* bias;
  int64_t begin, end, first, last;
  bool forward, accumulate;
};

// One tile's rows of A and C along the panels of a walk. Low tiles take several panels at once, as
// far as registers go: the loop needs eight sums or more to hide the latency of an addition.
template <typename T, int R>
struct TileWalk {
  static constexpr bool kManyRegisters = kTileRows > 8;
  static constexpr int kAtOnce = R <= (kManyRegisters ? 3 : 1)   ? 4
                                 : R <= (kManyRegisters ? 5 : 3) ? 2
                                                                 : 1;

  template <int panels>
  static CELLO_INLINE bool step(const Left<T>& left, Sum<T>* c, int64_t c_stride,
                                const PanelWalk<T>& walk, int64_t* i) {
    if (*i + panels > walk.last) return false;
    const int64_t panel = walk.forward ? walk.begin + *i : walk.end - *i - panels;
    const int64_t n = panel * kPanel<T>;
    const T* w = walk.packed + n * walk.depth;
    const Sum<T>* bias = walk.bias ? walk.bias + n : nullptr;
    const int64_t columns = walk.N - n;
    if (columns >= panels * kPanel<T>) {
      tile<T, R, 2 * panels, false>(left, w, walk.depth * kPanel<T>, bias, c + n, c_stride,
                                    walk.accumulate);
    } else if (panels == 1) {
      last_tile<T, R, false>(left, w, static_cast<int>(columns), bias, c + n, c_stride,
                             walk.accumulate);
    } else {
      return false;
    }
    *i += panels;
    return true;
  }

  static __attribute__((noinline)) void run(const Left<T>& left, Sum<T>* c, int64_t c_stride,
                                            const PanelWalk<T>* walk) {
    for (int64_t i = walk->first; i < walk->last;) {
      if constexpr (kAtOnce >= 4) {
        if (step<4>(left, c, c_stride, *walk, &i)) continue;
      }
      if constexpr (kAtOnce >= 2) {
        if (step<2>(left, c, c_stride, *walk, &i)) continue;
      }
      step<1>(left, c, c_stride, *walk, &i);
    }
  }
};

// C[r][n] (+)= bias[n] + sum_k A[r][k] W[k][n] for the columns of panels [panel_begin, panel_end).
// `packed` is the first of the K rows that are used of a packed matrix of `depth` rows, best
// aligned to 64 bytes; `bias` is null or has as many numbers as the panels. The panels are walked
// upwards when direction > 0 and downwards otherwise: callers that go over the same W again and
// again alternate, and find the panels used last still in the cache.
template <typename T>
void multiply(int64_t rows, const Left<T>& left, const T* packed, int64_t depth, int64_t N,
              const Sum<T>* bias, int64_t panel_begin, int64_t panel_end, Sum<T>* c,
              int64_t c_stride, bool accumulate, int direction) {
  const int64_t panels = panel_end - panel_begin;
  if (rows <= 0 || panels <= 0) return;
  const int64_t number = sizeof(T);
  const bool aliased = left.stride * number % kAliasBytes == 0 ||
                       (left.K2 && left.stride2 * number % kAliasBytes == 0);
  const int64_t limit = aliased ? kAliasedRows : kTileRows;
  const int64_t bytes = max_of(1, left.K + left.K2) * number;
  const int64_t row_block = max_of(8, kRowBlockBytes / bytes / limit) * limit;
  PanelWalk<T> walk = {depth,     N, packed, bias,          panel_begin,
                       panel_end, 0, 0,      direction > 0, accumulate};
  for (int64_t r = 0; r < rows; r += row_block) {
    const Heights heights(min_of(row_block, rows - r), limit);
    const int64_t group =
        heights.count == 1 ? panels : max_of(1, kPanelGroupBytes / (bytes * kPanel<T>));
    for (walk.first = 0; walk.first < panels; walk.first = walk.last) {
      walk.last = min_of(panels, walk.first + group);
      for (int64_t i = 0; i < heights.count; ++i) {
        const int64_t row = r + heights.begin(i);
        ByHeight<T, TileWalk>::run(heights.height(i), left.from_row(row), c + row * c_stride,
                                   c_stride, static_cast<const PanelWalk<T>*>(&walk));
      }
    }
    walk.forward = !walk.forward;
  }
}

}  // namespace CELLO_ISA
}  // namespace cello
