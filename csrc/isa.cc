// The part of the engine that is compiled once for each instruction set.
#include "steps.h"

namespace cello {
namespace CELLO_ISA {
namespace {

int64_t packed_numbers(int64_t K, int64_t N, bool is_double) {
  return is_double ? packed_size<double>(K, N) : packed_size<float>(K, N);
}

int64_t scratch_bytes(const Loop& loop, int64_t chunk_rows, bool is_double) {
  return is_double ? Runner<double>::scratch_bytes(loop, chunk_rows)
                   : Runner<float>::scratch_bytes(loop, chunk_rows);
}

void run(const Job& job, int64_t thread, bool is_double) {
  if (is_double) {
    Runner<double>(job, thread).run();
  } else {
    Runner<float>(job, thread).run();
#if defined(__AMX_BF16__)
    AmxTiles::release();
#endif
  }
}

}  // namespace

#define CELLO_STRING(name) #name
#define CELLO_NAME(name) CELLO_STRING(name)
const Kernels kernels = {
    CELLO_NAME(CELLO_ISA), CELLO_VECTOR_BYTES, kMultipliesBfloat16 ? kDepthUnit : 0,
    packed_numbers,        scratch_bytes,      run};

}  // namespace CELLO_ISA

#define CELLO_JOIN(a, b) a##b
#define CELLO_FUNCTION(isa) CELLO_JOIN(isa, _kernels)
const Kernels* CELLO_FUNCTION(CELLO_ISA)() { return &CELLO_ISA::kernels; }

}  // namespace cello
