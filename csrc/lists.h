// A loop that owns its lists, made from those that Python gives.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "schedule.h"

namespace cello {

typedef std::vector<std::vector<int64_t>> Rows;

// The lists that cello/engines/native/encode.py makes of a schedule, under the same names.
struct Lists {
  Rows buffers, instructions, matrices, terms, biases, stages, outers, targets;
  std::vector<double> numbers;
  std::vector<int64_t> before, after, sums, tiles;
  std::vector<bool> bfloat16;  // for each static whether it is in bfloat16; no more are not
};

// A loop that owns its lists.
class Schedule {
 public:
  // Throws std::invalid_argument where a list has not the form that schedule.h gives it.
  explicit Schedule(const Lists& lists);

  const Loop& loop() const { return loop_; }

  // Numbers multiplied and added per row of the batch, and numbers of the matrices used at every
  // step.
  int64_t products_per_row() const { return products_per_row_; }
  int64_t loop_weights() const { return loop_weights_; }

  // Numbers that a row has in the buffers of a chunk.
  int64_t chunk_width() const { return chunk_width_; }

  // At how many places of a row each of its products is done, at least.
  int64_t places() const { return std::max<int64_t>(places_, 1); }

  // For each static in bfloat16 how many numbers the loop reads; 0 for the others.
  const std::vector<int64_t>& bfloat16_statics() const { return bfloat16_statics_; }

 private:
  Loop loop_{};
  std::vector<Buffer> buffers_;
  std::vector<double> numbers_;
  std::vector<Instruction> instructions_;
  std::vector<std::vector<Piece>> pieces_;
  std::vector<Matrix> matrices_;
  std::vector<Term> terms_;
  std::vector<Bias> biases_;
  std::vector<std::vector<int64_t>> items_;
  std::vector<Stage> stages_;
  std::vector<int64_t> before_, after_, sums_, tiles_;
  std::vector<std::vector<Slice>> slices_;
  std::vector<Outer> outers_;
  std::vector<Target> targets_;
  std::vector<int64_t> bfloat16_statics_;
  int64_t products_per_row_ = 0, loop_weights_ = 0, chunk_width_ = 0, places_ = 0;
};

}  // namespace cello
