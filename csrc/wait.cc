#include "wait.h"

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <sched.h>
#endif

namespace cello {

#if defined(__linux__)

// The kernel compares and falls asleep in one, so that no call of the other function gets lost.
void sleep_while(const int32_t* word, int32_t value) {
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}

void wake_all(const int32_t* word) {
  constexpr int kAll = INT32_MAX;
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, kAll, nullptr, nullptr, 0);
}

#else

void sleep_while(const int32_t*, int32_t) { sched_yield(); }

void wake_all(const int32_t*) {}

#endif

}  // namespace cello
