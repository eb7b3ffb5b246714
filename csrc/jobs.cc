#include "jobs.h"

#include "threads.h"

#if defined(__SSE__) || defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace cello {
namespace {

// Numbers too small for the normal format count as zero while this lives: they cost a hundred
// cycles.
class FlushDenormals {
 public:
#if defined(__SSE__) || defined(__x86_64__)
  FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#elif defined(__aarch64__)
  FlushDenormals() {
    __asm__ volatile("mrs %0, fpcr" : "=r"(before_));
    __asm__ volatile("msr fpcr, %0" : : "r"(before_ | (1ull << 24)));
  }
  ~FlushDenormals() { __asm__ volatile("msr fpcr, %0" : : "r"(before_)); }

 private:
  uint64_t before_;
#endif
};

// Runs all jobs, each by one thread and one after the other.
void in_turn(const Kernels& kernels, const std::vector<const Job*>& jobs, bool is_double) {
  FlushDenormals flush;
  for (const Job* job : jobs) {
    job->team->size = 1;
    Job alone = *job;  // whom it would follow does not ask any more
    alone.poll = jobs.front()->poll;
    kernels.run(alone, 0, is_double);
    if (job->team->stopped) return;
  }
}

// What one of the threads does that run all jobs at the same time.
void take_part(const Kernels& kernels, const std::vector<const Job*>& jobs, int64_t thread,
               bool is_double) {
  FlushDenormals flush;
  for (const Job* job : jobs) {
    if (thread < job->team->size) return kernels.run(*job, thread, is_double);
    thread -= job->team->size;
  }
}

}  // namespace

void in_parallel(const Kernels& kernels, const std::vector<const Job*>& jobs, bool is_double,
                 int64_t usable) {
  int64_t threads = 0;
  for (const Job* job : jobs) threads += job->team->size;
  const bool is_run =
      threads > 1 && threads <= usable &&
      side_by_side(threads, [&](int64_t thread) { take_part(kernels, jobs, thread, is_double); });
  if (!is_run) in_turn(kernels, jobs, is_double);
}

}  // namespace cello
