#include "run.h"

#include <algorithm>
#include <memory>
#include <stdexcept>

#include "instruction_sets.h"
#include "jobs.h"
#include "prepared.h"
#include "threads.h"

namespace cello {

bool run(const std::vector<const Call*>& calls, int64_t threads, const Poll& poll) {
  const Kernels& isa = kernels();
  const bool is_double = calls.front()->request.is_double;
  const int64_t count = static_cast<int64_t>(calls.size());
  const bool is_worth_it = count == 1 || are_worth_threads(calls);
  const int64_t usable = is_worth_it ? usable_threads(threads) : 1;
  std::vector<std::unique_ptr<Prepared>> prepared;
  std::vector<const Job*> jobs;
  const int64_t share = std::max<int64_t>(1, usable / count);
  for (const Call* call : calls) {
    if (call->request.is_double != is_double) {
      throw std::invalid_argument("calls of several dtypes");
    }
    const Poll& asked = jobs.empty() ? poll : prepared.front()->poll_of_followers();
    prepared.push_back(std::make_unique<Prepared>(isa, *call, share, asked));
    jobs.push_back(prepared.back()->job());
  }
  in_parallel(isa, jobs, is_double, usable);
  return std::none_of(prepared.begin(), prepared.end(),
                      [](const auto& loop) { return loop->has_stopped(); });
}

}  // namespace cello
