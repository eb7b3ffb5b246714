// Products of matrices for recurrent layers: small and middling sizes, one thread at a time.
// Threads share work by ranges of panels (multiply, pack), of rows of C (outer) or of outputs
// (multiply_unpacked).
//
// An output is summed over k in one fixed order whatever the number of rows, the range of panels or
// the direction, so that results depend neither on the number of threads nor on the rows beside
// them.
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

// Rows this far apart share one set of the first-level cache; tiles of at most kAliasedRows rows
// then keep their lines in it.
constexpr int64_t kAliasBytes = 4096;
constexpr int kAliasedRows = kTileRows < 8 ? kTileRows : 8;

// What is to stay in the second-level cache: panels of W beside a block of rows of A.
constexpr int64_t kPanelGroupBytes = 256 << 10;
constexpr int64_t kRowBlockBytes = 256 << 10;

// Blocks of `outer`: rows summed at a time, and columns of the two operands packed at a time.
// Panels for a single block of tiles are used at once, and few of them stay in the second-level
// cache.
template <typename T>
constexpr int64_t kOuterDepth = 1024 / sizeof(T);
constexpr int64_t kOuterTileColumns = kTileRows * 16;
constexpr int64_t kOuterPanelColumns = 2048;
constexpr int64_t kOuterFewPanelColumns = 256;

CELLO_INLINE int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
CELLO_INLINE int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
CELLO_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// -------------------------------------------------------------------------------------------------
// Shuffles.

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

// -------------------------------------------------------------------------------------------------
// Tiles.

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

// -------------------------------------------------------------------------------------------------
// multiply: packed weights.

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

// -------------------------------------------------------------------------------------------------
// outer: sums over many rows.

// Where tile i of a packed block of `depth` rows begins. Between tiles lies room for the vector
// that copy_row writes beyond a tile's last row.
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

// -------------------------------------------------------------------------------------------------
// multiply_unpacked: few rows.

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
