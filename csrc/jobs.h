// How the threads of a call run its jobs.
#pragma once

#include <cstdint>
#include <vector>

#include "schedule.h"

namespace cello {

// Runs all jobs at the same time, by as many threads as their teams have; in turn, each by one
// thread, where these are more than `usable`.
void in_parallel(const Kernels& kernels, const std::vector<const Job*>& jobs, bool is_double,
                 int64_t usable);

}  // namespace cello
