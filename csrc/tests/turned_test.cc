// Checks copies between blocks whose neighbours are others', and sums over axes of any stride,
// against plain loops: with axes of every length in every order. What lies beside an operand is
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

// A block with gaps of its own memory, with no number more than it needs; its axes lie in memory in
// a random order.
template <typename T>
struct Laid {
  std::vector<T> memory;
  Block<T> block;

  Laid(int64_t rows, const int64_t* sizes, bool gaps) {
    int64_t order[3] = {0, 1, 2}, strides[3], step = gaps ? between(1, 2) : 1;
    for (int64_t i = 2; i > 0; --i) {
      const int64_t j = between(0, i), kept = order[i];
      order[i] = order[j];
      order[j] = kept;
    }
    for (int64_t axis : order) {
      strides[axis] = step;
      step *= sizes[axis];
      if (gaps) step += between(0, 3);
    }
    int64_t width = 1;
    for (int64_t axis = 0; axis < 3; ++axis) width += (sizes[axis] - 1) * strides[axis];
    memory.resize(static_cast<size_t>(rows * width));
    for (T& x : memory) x = static_cast<T>(between(-1000, 1000));
    block = {memory.data(), width, strides[0], strides[1], strides[2]};
  }

  T& at(int64_t r, int64_t i, int64_t j, int64_t k) const {
    return block.base[r * block.row + i * block.outer + j * block.middle + k * block.inner];
  }
};

template <typename T>
void expect(const Laid<T>& out, const std::vector<T>& wanted, const char* what) {
  if (out.memory == wanted) return;
  ++failures;
  printf("%s: another result\n", what);
}

template <typename T>
void copies(bool gaps) {
  const int64_t rows = between(1, 3), sizes[3] = {between(1, 5), between(1, 40), between(1, 40)};
  const Laid<T> in(rows, sizes, gaps), out(rows, sizes, gaps);
  std::vector<T> wanted = out.memory;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < sizes[0]; ++i) {
      for (int64_t j = 0; j < sizes[1]; ++j) {
        for (int64_t k = 0; k < sizes[2]; ++k) {
          wanted[static_cast<size_t>(&out.at(r, i, j, k) - out.memory.data())] = in.at(r, i, j, k);
        }
      }
    }
  }
  execute<T>(kCopy, rows, sizes, out.block, &in.block);
  expect(out, wanted, "copy");
}

template <typename T>
void sums(bool gaps) {
  const int64_t rows = between(1, 3), sizes[3] = {between(1, 5), between(1, 40), between(1, 40)};
  const int64_t kept[3] = {sizes[0], sizes[1], 1};
  const Laid<T> in(rows, sizes, gaps), out(rows, kept, gaps);
  std::vector<T> wanted = out.memory;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < sizes[0]; ++i) {
      for (int64_t j = 0; j < sizes[1]; ++j) {
        T total = 0;  // of whole numbers, and so exact in any order
        for (int64_t k = 0; k < sizes[2]; ++k) total += in.at(r, i, j, k);
        wanted[static_cast<size_t>(&out.at(r, i, j, 0) - out.memory.data())] = total;
      }
    }
  }
  execute<T>(kSum, rows, sizes, out.block, &in.block);
  expect(out, wanted, "sum");
}

}  // namespace

int main() {
  for (int i = 0; i < 3000; ++i) {
    copies<float>(i % 2);
    copies<double>(i % 2);
    sums<float>(i % 2);
    sums<double>(i % 2);
  }
  if (failures != 0) return 1;
  printf("turned: passed\n");
  return 0;
}
