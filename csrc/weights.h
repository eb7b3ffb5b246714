// What the threads of a team do with the weights before the first step: they pack the matrices,
// each a range of panels, and sum the biases.
#pragma once

#include "pack.h"
#include "rounded.h"
#include "schedule.h"

namespace cello {
namespace CELLO_ISA {

// Where a thread's range of [0, count) begins; the next thread's is where it ends.
CELLO_INLINE int64_t share(int64_t count, int64_t thread, int64_t threads) {
  return count * thread / threads;
}

// The panels [begin, end) of a matrix of pairs: for each term that uses it the rows that it uses,
// in whole units of its own.
inline void pack_rounded(const Job& job, int64_t m, int64_t begin, int64_t end) {
  constexpr int64_t width = kPanel<Pair>;
  const Matrix& matrix = job.loop->matrices[m];
  const int64_t depth = job.depths[m] / 2;
  for (int64_t t = 0; t < job.loop->term_count; ++t) {
    const Term& term = job.loop->terms[t];
    if (term.matrix != m) continue;
    Pair* packed = static_cast<Pair*>(job.packed[m]) + job.firsts[t] / 2 * width;
    const int64_t pairs = padded_depth(term.K) / 2;
    for (int64_t panel = begin; panel < end; ++panel) {
      // What no weight is written to: columns of the last panel, and the rows behind the last.
      const int64_t kept = (panel + 1) * width > matrix.N ? 0 : term.K / 2;
      memset(packed + (panel * depth + kept) * width, 0, (pairs - kept) * width * sizeof(Pair));
    }
    for (int64_t i = 0; i < matrix.piece_count; ++i) {
      const Piece& piece = matrix.pieces[i];
      const int64_t k = max_of(piece.k0, term.k0);
      const int64_t k_end = min_of(piece.k0 + piece.K, term.k0 + term.K);
      const int64_t n = max_of(begin * width, piece.n0);
      const int64_t n_end = min_of(end * width, piece.n0 + piece.N);
      if (k >= k_end || n >= n_end) continue;
      const Bfloat16* w = static_cast<const Bfloat16*>(job.tensors.statics[piece.index]) +
                          piece.offset + (k - piece.k0) * piece.k_stride +
                          (n - piece.n0) * piece.n_stride;
      const bool ends = k_end == term.k0 + term.K || (k_end - term.k0) % 2 == 0;
      pack_pairs(w, piece.k_stride, piece.n_stride, k_end - k, k - term.k0, n_end - n, n, matrix.N,
                 (k - term.k0) % 2 == 0 && ends, packed, depth);
    }
  }
}

// Zeros for the columns of the last panel that a matrix does not have.
template <typename T>
void clear_last_columns(const Matrix& matrix, const Piece& piece, int64_t begin, int64_t end,
                        T* packed) {
  constexpr int64_t width = kPanel<T>;
  const int64_t panel = (matrix.N - 1) / width;
  if (panel < begin || panel >= end) return;
  T* to = packed + (panel * matrix.K + piece.k0) * width;
  for (int64_t k = 0; k < piece.K; ++k) {
    for (int64_t j = (matrix.N - 1) % width + 1; j < width; ++j) to[k * width + j] = 0;
  }
}

// One weight's part of the panels [begin, end) of a matrix.
template <typename T>
void pack_piece(const Job& job, const Matrix& matrix, const Piece& piece, int64_t begin,
                int64_t end, T* packed) {
  constexpr int64_t width = kPanel<T>;
  const T* w = static_cast<const T*>(job.tensors.statics[piece.index]) + piece.offset;
  const int64_t last = piece.n0 + piece.N;
  if (piece.n0 % width == 0 && (last % width == 0 || last == matrix.N)) {
    const int64_t first = piece.n0 / width;
    const int64_t from = max_of(begin, first), to = min_of(end, ceil_div(last, width));
    if (from < to) {
      pack(w, piece.k_stride, piece.n_stride, piece.K, piece.N, from - first, to - first,
           packed + (first * matrix.K + piece.k0) * width, matrix.K);
    }
    return;
  }
  // The piece begins or ends within a panel.
  if (piece.n0 + piece.N == matrix.N) clear_last_columns(matrix, piece, begin, end, packed);
  for (int64_t n = max_of(begin * width, piece.n0); n < min_of(end * width, last);) {
    const int64_t stop = min_of(min_of(end * width, last), (n / width + 1) * width);
    T* to = packed + (n / width * matrix.K + piece.k0) * width;
    // Sixteen k at a time keep the lines of a transposed weight in the cache.
    for (int64_t k0 = 0; k0 < piece.K; k0 += 16) {
      const int64_t k1 = min_of(piece.K, k0 + 16);
      for (int64_t column = n; column < stop; ++column) {
        const T* from = w + (column - piece.n0) * piece.n_stride;
        for (int64_t k = k0; k < k1; ++k) to[k * width + column % width] = from[k * piece.k_stride];
      }
    }
    n = stop;
  }
}

// This thread's panels of all matrices.
template <typename T>
void pack_weights(const Job& job, int64_t thread) {
  const int64_t threads = job.team->size;
  for (int64_t m = 0; m < job.loop->matrix_count; ++m) {
    const Matrix& matrix = job.loop->matrices[m];
    const int64_t panels = ceil_div(matrix.N, kPanel<T>);
    const int64_t begin = share(panels, thread, threads), end = share(panels, thread + 1, threads);
    T* packed = static_cast<T*>(job.packed[m]);
    if (!packed) continue;
    if constexpr (kMayRound<T>) {
      if (matrix.is_bfloat16) {
        pack_rounded(job, m, begin, end);
        continue;
      }
    }
    for (int64_t i = 0; i < matrix.piece_count; ++i) {
      pack_piece(job, matrix, matrix.pieces[i], begin, end, packed);
    }
  }
}

// The sum of the vectors that a term starts from; zeros beyond its last column.
template <typename T>
void sum_biases(const Job& job, int64_t thread) {
  for (int64_t t = thread; t < job.loop->term_count; t += job.team->size) {
    T* bias = static_cast<T*>(job.biases[t]);
    if (!bias) continue;
    const int64_t N = job.loop->matrices[job.loop->terms[t].matrix].N;
    memset(bias, 0, ceil_div(N, kPanel<T>) * kPanel<T> * sizeof(T));
    for (int64_t i = 0; i < job.loop->bias_count; ++i) {
      const Bias& part = job.loop->biases[i];
      if (part.term != t) continue;
      const T* from = static_cast<const T*>(job.tensors.statics[part.index]) + part.offset;
      for (int64_t j = 0; j < part.width; ++j) bias[part.column + j] += from[j];
    }
  }
}

}  // namespace CELLO_ISA
}  // namespace cello
