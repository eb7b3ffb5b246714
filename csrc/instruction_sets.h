// The choice of an instruction set.
#pragma once

#include <string>
#include <vector>

#include "schedule.h"

namespace cello {

// The instruction sets that were compiled and that this machine has, best first. The environment
// variable CELLO_ISA leaves only the one that it names; it is read at the first call. Throws
// std::invalid_argument where it names none of them.
const std::vector<std::string>& instruction_sets();

// What the first of them offers.
const Kernels& kernels();

// Whether the one in use multiplies in bfloat16.
bool multiplies_bfloat16();

}  // namespace cello
