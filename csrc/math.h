// Elementary functions on vectors. Each errs by at most about 2 units in the last place, denormals
// included, and treats infinities, NaN and signed zeros as torch does; tests/math_test.cc measures
// it.
//
// Polynomials marked "own fit" are minimax (Remez) fits made for these files at 300 bits and
// rounded to the type. Nothing relies on a fused multiply-add, and contracting any product into one
// does no harm: products that have to be exact are, because their factors have few bits.
//
// Include it as "math.h" and keep this folder off the path searched for <math.h>.
#pragma once

#include "math_double.h"
#include "math_exp.h"
#include "math_library.h"
#include "math_sigmoid.h"
#include "math_vector.h"
