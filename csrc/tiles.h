// Products of pairs in tiles of a matrix unit (Intel AMX): 16 rows of A times 16 columns of W in
// one instruction.
//
// What the instructions do is taken from `Tiles`, so that all around them can be tested where there
// are none: csrc/tests/tiles_test.cc has them in plain C++.
#pragma once

#include "product.h"

namespace cello {
namespace CELLO_ISA {

constexpr int kUnitRows = 16;       // of a tile
constexpr int64_t kUnitPairs = 16;  // of one row of A, which makes 32 numbers

#if defined(__AMX_BF16__)

// Eight tiles: 0 1 over 2 3 are sums, 4 over 5 are A, and 6 beside 7 are W.
struct AmxTiles {
  static CELLO_INLINE void configure(int upper, int lower) {
    struct {
      uint8_t palette, start_row, reserved[14];
      uint16_t row_bytes[16];
      uint8_t rows[16];
    } config __attribute__((aligned(64))) = {};
    config.palette = 1;
    for (int tile = 0; tile < 8; ++tile) {
      const bool is_upper = tile == 0 || tile == 1 || tile == 4, is_w = tile >= 6;
      config.row_bytes[tile] = 64;
      config.rows[tile] = static_cast<uint8_t>(is_w ? kUnitRows : is_upper ? upper : lower);
    }
    _tile_loadconfig(&config);
  }
  static CELLO_INLINE void release() { _tile_release(); }

// The instructions have the number of a tile within them.
#define CELLO_EACH_SUM(call) \
  switch (tile) {            \
    case 0:                  \
      call(0);               \
      break;                 \
    case 1:                  \
      call(1);               \
      break;                 \
    case 2:                  \
      call(2);               \
      break;                 \
    default:                 \
      call(3);               \
  }
  static CELLO_INLINE void zero(int tile) { CELLO_EACH_SUM(_tile_zero) }
  static CELLO_INLINE void store(int tile, float* to, int64_t stride) {
#define CELLO_STORE(number) _tile_stored(number, to, stride * 4)
    CELLO_EACH_SUM(CELLO_STORE)
#undef CELLO_STORE
  }
#undef CELLO_EACH_SUM
  static CELLO_INLINE void load(int tile, const void* from, int64_t stride) {
#define CELLO_LOAD(number)                 \
  case number:                             \
    _tile_loadd(number, from, stride * 4); \
    break;
    switch (tile) {
      CELLO_LOAD(0)
      CELLO_LOAD(1)
      CELLO_LOAD(2)
      CELLO_LOAD(3)
      CELLO_LOAD(4)
      CELLO_LOAD(5)
      CELLO_LOAD(6)
      CELLO_LOAD(7)
    }
#undef CELLO_LOAD
  }
  // Adds to sum 0 = A 4 W 6, 1 = 4 7, 2 = 5 6, 3 = 5 7.
  static CELLO_INLINE void multiply(int tile) {
    switch (tile) {
      case 0:
        _tile_dpbf16ps(0, 4, 6);
        break;
      case 1:
        _tile_dpbf16ps(1, 4, 7);
        break;
      case 2:
        _tile_dpbf16ps(2, 5, 6);
        break;
      default:
        _tile_dpbf16ps(3, 5, 7);
    }
  }
};

#endif

// Two tiles of A, one below the other, of `upper` and `lower` rows; the second may have none.
struct TileRows {
  const Pair *a, *a2;
  int64_t stride;  // in pairs
  int upper, lower;
};

// c[r][j] (+)= bias[j] + sum_k A[r][k] w[k][j] for `columns` <= kPanel columns of a panel; K counts
// pairs and is a multiple of kUnitPairs. `bias` is null or has whole panels.
template <typename Tiles>
CELLO_INLINE void tiles_of_panel(const TileRows& rows, int64_t K, const Pair* w, int columns,
                                 const float* bias, float* c, int64_t c_stride, bool accumulate) {
  constexpr int64_t width = kPanel<Pair>, half = width / 2;
  static_assert(CELLO_VECTOR_BYTES != 64 || half == kUnitRows, "two tiles make a panel");
  const bool is_direct = columns == width && !(bias && accumulate);
  float whole[2 * kUnitRows * width];
  float* to = is_direct ? c : whole;
  const int64_t to_stride = is_direct ? c_stride : width;
  // The compiler does not see what tiles read and write.
  __asm__ volatile("" ::: "memory");
  for (int tile = 0; tile < 4; ++tile) {
    if (tile >= 2 && rows.lower == 0) break;
    if (is_direct && accumulate) {
      Tiles::load(tile, c + tile / 2 * rows.upper * c_stride + tile % 2 * half, c_stride);
    } else if (bias) {
      Tiles::load(tile, bias + tile % 2 * half, 0);  // the same row again and again
    } else {
      Tiles::zero(tile);
    }
  }
  for (int64_t k = 0; k < K; k += kUnitPairs) {
    Tiles::load(6, w + k * width, width);
    Tiles::load(4, rows.a + k, rows.stride);
    Tiles::multiply(0);
    Tiles::load(7, w + k * width + half, width);
    Tiles::multiply(1);
    if (rows.lower) {
      Tiles::load(5, rows.a2 + k, rows.stride);
      Tiles::multiply(2);
      Tiles::multiply(3);
    }
  }
  for (int tile = 0; tile < 4; ++tile) {
    if (tile >= 2 && rows.lower == 0) break;
    Tiles::store(tile, to + tile / 2 * rows.upper * to_stride + tile % 2 * half, to_stride);
  }
  __asm__ volatile("" ::: "memory");
  if (is_direct) return;
  for (int r = 0; r < rows.upper + rows.lower; ++r) {
    add_part(whole + r * width, columns, c + r * c_stride, accumulate);
  }
}

// Sets the sizes of tiles where they change.
template <typename Tiles>
struct TileSizes {
  int upper = 0, lower = 0;
  CELLO_INLINE void set(const TileRows& rows) {
    if (rows.upper == upper && rows.lower == lower) return;
    upper = rows.upper, lower = rows.lower;
    Tiles::configure(upper, lower ? lower : 1);
  }
};

// Tiles i and i + 1 of rows of A, from `a` on.
CELLO_INLINE TileRows tile_rows(const Heights& heights, int64_t i, const Pair* a, int64_t stride) {
  TileRows out = {a + heights.begin(i) * stride, nullptr, stride, heights.height(i), 0};
  if (i + 1 < heights.count) {
    out.a2 = a + heights.begin(i + 1) * stride;
    out.lower = heights.height(i + 1);
  }
  return out;
}

// As `multiply`, for rows of A that lie side by side in whole units.
template <typename Tiles>
void multiply_tiles(int64_t rows, const Pair* a, int64_t a_stride, int64_t K, const Pair* packed,
                    int64_t depth, int64_t N, const float* bias, int64_t panel_begin,
                    int64_t panel_end, float* c, int64_t c_stride, bool accumulate, int direction) {
  if (rows <= 0) return;
  const Heights heights(rows, kUnitRows);
  TileSizes<Tiles> sizes;
  for (int64_t p = panel_begin; p < panel_end; ++p) {
    const int64_t n = (direction > 0 ? p : panel_begin + panel_end - 1 - p) * kPanel<Pair>;
    const int columns = static_cast<int>(min_of(kPanel<Pair>, N - n));
    for (int64_t i = 0; i < heights.count; i += 2) {
      const TileRows those = tile_rows(heights, i, a, a_stride);
      sizes.set(those);
      tiles_of_panel<Tiles>(those, K, packed + n * depth, columns, bias ? bias + n : nullptr,
                            c + heights.begin(i) * c_stride + n, c_stride, accumulate);
    }
  }
}

// [depth][columns] turned into [columns][room] pairs, the last ones zeros; room >= depth is in
// whole units.
CELLO_INLINE void pack_turned(int64_t depth, const Summed<Pair>& from, int64_t columns,
                              int64_t room, Pair* to) {
  constexpr int lanes = kLanes<Pair>;
  for (int64_t r = 0; r < room; r += lanes) {
    for (int64_t i = 0; i < columns; i += lanes) {
      const int64_t count = min_of(lanes, columns - i);
      Vec<Pair> block[lanes];
#pragma GCC unroll 16
      for (int k = 0; k < lanes; ++k) {
        block[k] = Vec<Pair>{};
        if (r + k < depth) {
          const Summed<Pair> row = from.at(r + k, i);
          block[k] = load_columns(row.from, row.rows > 1 ? row.from + row.stride : nullptr,
                                  static_cast<int>(count));
        }
      }
      transpose<Pair>(block);
      for (int64_t j = 0; j < count; ++j) store(to + (i + j) * room + r, block[j]);
    }
  }
}

// Columns of the operand that is turned, packed at a time.
constexpr int64_t kTurnedColumns = 256;

CELLO_INLINE int64_t units(int64_t pairs) { return ceil_div(pairs, kUnitPairs) * kUnitPairs; }

inline int64_t outer_tiles_scratch(int64_t rows, int64_t M, int64_t N) {
  const int64_t room = units(min_of(ceil_div(rows, 2), kOuterDepth<Pair>));
  const int64_t larger = max_of(M, N);
  const int64_t panels = ceil_div(min_of(larger, kOuterPanelColumns), kPanel<Pair>);
  return (panels * kPanel<Pair> + min_of(larger, kTurnedColumns)) * room;
}

// C[i][j] (+)= sum_r s[r][i] v[r][j], i < M, j < N, with C's columns side by side.
template <typename Tiles>
void outer_tiles(const Summed<Pair>& s, int64_t M, const Summed<Pair>& v, int64_t N, float* c,
                 int64_t c_stride, bool accumulate, Pair* scratch) {
  const int64_t rows = ceil_div(s.rows, 2);
  const int64_t blocks = max_of(1, ceil_div(rows, kOuterDepth<Pair>));
  TileSizes<Tiles> sizes;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t r0 = rows * block / blocks, depth = rows * (block + 1) / blocks - r0;
    const int64_t room = units(depth);
    Pair* panels = scratch;
    Pair* turned =
        scratch + ceil_div(min_of(kOuterPanelColumns, N), kPanel<Pair>) * kPanel<Pair> * room;
    for (int64_t j0 = 0; j0 < N; j0 += kOuterPanelColumns) {
      const int64_t j_count = min_of(kOuterPanelColumns, N - j0);
      pack_panels(depth, v.at(r0, j0), j_count, panels, room);
      for (int64_t j = 0; j < j_count && room > depth; j += kPanel<Pair>) {
        memset(panels + j * room + depth * kPanel<Pair>, 0,
               (room - depth) * kPanel<Pair> * sizeof(Pair));
      }
      for (int64_t i0 = 0; i0 < M; i0 += kTurnedColumns) {
        const int64_t i_count = min_of(kTurnedColumns, M - i0);
        if (M > kTurnedColumns || j0 == 0) {
          pack_turned(depth, s.at(r0, i0), i_count, room, turned);
        }
        const Heights heights(i_count, kUnitRows);
        for (int64_t j = 0; j < j_count; j += kPanel<Pair>) {
          const int columns = static_cast<int>(min_of(kPanel<Pair>, j_count - j));
          for (int64_t i = 0; i < heights.count; i += 2) {
            const TileRows those = tile_rows(heights, i, turned, room);
            sizes.set(those);
            tiles_of_panel<Tiles>(those, room, panels + j * room, columns, nullptr,
                                  c + (i0 + heights.begin(i)) * c_stride + j0 + j, c_stride,
                                  accumulate || block > 0);
          }
        }
      }
    }
  }
}

}  // namespace CELLO_ISA
}  // namespace cello
