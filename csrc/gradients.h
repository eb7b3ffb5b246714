// Gradients of weights: products over all rows of a chunk of steps, sums over the rows of all
// steps, and both put together at the end.
#pragma once

#include "outer.h"
#include "rounded.h"
#include "schedule.h"

namespace cello {
namespace CELLO_ISA {

// Adds the products of a chunk's rows to this thread's range [begin, end) of a gradient's rows.
// `left` and `right` are the chunk's first rows, as far apart as `strides` says.
template <typename T>
void add_outer(const Job& job, int64_t index, int64_t rows, const T* left, const T* right,
               const int64_t (&strides)[2], int64_t begin, int64_t end, T* scratch) {
  const Outer& o = job.loop->outers[index];
  // Of several weights: their gradients one below the other, [N][K], divided at the end.
  T* total = static_cast<T*>(job.outers[index]);
  const Slice& slice = o.slices[0];
  T* gradient = static_cast<T*>(job.tensors.gradients[slice.index]);
  if (!total && !gradient) return;
  T* to = total ? total : gradient + slice.offset;
  const int64_t n_stride = total ? o.K : slice.n_stride, k_stride = total ? 1 : slice.k_stride;
  if constexpr (kMayRound<T>) {
    if (o.is_bfloat16) {
      outer_rounded(rows, left, strides[0], right, strides[1], begin, end, o.K, to, n_stride,
                    k_stride, true, reinterpret_cast<Pair*>(scratch));
      return;
    }
  }
  outer<T>(rows, left, strides[0], right, strides[1], begin, end, o.K, to, n_stride, k_stride, true,
           scratch);
}

// Adds the sums of all threads, and adds them to the gradients that they are of.
template <typename T>
void gather_sums(const Job& job) {
  int64_t skipped = 0;
  for (int64_t s = 0; s < job.loop->sum_count; ++s) {
    double* total = job.sums + skipped;
    for (int64_t other = 1; other < job.team->size; ++other) {
      const double* part = total + other * job.sums_width;
      for (int64_t i = 0; i < job.loop->sums[s]; ++i) total[i] += part[i];
    }
    skipped += job.loop->sums[s];
  }
  for (int64_t i = 0; i < job.loop->target_count; ++i) {
    const Target& target = job.loop->targets[i];
    T* gradient = static_cast<T*>(job.tensors.gradients[target.index]);
    if (!gradient) continue;
    skipped = 0;
    for (int64_t s = 0; s < target.sum; ++s) skipped += job.loop->sums[s];
    const double* sum = job.sums + skipped + target.skipped;
    for (int64_t a = 0; a < target.sizes[0]; ++a) {
      for (int64_t b = 0; b < target.sizes[1]; ++b) {
        for (int64_t c = 0; c < target.sizes[2]; ++c) {
          gradient[target.offset + a * target.strides[0] + b * target.strides[1] +
                   c * target.strides[2]] += static_cast<T>(*sum++);
        }
      }
    }
  }
}

// Adds the gradients of several weights, gathered as one, to each. Slices may be of one weight,
// and sums of the same, so that one thread does it all.
template <typename T>
void divide_outers(const Job& job) {
  for (int64_t i = 0; i < job.loop->outer_count; ++i) {
    const Outer& o = job.loop->outers[i];
    const T* total = static_cast<const T*>(job.outers[i]);
    if (!total) continue;
    for (int64_t p = 0; p < o.slice_count; ++p) {
      const Slice& slice = o.slices[p];
      T* gradient = static_cast<T*>(job.tensors.gradients[slice.index]);
      if (!gradient) continue;
      for (int64_t n = 0; n < slice.N; ++n) {
        const T* from = total + (slice.first + n) * o.K;
        T* to = gradient + slice.offset + n * slice.n_stride;
        for (int64_t k = 0; k < o.K; ++k) to[k * slice.k_stride] += from[k];
      }
    }
  }
}

}  // namespace CELLO_ISA
}  // namespace cello
