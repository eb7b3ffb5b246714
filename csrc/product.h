// Products of matrices for recurrent layers: small and middling sizes, one thread at a time.
//
// An output is summed over k in one fixed order whatever the number of rows, the range of panels or
// the direction, so that results depend neither on the number of threads nor on the rows beside
// them.
#pragma once

#include "multiply.h"
#include "multiply_unpacked.h"
#include "outer.h"
#include "pack.h"
