// Runs of loops: memory, threads and the choice of an instruction set.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "schedule.h"

namespace cello {

// The instruction sets that were compiled and that this machine has, best first. The environment
// variable CELLO_ISA leaves only the one that it names; it is read at the first call. Throws
// std::invalid_argument where it names none of them.
const std::vector<std::string>& instruction_sets();

// Whether the one in use multiplies in bfloat16.
bool multiplies_bfloat16();

typedef std::vector<std::vector<int64_t>> Rows;

// The lists that cello/engines/native/encode.py makes of a plan, under the same names.
struct Lists {
  Rows buffers, instructions, matrices, terms, biases, stages, outers, targets;
  std::vector<double> numbers;
  std::vector<int64_t> before, after, sums, tiles;
  std::vector<bool> bfloat16;  // for each static whether it is in bfloat16; no more are not
};

// A loop that owns its lists.
class Plan {
 public:
  // Throws std::invalid_argument where a list has not the form that schedule.h gives it.
  explicit Plan(const Lists& lists);

  const Loop& loop() const { return loop_; }

  // Numbers multiplied and added per row of the batch, and bytes of the matrices used at every
  // step.
  int64_t products_per_row() const { return products_per_row_; }
  int64_t loop_weights() const { return loop_weights_; }

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
  std::vector<std::vector<Part>> parts_;
  std::vector<Outer> outers_;
  std::vector<Target> targets_;
  std::vector<int64_t> bfloat16_statics_;
  int64_t products_per_row_ = 0, loop_weights_ = 0;
};

struct Request {
  bool is_double, descending;
  int64_t steps, batch, rows;
  const int64_t* batch_sizes;  // [steps], or null where all steps have `batch` rows
  std::vector<void*> streams, statics, states, new_states, origins, gradients;
};

struct Call {
  const Plan* plan;
  Request request;
};

// Whether two such calls take less time side by side, on half of the threads each, than in turn.
bool is_better_together(const Call& call, int64_t threads);

// Runs all calls at the same time, of one dtype, that share the threads. `poll` is asked by the
// thread that calls this. Returns false if it asked to stop; the results are then incomplete.
bool run(const std::vector<const Call*>& calls, int64_t threads, const Poll& poll);

}  // namespace cello
