#include "threads.h"

#include <unistd.h>

#if defined(__SSE__) || defined(__x86_64__)
#include <xmmintrin.h>
#endif
#if defined(CELLO_POOL_STD_THREAD)
#include <thread>
#elif defined(_OPENMP)
#include <omp.h>
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

// A thread of a pool does not live on in a forked process, and waiting for it would never end.
const pid_t kProcess = getpid();

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

int64_t usable_threads(int64_t asked) {
#if defined(CELLO_POOL_STD_THREAD)
  return asked;
#elif defined(_OPENMP)
  return getpid() == kProcess && !omp_in_parallel() ? asked : 1;
#else
  (void)asked;
  return 1;
#endif
}

void in_parallel(const Kernels& kernels, const std::vector<const Job*>& jobs, bool is_double,
                 int64_t usable) {
  int64_t threads = 0;
  for (const Job* job : jobs) threads += job->team->size;
  if (threads == 1 || threads > usable) return in_turn(kernels, jobs, is_double);
#if defined(CELLO_POOL_STD_THREAD)
  std::vector<std::thread> others;
  for (int64_t thread = 1; thread < threads; ++thread) {
    others.emplace_back(
        [&kernels, &jobs, thread, is_double] { take_part(kernels, jobs, thread, is_double); });
  }
  take_part(kernels, jobs, 0, is_double);
  for (std::thread& other : others) other.join();
#elif defined(_OPENMP)
#pragma omp parallel num_threads(static_cast<int>(threads))
  {
    // Fewer threads than asked for would wait for each other for ever.
    if (omp_get_num_threads() == threads) {
      take_part(kernels, jobs, omp_get_thread_num(), is_double);
    } else if (omp_get_thread_num() == 0) {
      in_turn(kernels, jobs, is_double);
    }
  }
#endif
}

}  // namespace cello
