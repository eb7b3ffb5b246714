// Random numbers for the tests: the same in each run.
#pragma once

#include <stdint.h>

// Marsaglia's xorshift.
inline uint64_t random_bits() {
  static uint64_t state = 88172645463325252ull;
  state ^= state << 13;
  state ^= state >> 7;
  return state ^= state << 17;
}

inline int64_t between(int64_t low, int64_t high) {
  return low + static_cast<int64_t>((random_bits() >> 11) % static_cast<uint64_t>(high - low + 1));
}
