// Checks sums of products over the innermost axis against plain loops: with the strides of products
// of matrices, transposed or not, and with others. What lies beside the operands must not be read,
// which sanitizers see, and what lies beside the result has to stay.
#include <stdio.h>

#include <vector>

#include "../fusion.h"
#include "random.h"

using namespace cello;
using namespace cello::CELLO_ISA;

namespace {

int failures = 0;

template <typename T>
struct Operand {
  std::vector<T> memory;
  Block<T> block;

  Operand(int64_t rows, const int64_t* sizes, int64_t outer, int64_t middle, int64_t inner) {
    const int64_t width =
        (sizes[0] - 1) * outer + (sizes[1] - 1) * middle + (sizes[2] - 1) * inner + 1;
    memory.resize(static_cast<size_t>(rows * width));
    for (T& x : memory) x = static_cast<T>(between(-3, 3));
    block = {memory.data(), width, outer, middle, inner};
  }

  T at(int64_t r, int64_t i, int64_t m, int64_t j) const {
    return block.base[r * block.row + i * block.outer + m * block.middle + j * block.inner];
  }
};

template <typename T>
void test() {
  const int64_t rows = between(1, 3);
  const int64_t sizes[3] = {between(1, 9), between(1, between(0, 3) ? 40 : 150), between(1, 40)};
  const int64_t n = sizes[2], m = sizes[1];
  // A matrix (outer, inner) and one (inner, middle), each as it is or transposed; or anything.
  const bool turned_a = between(0, 1), turned_b = between(0, 1);
  Operand<T> a(rows, sizes, turned_a ? 1 : n, 0, turned_a ? sizes[0] : 1);
  Operand<T> b(rows, sizes, 0, turned_b ? n : 1, turned_b ? 1 : m);
  if (between(0, 5) == 0) a = {rows, sizes, between(0, 3), between(0, 2), between(0, 2)};
  if (between(0, 5) == 0) b = {rows, sizes, between(0, 3), between(0, 2), between(0, 2)};
  const bool swaps = between(0, 1);
  const Block<T> in[2] = {swaps ? b.block : a.block, swaps ? a.block : b.block};
  const int64_t step = between(0, 3) == 0 ? 2 : 1, width = sizes[0] * m * step;
  std::vector<T> found(static_cast<size_t>(rows * width + 1), T(77));
  execute<T>(kDot, rows, sizes, {found.data(), width, m * step, step, 0}, in);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < sizes[0]; ++i) {
      for (int64_t k = 0; k < m; ++k) {
        T total = 0;
        for (int64_t j = 0; j < n; ++j) total += a.at(r, i, k, j) * b.at(r, i, k, j);
        const size_t place = static_cast<size_t>(r * width + (i * m + k) * step);
        if (found[place] == total && (step == 1 || found[place + 1] == T(77))) continue;
        ++failures;
        printf("%g, not %g\n", static_cast<double>(found[place]), static_cast<double>(total));
      }
    }
  }
  if (found.back() != T(77)) ++failures;
}

}  // namespace

int main() {
  for (int i = 0; i < 4000; ++i) {
    test<float>();
    test<double>();
  }
  if (failures != 0) return 1;
  printf("row products: passed\n");
  return 0;
}
