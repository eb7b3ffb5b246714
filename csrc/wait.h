// How a thread that waits for others lets go of its core.
#pragma once

#include <stdint.h>

namespace cello {

// Sleeps while *word is `value`, until somebody calls `wake_all`. May return before.
void sleep_while(const int32_t* word, int32_t value);

void wake_all(const int32_t* word);

}  // namespace cello
