// Checks the reductions that compare all pairs against plain loops: with operands of every stride,
// with equal numbers and NaN, and with lines of every length. What lies beside the operands is
// memory that must not be read, which sanitizers see, and what lies beside the result has to stay.
#include <math.h>
#include <stdio.h>

#include <vector>

#include "../fusion.h"
#include "random.h"

using namespace cello;
using namespace cello::CELLO_ISA;

namespace {

int failures = 0;

// Numbers of few values, so that many are equal; sometimes NaN.
template <typename T>
std::vector<T> numbers(int64_t count) {
  std::vector<T> out(static_cast<size_t>(count));
  for (T& x : out) x = between(0, 9) == 0 ? static_cast<T>(NAN) : static_cast<T>(between(-2, 2));
  return out;
}

// An operand of its own memory, with no number more than it needs.
template <typename T>
struct Operand {
  std::vector<T> memory;
  Block<T> block;

  Operand(int64_t rows, const int64_t* sizes, int64_t middle, int64_t inner) {
    const int64_t width = (sizes[1] - 1) * middle + (sizes[2] - 1) * inner + 1;
    memory = numbers<T>(rows * width);
    block = {memory.data(), width, 0, middle, inner};
  }

  T at(int64_t r, int64_t m, int64_t j) const {
    return block.base[r * block.row + m * block.middle + j * block.inner];
  }
};

template <typename T>
void test(int64_t op, int64_t count) {
  const int64_t rows = between(1, 3), sizes[3] = {1, between(1, 40), between(1, 20)};
  std::vector<Operand<T>> operands;
  Block<T> in[4];
  for (int64_t k = 0; k < count; ++k) {
    // Nearly always one number for a line, or one line for all numbers, as the compiler writes it.
    const int64_t kind = between(0, 5);
    const int64_t middle = kind < 2 ? 1 : kind < 4 ? 0 : between(0, 3);
    const int64_t inner = kind < 2 ? 0 : kind < 4 ? 1 : between(0, 3);
    operands.emplace_back(rows, sizes, middle, inner);
  }
  for (int64_t k = 0; k < count; ++k) in[k] = operands[static_cast<size_t>(k)].block;
  const int64_t step = between(1, 2), width = sizes[1] * step;
  std::vector<T> found(static_cast<size_t>(rows * width + 1), T(77));
  execute<T>(op, rows, sizes, {found.data(), width, 0, step, 0}, in);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t m = 0; m < sizes[1]; ++m) {
      T total = 0;
      bool is_empty = true;
      for (int64_t j = 0; j < sizes[2]; ++j) {
        const T a = operands[0].at(r, m, j), b = operands[1].at(r, m, j);
        if (op == kDot) {
          total += a * b;
          continue;
        }
        const T c = operands[2].at(r, m, j);
        if (op == kSelect) {
          if (a != b) continue;
          total = is_empty ? c : total + c;
          is_empty = false;
          continue;
        }
        const bool earlier = operands[3].at(r, m, j) < c;
        if (b < a || (b == a && earlier) || (a != a && (b == b || earlier))) total += T(1);
      }
      if (op == kSelect && is_empty) total = -total;
      const T x = found[static_cast<size_t>(r * width + m * step)];
      const bool same = (x == total && signbit(x) == signbit(total)) || (x != x && total != total);
      const T beside = found[static_cast<size_t>(r * width + m * step + 1)];
      const bool stays = step == 1 || beside == T(77);
      if (same && stays) continue;
      ++failures;
      printf("op %d: %g, not %g\n", static_cast<int>(op), static_cast<double>(x),
             static_cast<double>(total));
    }
  }
}

}  // namespace

int main() {
  for (int i = 0; i < 4000; ++i) {
    test<float>(kDot, 2);
    test<double>(kDot, 2);
    test<float>(kRank, 4);
    test<double>(kRank, 4);
    test<float>(kSelect, 3);
    test<double>(kSelect, 3);
  }
  if (failures != 0) return 1;
  printf("pairs: passed\n");
  return 0;
}
