#include "division.h"

#include <algorithm>

#include "threads.h"

namespace cello {
namespace {

// Multiplications and additions that one core does in a microsecond, roughly.
constexpr double kWorkPerMicrosecond = 5e4;
// Microseconds of work that are worth more threads than one.
constexpr double kWorthThreads = 20.0;
// Bytes of the buffers of a chunk whose rows are summed up behind it.
constexpr double kChunkBytes = 32 << 20;
// Weights that stay in the second-level cache beside everything else.
constexpr int64_t kCachedWeights = 1 << 20;
// Rows that use a weight often enough to hide the time that it takes to come from beyond, and to
// hide some of it.
constexpr int64_t kRowsToHideWeights = 12, kRowsToHideSomeWeights = 4;

// Microseconds of one core.
double work(const Schedule& schedule, const Request& request) {
  // Pointwise work counts too: some tens of operations for each number that a product makes.
  return static_cast<double>(request.rows) * static_cast<double>(schedule.products_per_row()) /
         kWorkPerMicrosecond;
}

}  // namespace

Division divide(const Schedule& schedule, const Request& request, int64_t threads) {
  const Loop& loop = schedule.loop();
  const double rows = static_cast<double>(request.rows) / static_cast<double>(request.steps);
  const double places = static_cast<double>(schedule.places());
  const double step = work(schedule, request) / static_cast<double>(request.steps);
  Division out{threads, false, false, false, 1};
  const int64_t number = request.is_double ? 8 : 4;
  const bool is_cached = schedule.loop_weights() * number <= kCachedWeights;
  if (out.threads > 1) {
    const double share = rows / static_cast<double>(out.threads);
    const bool by_rows =
        (share >= 1.0 && share * places >= static_cast<double>(kRowsToHideWeights)) ||
        (is_cached && share >= 2.0);
    if (!by_rows && step >= 2.0) {
      out.by_columns = true;
    } else if (share < 1.0 || work(schedule, request) < kWorthThreads) {
      out.threads = 1;
    }
  }
  const bool gathers = loop.outer_count > 0 || loop.after_count > 0;
  const bool is_split = !out.by_columns && out.threads > 1;
  const double widest = kChunkBytes / static_cast<double>(1 + schedule.chunk_width() * number);
  const double chunk_rows = gathers ? std::max(std::min(1024.0 / places, widest), 1.0)
                            : loop.before_count
                                ? 64.0 * static_cast<double>(is_split ? out.threads : 1)
                                : rows;
  // Rows of a thread that go through a product at once: enough of them hide the time that the
  // weights of the input take to come from the cache, and nothing is gained by doing several steps
  // at once.
  const double together = rows * places / (is_split ? static_cast<double>(out.threads) : 1.0);
  out.joins_terms = together >= 8.0;
  out.by_blocks = out.threads > 1 && !request.batch_sizes && (out.by_columns || out.joins_terms);
  if (out.joins_terms && !gathers) {
    out.chunk_steps = 1;
    return out;
  }
  out.chunk_steps =
      std::min(request.steps, std::max<int64_t>(1, static_cast<int64_t>(chunk_rows / rows + 0.5)));
  return out;
}

bool are_worth_threads(const std::vector<const Call*>& calls) {
  double all = 0;
  for (const Call* call : calls) all += work(*call->schedule, call->request);
  return all >= kWorthThreads;
}

bool is_better_together(const Call& call, int64_t threads) {
  const Request& request = call.request;
  // Each team reads all weights of its direction, and not a share of those of one after the other.
  const int64_t bytes = call.schedule->loop_weights() * (request.is_double ? 8 : 4);
  const bool hides_weights = request.rows >= kRowsToHideSomeWeights * request.steps;
  return usable_threads(threads) > 1 && bytes < (hides_weights ? 4 : 1) * kCachedWeights;
}

}  // namespace cello
