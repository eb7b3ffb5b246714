// Checks product.h against plain loops in double precision, on shapes of all kinds. Outputs lie
// among NaNs, of which none may change; what lies beyond the inputs' rows is NaN too, and would
// show in the results.
#include "../product.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include <vector>

#include "random.h"

using namespace cello::CELLO_ISA;

namespace {

bool coin() { return random_bits() >> 33 & 1; }

double uniform() { return static_cast<double>(random_bits() >> 11) * 0x1p-52 - 1.0; }

int failures = 0;

// [outer][inner] numbers among NaNs, in memory of just that size: [i][j] lies at
// data[offset + i * outer_stride + j * inner_stride], with one of the strides 1.
template <typename T>
struct Matrix {
  std::vector<T> data;
  int64_t rows, columns, row_stride, column_stride, offset;

  Matrix(int64_t rows_, int64_t columns_, bool transposed, bool guarded)
      : rows(rows_), columns(columns_), offset(guarded ? between(1, 40) : 0) {
    const int64_t inner = transposed ? rows : columns, outer = transposed ? columns : rows;
    int64_t stride = inner + (coin() ? between(0, 9) : 0);
    if (outer < 16 && inner <= 256 && between(0, 15) == 0) stride = 1024;
    row_stride = transposed ? 1 : stride;
    column_stride = transposed ? stride : 1;
    const int64_t size = outer == 0 ? 0 : (outer - 1) * stride + inner;
    data.assign(static_cast<size_t>(size + (guarded ? offset + 40 : 0)), static_cast<T>(NAN));
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) at(i, j) = static_cast<T>(uniform());
    }
  }

  T& at(int64_t i, int64_t j) {
    return data[static_cast<size_t>(offset + i * row_stride + j * column_stride)];
  }
  T* begin() { return data.data() + offset; }
};

template <typename T>
double tolerance(int64_t terms) {
  return (sizeof(T) == 4 ? 1.2e-7 : 2.3e-16) * (8.0 + static_cast<double>(terms));
}

// Compares c with `expected` [rows][columns], and checks that all else in c is still NaN.
template <typename T>
void check(const char* what, Matrix<T>& c, const std::vector<double>& expected, int64_t terms,
           int64_t rows, int64_t K, int64_t N) {
  int64_t wrong = 0, numbers = 0, kept = 0;
  for (int64_t i = 0; i < c.rows; ++i) {
    for (int64_t j = 0; j < c.columns; ++j) {
      const double difference =
          fabs(static_cast<double>(c.at(i, j)) - expected[static_cast<size_t>(i * c.columns + j)]);
      wrong += !(difference <= tolerance<T>(terms));
    }
  }
  for (T x : c.data) (isnan(x) ? kept : numbers) += 1;
  if (wrong != 0 || numbers != c.rows * c.columns) {
    ++failures;
    printf("%s %s (%d, %d, %d): %d wrong, %d written of %d\n", what,
           sizeof(T) == 4 ? "float" : "double", static_cast<int>(rows), static_cast<int>(K),
           static_cast<int>(N), static_cast<int>(wrong), static_cast<int>(numbers),
           static_cast<int>(c.rows * c.columns));
  }
}

template <typename T>
std::vector<double> values(Matrix<T>& m) {
  std::vector<double> all;
  for (int64_t i = 0; i < m.rows; ++i) {
    for (int64_t j = 0; j < m.columns; ++j) all.push_back(static_cast<double>(m.at(i, j)));
  }
  return all;
}

template <typename T>
void test_multiply(int64_t rows, int64_t K, int64_t N) {
  Matrix<T> a(rows, K, false, false), w(K, N, coin(), false), c(rows, N, false, true);
  const int64_t panels = (N + kPanel<T> - 1) / kPanel<T>;
  // Packed in two parts, the columns beyond N to be zero.
  std::vector<T> packed(static_cast<size_t>(packed_size<T>(K, N)), static_cast<T>(NAN));
  const int64_t split = between(0, panels);
  pack(w.begin(), w.row_stride, w.column_stride, K, N, split, panels, packed.data(), K);
  pack(w.begin(), w.row_stride, w.column_stride, K, N, 0, split, packed.data(), K);
  for (int64_t n = 0; n < panels * kPanel<T>; ++n) {
    for (int64_t k = 0; k < K; ++k) {
      const size_t place = static_cast<size_t>((n / kPanel<T> * K + k) * kPanel<T> + n % kPanel<T>);
      if (packed[place] != (n < N ? w.at(k, n) : T(0))) {
        ++failures;
        printf("pack (%d, %d)\n", static_cast<int>(K), static_cast<int>(N));
        return;
      }
    }
  }
  const bool accumulate = coin(), with_bias = coin();
  std::vector<T> bias(static_cast<size_t>(panels * kPanel<T>));
  for (T& number : bias) number = static_cast<T>(between(0, 17) - 8) / T(8);
  const int64_t begin = between(0, panels), end = coin() ? panels : between(begin, panels);
  std::vector<double> expected = values(c);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t n = begin * kPanel<T>; n < N && n < end * kPanel<T>; ++n) {
      double sum = accumulate ? expected[static_cast<size_t>(r * N + n)] : 0.0;
      if (with_bias) sum += static_cast<double>(bias[static_cast<size_t>(n)]);
      for (int64_t k = 0; k < K; ++k) {
        sum += static_cast<double>(a.at(r, k)) * static_cast<double>(w.at(k, n));
      }
      expected[static_cast<size_t>(r * N + n)] = sum;
    }
  }
  // A in one part or in two, side by side in memory.
  const int64_t K1 = coin() || K < 2 ? K : between(1, K);
  Left<T> left = {a.begin(), a.row_stride, K1};
  if (K1 < K) left = {a.begin(), a.row_stride, K1, a.begin() + K1, a.row_stride, K - K1};
  multiply<T>(rows, left, packed.data(), K, N, with_bias ? bias.data() : nullptr, begin, end,
              c.begin(), c.row_stride, accumulate, coin() ? 1 : -1);
  check("multiply", c, expected, K, rows, K, N);
}

// The same row in products of other heights, ranges and directions: equal to the last bit.
template <typename T>
void test_invariance(int64_t rows, int64_t K, int64_t N) {
  Matrix<T> a(rows, K, false, false), w(K, N, false, false), c(rows, N, false, true);
  const int64_t panels = (N + kPanel<T> - 1) / kPanel<T>;
  std::vector<T> packed(static_cast<size_t>(packed_size<T>(K, N)));
  pack(w.begin(), w.row_stride, w.column_stride, K, N, 0, panels, packed.data(), K);
  multiply<T>(rows, {a.begin(), a.row_stride, K}, packed.data(), K, N, nullptr, 0, panels,
              c.begin(), c.row_stride, false, 1);
  std::vector<T> one(static_cast<size_t>(N));
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t split = between(0, panels);
    const T* a_row = a.begin() + r * a.row_stride;
    const Left<T> left = {a_row, 1, K};
    multiply<T>(1, left, packed.data(), K, N, nullptr, split, panels, one.data(), 1, false, -1);
    multiply<T>(1, left, packed.data(), K, N, nullptr, 0, split, one.data(), 1, false, 1);
    for (int64_t n = 0; n < N; ++n) {
      if (one[static_cast<size_t>(n)] != c.at(r, n)) {
        ++failures;
        printf("invariance (%d, %d, %d)\n", static_cast<int>(rows), static_cast<int>(K),
               static_cast<int>(N));
        return;
      }
    }
  }
}

template <typename T>
void test_outer(int64_t rows, int64_t M, int64_t N) {
  Matrix<T> a(rows, M, false, false), b(rows, N, false, false), c(M, N, coin(), true);
  const bool accumulate = coin();
  const int64_t begin = between(0, M), end = coin() ? M : between(begin, M);
  std::vector<double> expected = values(c);
  for (int64_t m = begin; m < end; ++m) {
    for (int64_t n = 0; n < N; ++n) {
      double sum = accumulate ? expected[static_cast<size_t>(m * N + n)] : 0.0;
      for (int64_t r = 0; r < rows; ++r) {
        sum += static_cast<double>(a.at(r, m)) * static_cast<double>(b.at(r, n));
      }
      expected[static_cast<size_t>(m * N + n)] = sum;
    }
  }
  std::vector<T> scratch(static_cast<size_t>(outer_scratch<T>(rows, M, N)), static_cast<T>(NAN));
  outer<T>(rows, a.begin(), a.row_stride, b.begin(), b.row_stride, begin, end, N, c.begin(),
           c.row_stride, c.column_stride, accumulate, scratch.data());
  check("outer", c, expected, rows, rows, M, N);
}

template <typename T>
void test_unpacked(int64_t rows, int64_t K, int64_t N) {
  Matrix<T> a(rows, K, false, false), w(N, K, false, false), c(rows, N, false, true);
  const bool accumulate = coin();
  const int64_t begin = between(0, N), end = coin() ? N : between(begin, N);
  std::vector<double> expected = values(c);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t n = begin; n < end; ++n) {
      double sum = accumulate ? expected[static_cast<size_t>(r * N + n)] : 0.0;
      for (int64_t k = 0; k < K; ++k) {
        sum += static_cast<double>(a.at(r, k)) * static_cast<double>(w.at(n, k));
      }
      expected[static_cast<size_t>(r * N + n)] = sum;
    }
  }
  multiply_unpacked<T>(rows, a.begin(), a.row_stride, K, w.begin(), w.row_stride, begin, end,
                       c.begin(), c.row_stride, accumulate);
  check("multiply_unpacked", c, expected, K, rows, K, N);
}

template <typename T>
void test_all() {
  for (int i = 0; i < 4000; ++i) {
    const int64_t rows = between(1, 40), K = between(1, 70), N = between(1, 150);
    test_multiply<T>(rows, K, N);
    test_outer<T>(rows, K, N);
    test_unpacked<T>(between(1, 9), K, N);
    if (i % 10 == 0) test_invariance<T>(rows, K, N);
  }
  // Beyond one block of rows, of panels, of columns.
  test_multiply<T>(150, 1000, 100);
  test_multiply<T>(1000, 70, 40);
  test_multiply<T>(64, 1024, 200);
  test_invariance<T>(40, 600, 150);
  test_outer<T>(700, 300, 70);
  test_outer<T>(700, 70, 300);
  test_outer<T>(520, 30, 600);
  test_outer<T>(520, 600, 30);
  test_outer<T>(20, 2100, 30);
  test_outer<T>(20, 30, 2100);
  // Nothing to sum over, no rows, no panels.
  for (int i = 0; i < 4; ++i) {
    test_multiply<T>(3, 0, 50);
    test_outer<T>(0, 20, 30);
    test_unpacked<T>(2, 0, 20);
  }
}

}  // namespace

int main() {
  test_all<float>();
  test_all<double>();
  if (failures != 0) return 1;
  printf("product: passed\n");
  return 0;
}
