// The threads that run one call together.
#pragma once

#include <cstdint>
#include <functional>

namespace cello {

// Whether these are the threads of the OpenMP library that torch uses. If not, each call starts its
// own.
bool shares_threads();

// How many of `asked` threads a call can have here.
int64_t usable_threads(int64_t asked);

// Calls part(0), ..., part(count - 1) on as many threads at the same time, part(0) on this one.
// Returns false, and calls none of them, where there are not so many threads.
bool side_by_side(int64_t count, const std::function<void(int64_t)>& part);

}  // namespace cello
