// Checks products of pairs of bfloat16 against plain loops in double precision: what is packed,
// products in vectors, and products in tiles, whose instructions are here in plain C++, so that
// everything around them is tested on every machine. What lies beside inputs and outputs is NaN and
// has to stay.
#include "../rounded.h"

#include <math.h>
#include <stdio.h>

#include "random.h"
#if defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <vector>

using namespace cello::CELLO_ISA;

namespace {

bool coin() { return between(0, 1) == 1; }
float uniform() { return static_cast<float>(between(-(1 << 20), 1 << 20)) / (1 << 20); }

int failures = 0;

void expect(bool holds, const char* what, int64_t a, int64_t b, int64_t c) {
  if (holds) return;
  ++failures;
  printf("%s (%d, %d, %d)\n", what, static_cast<int>(a), static_cast<int>(b), static_cast<int>(c));
}

double rounded(float x) { return static_cast<double>(widened(to_bfloat16(x))); }

// Eight tiles of 16 rows of 64 bytes. `configure` leaves NaN behind, as the numbers of before are
// not to be used.
struct PlainTiles {
  static float sums[4][16][16];
  static uint16_t operands[4][16][32];
  static int rows[8];

  static void configure(int upper, int lower) {
    for (int tile = 0; tile < 8; ++tile) {
      rows[tile] = tile >= 6 ? 16 : tile == 0 || tile == 1 || tile == 4 ? upper : lower;
    }
    for (auto& tile : sums) {
      for (auto& row : tile) {
        for (float& x : row) x = NAN;
      }
    }
    memset(operands, 0xff, sizeof operands);
  }
  static void zero(int tile) { memset(sums[tile], 0, sizeof sums[tile]); }
  static void load(int tile, const void* from, int64_t stride) {
    for (int r = 0; r < rows[tile]; ++r) {
      const char* row = static_cast<const char*>(from) + r * stride * 4;
      memcpy(tile < 4 ? static_cast<void*>(sums[tile][r]) : operands[tile - 4][r], row, 64);
    }
  }
  static void store(int tile, float* to, int64_t stride) {
    for (int r = 0; r < rows[tile]; ++r) memcpy(to + r * stride, sums[tile][r], 64);
  }
  static float number(uint16_t bits) { return widened(Bfloat16{bits}); }
  static void multiply(int tile) {
    const auto& a = operands[tile / 2];
    const auto& w = operands[2 + tile % 2];
    for (int r = 0; r < rows[tile]; ++r) {
      for (int j = 0; j < 16; ++j) {
        float sum = 0.0f;
        for (int k = 0; k < 32; ++k) sum += number(a[r][k]) * number(w[k / 2][2 * j + k % 2]);
        sums[tile][r][j] += sum;
      }
    }
  }
};
float PlainTiles::sums[4][16][16];
uint16_t PlainTiles::operands[4][16][32];
int PlainTiles::rows[8];

// [rows][columns] among NaNs.
struct Floats {
  int64_t rows, columns, stride;
  std::vector<float> data;

  Floats(int64_t rows_, int64_t columns_)
      : rows(rows_), columns(columns_), stride(columns_ + between(0, 9)) {
    data.assign(static_cast<size_t>((rows + 1) * stride + 80), NAN);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) at(i, j) = uniform();
    }
  }
  float* begin() { return data.data() + 40; }
  float& at(int64_t i, int64_t j) { return begin()[i * stride + j]; }
};

struct Expected {
  int64_t columns;
  std::vector<double> data;

  explicit Expected(Floats& from) : columns(from.columns) {
    for (int64_t i = 0; i < from.rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) data.push_back(static_cast<double>(from.at(i, j)));
    }
  }
  double& at(int64_t i, int64_t j) { return data[static_cast<size_t>(i * columns + j)]; }
};

void compare(const char* what, Floats& got, Expected& expected, int64_t K) {
  int64_t wrong = 0, numbers = 0;
  for (int64_t i = 0; i < got.rows; ++i) {
    for (int64_t j = 0; j < got.columns; ++j) {
      const double error = fabs(static_cast<double>(got.at(i, j)) - expected.at(i, j));
      wrong += !(error <= 1.2e-7 * (8.0 + static_cast<double>(K)));
    }
  }
  for (float x : got.data) numbers += !isnan(x);
  expect(wrong == 0, what, got.rows, K, got.columns);
  expect(numbers == got.rows * got.columns, "numbers beside an output", got.rows, K, got.columns);
}

void test_rounding() {
  const struct {
    float from;
    uint16_t to;
  } cases[] = {{1.0f, 0x3f80},          {-2.5f, 0xc020},         {0x1.01p0f, 0x3f80},
               {0x1.03p0f, 0x3f82},     {0x1.010002p0f, 0x3f81}, {-0.0f, 0x8000},
               {INFINITY, 0x7f80},      {0x1.ffp127f, 0x7f80},   {0x1.fdp127f, 0x7f7e},
               {-0x1.fffffep0f, 0xc000}};
  for (const auto& c : cases) {
    const Vec<Pair> pairs = load_pairs(&c.from, 1),
                    columns = load_columns<float>(&c.from, nullptr, 1);
    expect(to_bfloat16(c.from).bits == c.to, "rounding", c.to, 0, 0);
    expect(pairs[0] == c.to && columns[0] == c.to, "rounding in vectors", c.to, 0, 0);
  }
  const float nan = NAN;
  const uint32_t bits = load_pairs(&nan, 1)[0];
  expect((bits & 0x7f80) == 0x7f80 && (bits & 0x7f) != 0, "rounding NaN", bits, 0, 0);
  expect(isnan(widened(to_bfloat16(nan))), "rounding NaN", 0, 0, 0);
}

// A matrix of two terms of K and K2 rows (or one), of weights that lie side by side and one below
// the other, packed in two ranges of panels.
struct Packed {
  int64_t K, K2, N, depth;
  std::vector<double> w;  // [K + K2][N], as it was rounded
  std::vector<Pair> pairs;

  Packed(int64_t K_, int64_t K2_, int64_t N_, int64_t unit)
      : K(K_), K2(K2_), N(N_), w(static_cast<size_t>((K_ + K2_) * N_)) {
    const auto whole = [unit](int64_t k) { return ceil_div(k, unit) * unit; };
    depth = (whole(K) + whole(K2)) / 2;
    pairs.assign(static_cast<size_t>(packed_size<Pair>(depth, N)), Pair{0});
    term(0, K, 0);
    if (K2) term(K, K2, whole(K) / 2);
  }

  void term(int64_t k0, int64_t rows, int64_t first) {
    const int64_t above = between(0, rows), left = coin() ? between(0, N) : N;
    piece(k0, k0, above, 0, left, rows, first);
    piece(k0, k0, above, left, N - left, rows, first);
    piece(k0, k0 + above, rows - above, 0, N, rows, first);
  }

  void piece(int64_t k0, int64_t k, int64_t rows, int64_t n, int64_t columns, int64_t all,
             int64_t first) {
    if (rows == 0 || columns == 0) return;
    const bool turned = coin();
    const int64_t k_stride = turned ? 1 : columns, n_stride = turned ? rows : 1;
    std::vector<Bfloat16> numbers(static_cast<size_t>(rows * columns));
    for (Bfloat16& x : numbers) x = to_bfloat16(uniform());
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) {
        const Bfloat16 x = numbers[static_cast<size_t>(i * k_stride + j * n_stride)];
        w[static_cast<size_t>((k + i) * N + n + j)] = static_cast<double>(widened(x));
      }
    }
    const bool owned = (k - k0) % 2 == 0 && (rows % 2 == 0 || k + rows == k0 + all);
    const int64_t split = between(0, columns);
    const auto part = [&](int64_t from, int64_t to) {
      pack_pairs(numbers.data() + from * n_stride, k_stride, n_stride, rows, k - k0, to - from,
                 n + from, N, owned, pairs.data() + first * kPanel<Pair>, depth);
    };
    part(0, split);
    part(split, columns);
  }
};

template <typename Product>
void test_multiply(const char* what, int64_t rows, int64_t K, int64_t K2, int64_t N, int64_t unit,
                   const Product& product) {
  Packed packed(K, K2, N, unit);
  Floats a(rows, K), a2(rows, K2), c(rows, N);
  const bool accumulate = coin(), with_bias = coin();
  const int64_t panels = ceil_div(N, kPanel<Pair>);
  std::vector<float> bias(static_cast<size_t>(panels * kPanel<Pair>));
  for (float& x : bias) x = uniform();
  const int64_t begin = between(0, panels), end = coin() ? panels : between(begin, panels);
  Expected expected(c);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t n = begin * kPanel<Pair>; n < N && n < end * kPanel<Pair>; ++n) {
      double sum = accumulate ? expected.at(r, n) : 0.0;
      if (with_bias) sum += static_cast<double>(bias[static_cast<size_t>(n)]);
      for (int64_t k = 0; k < K; ++k) {
        sum += rounded(a.at(r, k)) * packed.w[static_cast<size_t>(k * N + n)];
      }
      for (int64_t k = 0; k < K2; ++k) {
        sum += rounded(a2.at(r, k)) * packed.w[static_cast<size_t>((K + k) * N + n)];
      }
      expected.at(r, n) = sum;
    }
  }
  Left<float> left = {a.begin(), a.stride, K};
  if (K2) left = {a.begin(), a.stride, K, a2.begin(), a2.stride, K2};
  product(left, packed, with_bias ? bias.data() : nullptr, begin, end, c, accumulate);
  compare(what, c, expected, K + K2);
}

void test_vectors(int64_t rows, int64_t K, int64_t K2, int64_t N) {
  test_multiply("multiply_rounded", rows, K, K2, N, kDepthUnit,
                [&](const Left<float>& left, const Packed& w, const float* bias, int64_t begin,
                    int64_t end, Floats& c, bool accumulate) {
                  std::vector<Pair> scratch(static_cast<size_t>(rounded_scratch(rows, K, K2)),
                                            Pair{0x7fc07fc0});
                  multiply_rounded(rows, left, w.pairs.data(), 2 * w.depth, N, bias, begin, end,
                                   c.begin(), c.stride, accumulate, coin() ? 1 : -1,
                                   scratch.data());
                });
}

void test_unpacked(int64_t rows, int64_t K, int64_t N) {
  Floats a(rows, K), c(rows, N);
  std::vector<Bfloat16> w(static_cast<size_t>(K * N));
  for (Bfloat16& x : w) x = to_bfloat16(uniform());
  const int64_t begin = between(0, N), end = between(begin, N);
  Expected expected(c);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t n = begin; n < end; ++n) {
      for (int64_t k = 0; k < K; ++k) {
        const float x = widened(w[static_cast<size_t>(n * K + k)]);
        expected.at(r, n) += rounded(a.at(r, k)) * static_cast<double>(x);
      }
    }
  }
  std::vector<Pair> scratch(static_cast<size_t>(rounded_scratch(rows, K, 0)), Pair{0x7fc07fc0});
  multiply_unpacked_rounded(rows, a.begin(), a.stride, K, w.data(), K, begin, end, c.begin(),
                            c.stride, scratch.data());
  compare("multiply_unpacked_rounded", c, expected, K);
}

template <typename Product>
void test_outer(const char* what, int64_t rows, int64_t M, int64_t N, const Product& product) {
  Floats a(rows, M), b(rows, N), c(M, N);
  const bool accumulate = coin();
  const int64_t begin = between(0, M), end = coin() ? M : between(begin, M);
  Expected expected(c);
  for (int64_t m = begin; m < end; ++m) {
    for (int64_t n = 0; n < N; ++n) {
      double sum = accumulate ? expected.at(m, n) : 0.0;
      for (int64_t r = 0; r < rows; ++r) sum += rounded(a.at(r, m)) * rounded(b.at(r, n));
      expected.at(m, n) = sum;
    }
  }
  product(a, b, begin, end, c, accumulate);
  compare(what, c, expected, rows);
}

void test_outer_vectors(int64_t rows, int64_t M, int64_t N) {
  test_outer("outer_rounded", rows, M, N,
             [&](Floats& a, Floats& b, int64_t begin, int64_t end, Floats& c, bool accumulate) {
               std::vector<Pair> scratch(static_cast<size_t>(outer_rounded_scratch(rows, M, N)),
                                         Pair{0x7fc07fc0});
               outer_rounded(rows, a.begin(), a.stride, b.begin(), b.stride, begin, end, N,
                             c.begin(), c.stride, 1, accumulate, scratch.data());
             });
  // C turned: its rows lie side by side.
  Floats turned(N, M);
  test_outer("outer_rounded, turned", rows, M, N,
             [&](Floats& a, Floats& b, int64_t begin, int64_t end, Floats& c, bool accumulate) {
               for (int64_t m = 0; m < M; ++m) {
                 for (int64_t n = 0; n < N; ++n) turned.at(n, m) = c.at(m, n);
               }
               std::vector<Pair> scratch(static_cast<size_t>(outer_rounded_scratch(rows, M, N)),
                                         Pair{0x7fc07fc0});
               outer_rounded(rows, a.begin(), a.stride, b.begin(), b.stride, begin, end, N,
                             turned.begin(), 1, turned.stride, accumulate, scratch.data());
               for (int64_t m = 0; m < M; ++m) {
                 for (int64_t n = 0; n < N; ++n) c.at(m, n) = turned.at(n, m);
               }
             });
}

// A tile is half a panel only where vectors have 64 bytes.
#if CELLO_VECTOR_BYTES == 64

void test_tiles(int64_t rows, int64_t K, int64_t N) {
  const int64_t unit = 2 * kUnitPairs;
  test_multiply("multiply_tiles", rows, K, 0, N, unit,
                [&](const Left<float>& left, const Packed& w, const float* bias, int64_t begin,
                    int64_t end, Floats& c, bool accumulate) {
                  const int64_t stride = w.depth + 16;
                  std::vector<Pair> a(static_cast<size_t>(rows * stride), Pair{0x7fc07fc0});
                  round_rows(rows, left.a, left.stride, K, a.data(), stride, w.depth);
                  multiply_tiles<PlainTiles>(rows, a.data(), stride, w.depth, w.pairs.data(),
                                             w.depth, N, bias, begin, end, c.begin(), c.stride,
                                             accumulate, coin() ? 1 : -1);
                });
}

void test_outer_tiles(int64_t rows, int64_t M, int64_t N) {
  test_outer("outer_tiles", rows, M, N,
             [&](Floats& a, Floats& b, int64_t begin, int64_t end, Floats& c, bool accumulate) {
               std::vector<Pair> scratch(static_cast<size_t>(outer_tiles_scratch(rows, M, N)),
                                         Pair{0x7fc07fc0});
               outer_tiles<PlainTiles>({a.begin() + begin, a.stride, rows}, end - begin,
                                       {b.begin(), b.stride, rows}, N, c.begin() + begin * c.stride,
                                       c.stride, accumulate, scratch.data());
             });
}

// The same row among others and alone: equal to the last bit.
void test_tiles_invariance(int64_t rows, int64_t K, int64_t N) {
  Packed w(K, 0, N, 2 * kUnitPairs);
  Floats a(rows, K), c(rows, N), one(1, N);
  const int64_t panels = ceil_div(N, kPanel<Pair>);
  std::vector<Pair> pairs(static_cast<size_t>(rows * w.depth));
  round_rows(rows, a.begin(), a.stride, K, pairs.data(), w.depth, w.depth);
  multiply_tiles<PlainTiles>(rows, pairs.data(), w.depth, w.depth, w.pairs.data(), w.depth, N,
                             nullptr, 0, panels, c.begin(), c.stride, false, 1);
  for (int64_t r = 0; r < rows; ++r) {
    multiply_tiles<PlainTiles>(1, pairs.data() + r * w.depth, w.depth, w.depth, w.pairs.data(),
                               w.depth, N, nullptr, 0, panels, one.begin(), one.stride, false, -1);
    for (int64_t n = 0; n < N; ++n) {
      expect(one.at(0, n) == c.at(r, n), "invariance of tiles", rows, K, N);
    }
  }
}

#else

void test_tiles(int64_t, int64_t, int64_t) {}
void test_outer_tiles(int64_t, int64_t, int64_t) {}
void test_tiles_invariance(int64_t, int64_t, int64_t) {}

#endif

}  // namespace

int main() {
#if defined(__AMX_BF16__) && defined(__linux__)
  // Tiles are a part of a process's state that Linux grants on request; the module does so in
  // instruction_sets.cc.
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0) {
    printf("rounded: left out, as tiles are not granted\n");
    return 0;
  }
#endif
  test_rounding();
  for (int i = 0; i < 1500; ++i) {
    const int64_t rows = between(1, 70), K = between(1, 90), N = between(1, 150);
    test_vectors(rows, K, coin() ? between(1, 50) : 0, N);
    test_unpacked(between(1, 9), K, N);
    test_outer_vectors(rows, K, N);
    test_tiles(rows, K, N);
    test_outer_tiles(rows, K, N);
    if (i % 20 == 0) test_tiles_invariance(rows, K, N);
  }
  // Beyond one block of rows, of panels, of columns.
  test_vectors(400, 1500, 0, 70);
  test_vectors(130, 300, 301, 300);
  test_tiles(100, 1000, 100);
  test_outer_vectors(1100, 300, 70);
  test_outer_tiles(1100, 300, 70);
  test_outer_tiles(40, 300, 2100);
  test_outer_tiles(1030, 30, 2100);
  if (failures != 0) return 1;
  printf("rounded: passed\n");
  return 0;
}
