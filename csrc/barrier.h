// The barrier at which the threads of a team meet, and how they leave it early.
#pragma once

#include "schedule.h"
#include "simd.h"
#include "wait.h"

#if !defined(__x86_64__) && !defined(__i386__)
#define CELLO_PAUSE()
#else
#define CELLO_PAUSE() __builtin_ia32_pause()
#endif

namespace cello {
namespace CELLO_ISA {

CELLO_INLINE bool has_stopped(const Team* team) {
  return __atomic_load_n(&team->stopped, __ATOMIC_ACQUIRE) != 0;
}

// Lets those go on that wait for a phase to end. Either they see the new one before they fall
// asleep, or they are seen here.
CELLO_INLINE void end_phase(Team* team) {
  __atomic_add_fetch(&team->phase, 1, __ATOMIC_SEQ_CST);
  if (__atomic_load_n(&team->asleep, __ATOMIC_SEQ_CST) > 0) wake_all(&team->phase);
}

CELLO_INLINE void stop(Team* team) {
  __atomic_store_n(&team->stopped, 1, __ATOMIC_RELEASE);
  end_phase(team);
}

// Threads with a core each seldom wait longer for each other. Who does waits for a thread without a
// core, and may be what keeps it from one.
constexpr int kSpins = 200;

// False if all are to leave: whoever goes on then would read what nobody has written.
CELLO_INLINE bool wait_for_all(Team* team) {
  if (team->size == 1) return !has_stopped(team);
  const int32_t phase = __atomic_load_n(&team->phase, __ATOMIC_ACQUIRE);
  if (__atomic_add_fetch(&team->arrived, 1, __ATOMIC_ACQ_REL) == team->size) {
    __atomic_store_n(&team->arrived, 0, __ATOMIC_RELAXED);
    end_phase(team);
    return true;
  }
  const auto is_over = [&] {
    return has_stopped(team) || __atomic_load_n(&team->phase, __ATOMIC_ACQUIRE) != phase;
  };
  for (int spins = 0; !is_over() && spins < kSpins; ++spins) CELLO_PAUSE();
  while (!is_over()) {
    __atomic_add_fetch(&team->asleep, 1, __ATOMIC_SEQ_CST);
    sleep_while(&team->phase, phase);
    __atomic_sub_fetch(&team->asleep, 1, __ATOMIC_RELAXED);
  }
  return !has_stopped(team);  // whoever is missing may have left
}

}  // namespace CELLO_ISA
}  // namespace cello
