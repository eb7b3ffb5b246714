// How the work of a call is divided: among threads, by rows or by columns, and in chunks of steps.
#pragma once

#include <cstdint>
#include <vector>

#include "lists.h"

namespace cello {

// A batch that a loop runs over; all memory is the caller's.
struct Request {
  bool is_double, descending;
  int64_t steps, batch, rows;
  const int64_t* batch_sizes;  // [steps], or null where all steps have `batch` rows
  std::vector<void*> streams, statics, states, new_states, origins, gradients;
};

struct Call {
  const Schedule* schedule;
  Request request;
};

// How a call is divided.
struct Division {
  int64_t threads;
  bool by_columns, by_blocks, joins_terms;
  int64_t chunk_steps;
};

Division divide(const Schedule& schedule, const Request& request, int64_t threads);

// Whether the work of all these calls is worth more threads than one.
bool are_worth_threads(const std::vector<const Call*>& calls);

// Whether two such calls take less time side by side, on half of the threads each, than in turn.
bool is_better_together(const Call& call, int64_t threads);

}  // namespace cello
