// Runs of loops: the engine's entry point.
#pragma once

#include <cstdint>
#include <vector>

#include "division.h"

namespace cello {

// Runs all calls at the same time, of one dtype, that share the threads. `poll` is asked by the
// thread that calls this. Returns false if it asked to stop; the results are then incomplete.
bool run(const std::vector<const Call*>& calls, int64_t threads, const Poll& poll);

}  // namespace cello
