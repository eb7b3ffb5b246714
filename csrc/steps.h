// One thread's part of a call: the chunks, the steps and their stages.
//
// Work is split in one of two ways. By rows: a thread owns some rows of the batch and takes them
// through all steps by itself; threads meet only where gradients of weights are gathered. By
// columns: a product is split into ranges of panels and everything else by rows, and the threads
// meet after every stage; that is for few rows with large weights, which all threads would have to
// read.
#pragma once

#include "barrier.h"
#include "fusion.h"
#include "gradients.h"
#include "product.h"
#include "rounded.h"
#include "weights.h"

namespace cello {
namespace CELLO_ISA {

// Bytes of tiles that fit the innermost cache beside what streams through it.
constexpr int64_t kTileBytes = 24 << 10;
constexpr int64_t kMaxTileRows = 16;

template <typename T>
int64_t tile_width(int64_t width) {
  return ceil_div(width, kLanes<T>) * kLanes<T>;
}

// Rows of a step, or of several steps in turn: begin, begin + step, ...
struct Part {
  int64_t begin, step, count;
};

template <typename T>
class Runner {
 public:
  Runner(const Job& job, int64_t thread)
      : job_(job),
        loop_(*job.loop),
        sequence_(job.sequence),
        thread_(thread),
        threads_(job.team->size),
        row_step_(job.by_blocks ? 1 : threads_) {
    char* scratch = static_cast<char*>(job.scratch) + thread * job.scratch_bytes;
    tiles_ = reinterpret_cast<T*>(scratch);
    const int64_t width = all_tiles(loop_);
    tile_rows_ = rows_of_tile(width);
    scratch_ = tiles_ + width * tile_rows_;
    sums_ = job.sums + thread * job.sums_width;
  }

  static int64_t scratch_bytes(const Loop& loop, int64_t chunk_rows) {
    int64_t numbers = 0;  // a pair takes as much room as a float
    for (int64_t i = 0; i < loop.outer_count; ++i) {
      const Outer& o = loop.outers[i];
      const int64_t rows = max_of(chunk_rows, o.places);
      numbers = max_of(numbers, outer_scratch<T>(rows, o.N, o.K));
      if constexpr (kMayRound<T>) numbers = max_of(numbers, outer_rounded_scratch(rows, o.N, o.K));
    }
    if constexpr (kMayRound<T>) {
      for (int64_t i = 0; i < loop.term_count; ++i) {
        const Term& term = loop.terms[i];
        if (!loop.matrices[term.matrix].is_bfloat16) continue;
        const int64_t other = term.partner >= 0 ? loop.terms[term.partner].K : 0;
        const int64_t rows = max_of(chunk_rows, term.places);
        numbers = max_of(numbers, rounded_scratch(rows, term.K, 0));
        numbers = max_of(numbers, rounded_scratch(rows, other, term.K));
      }
    }
    const int64_t width = all_tiles(loop);
    return (width * rows_of_tile(width) + numbers) * static_cast<int64_t>(sizeof(T));
  }

  void run() {
    pack_weights<T>(job_, thread_);
    sum_biases<T>(job_, thread_);
    enter_states();
    if (!wait_for_all(job_.team)) return;
    const int64_t T_ = sequence_.steps;
    for (int64_t first = 0; first < T_; first += job_.chunk_steps) {
      const int64_t last = min_of(T_, first + job_.chunk_steps);
      const int64_t low = sequence_.descending ? T_ - last : first;
      const int64_t high = sequence_.descending ? T_ - first : last;
      chunk_start_ = start(low);
      for (int64_t i = 0; i < loop_.before_count; ++i) {
        const int64_t term = loop_.before[i];
        if (is_shared_otherwise(loop_.before, i) && !wait_for_all(job_.team)) return;
        if (!job_.joins_terms || !is_partner(term)) chunk_product(term, low, high, false);
      }
      if (job_.by_columns && loop_.before_count && !wait_for_all(job_.team)) return;
      for (int64_t s = first; s < last; ++s) {
        if (thread_ == 0 && job_.poll.ask(job_.poll.context)) stop(job_.team);
        if (has_stopped(job_.team)) return;
        if (!step(sequence_.descending ? T_ - 1 - s : s, s)) return;
      }
      if (!finish_chunk(low, high)) return;
      // In a packed batch a place in a chunk's buffers belongs to another thread in the next chunk.
      const bool is_shared = sequence_.batch_sizes && !job_.by_columns && job_.chunk_steps > 1;
      if (is_shared && !wait_for_all(job_.team)) return;
    }
    if (!wait_for_all(job_.team)) return;
    leave_states();
    if (!wait_for_all(job_.team)) return;
    if (thread_ == 0) {
      gather_sums<T>(job_);
      divide_outers<T>(job_);
    }
  }

 private:
  // Numbers that all tiles hold for a row.
  static int64_t all_tiles(const Loop& loop) {
    int64_t width = 0;
    for (int64_t i = 0; i < loop.tile_count; ++i) width += tile_width<T>(loop.tiles[i]);
    return width;
  }

  static int64_t rows_of_tile(int64_t width) {
    const int64_t bytes = width * static_cast<int64_t>(sizeof(T));
    return bytes ? max_of(1, min_of(kMaxTileRows, kTileBytes / bytes)) : 4;
  }

  Pair* pairs() const { return reinterpret_cast<Pair*>(scratch_); }

  int64_t start(int64_t t) const {
    return sequence_.starts ? sequence_.starts[t] : t * sequence_.batch;
  }

  int64_t batch(int64_t t) const {
    return sequence_.batch_sizes ? sequence_.batch_sizes[t] : sequence_.batch;
  }

  // Those of `rows` rows of a step that are this thread's. Neighbours are best: where two threads
  // write to lines next to each other, each fetches the other's. But where sequences end, all
  // threads are to have as much to do.
  Part own(int64_t rows) const {
    if (job_.by_blocks) {
      const int64_t begin = begin_of(sequence_.batch);
      return {begin, 1, max_of(0, min_of(rows, end_of(sequence_.batch)) - begin)};
    }
    return {thread_, threads_, rows > thread_ ? ceil_div(rows - thread_, threads_) : 0};
  }

  // This thread's range of [0, count), where work is split into ranges.
  int64_t begin_of(int64_t count) const { return share(count, thread_, threads_); }
  int64_t end_of(int64_t count) const { return share(count, thread_ + 1, threads_); }

  T* base(int64_t buffer) const { return static_cast<T*>(job_.places[buffer].base); }

  // Where the rows of a step begin in a buffer.
  T* at(int64_t buffer, int64_t step_start) const {
    const Place& place = job_.places[buffer];
    T* p = static_cast<T*>(place.base);
    switch (loop_.buffers[buffer].space) {
      case kStream:
        return p + step_start * place.stride;
      case kChunk:
        return p + (step_start - chunk_start_) * place.stride;
      default:
        return p;
    }
  }

  void enter_states() { copy_states(job_.tensors.states, nullptr); }

  void leave_states() { copy_states(nullptr, job_.tensors.new_states); }

  void copy_states(const void* const* from, void* const* to) {
    for (int64_t b = 0; b < loop_.buffer_count; ++b) {
      const Buffer& buffer = loop_.buffers[b];
      if (buffer.space != kState) continue;
      const Part part = own(sequence_.batch);
      for (int64_t r = 0; r < part.count; ++r) {
        const int64_t row = part.begin + r * part.step;
        T* inside = base(b) + row * job_.places[b].stride;
        if (from) {
          const T* outside = static_cast<const T*>(from[buffer.index]) + row * buffer.width;
          memcpy(inside, outside, buffer.width * sizeof(T));
        } else {
          T* outside = static_cast<T*>(to[buffer.index]) + row * buffer.width;
          memcpy(outside, inside, buffer.width * sizeof(T));
        }
      }
    }
  }

  // False if all are to leave, like the others that wait.
  bool step(int64_t t, int64_t parity) {
    const int64_t rows = batch(t), first = start(t);
    // The forward loop went the other way: its step before this one is our next.
    const int64_t before = sequence_.descending ? t - 1 : t + 1;
    const bool is_first = before < 0 || before == sequence_.steps;
    going_ = is_first ? 0 : batch(before);
    previous_ = is_first ? 0 : start(before);
    const int direction = parity % 2 ? -1 : 1;
    for (int64_t i = 0; i < loop_.stage_count; ++i) {
      const Stage& stage = loop_.stages[i];
      if (stage.is_fusion) {
        fusion(stage, rows, first);
      } else {
        for (int64_t k = 0; k < stage.count; ++k) {
          if (is_shared_otherwise(stage.items, k) && !wait_for_all(job_.team)) return false;
          product(stage.items[k], multiplied(rows), first, job_.joins_terms, direction);
        }
      }
      if (job_.by_columns && !wait_for_all(job_.team)) return false;
    }
    return true;
  }

  // Whether the k-th of these terms adds to columns that an earlier one has split among the threads
  // in another way, so that it has to wait for all of them.
  bool is_shared_otherwise(const int64_t* terms, int64_t k) const {
    if (!job_.by_columns || threads_ == 1) return false;
    const Term& term = loop_.terms[terms[k]];
    const int64_t N = loop_.matrices[term.matrix].N;
    for (int64_t i = 0; i < k; ++i) {
      const Term& other = loop_.terms[terms[i]];
      const int64_t M = loop_.matrices[other.matrix].N;
      if (other.out != term.out || (other.out_offset == term.out_offset && M == N)) continue;
      if (other.out_offset < term.out_offset + N && term.out_offset < other.out_offset + M) {
        return true;
      }
    }
    return false;
  }

  bool is_partner(int64_t term) const {
    for (int64_t t = 0; t < loop_.term_count; ++t) {
      if (loop_.terms[t].partner == term) return true;
    }
    return false;
  }

  // Those of the rows of a step for which this thread computes its part of a product.
  Part multiplied(int64_t rows) const { return job_.by_columns ? Part{0, 1, rows} : own(rows); }

  // A term for rows that lie in streams and chunks from row `first` on.
  void product(int64_t index, const Part& part, int64_t first, bool joined, int direction) {
    const Term& term = loop_.terms[index];
    if (!job_.packed[term.matrix]) {
      if (joined && term.partner >= 0) unpacked_product(term.partner, part, first);
      unpacked_product(index, part, first);
      return;
    }
    const Matrix& matrix = loop_.matrices[term.matrix];
    const int64_t step = part.step, count = part.count;
    if (count == 0) return;
    const int64_t a_stride = job_.places[term.row].stride;
    const int64_t c_stride = job_.places[term.out].stride;
    Left<T> left = {at(term.row, first) + term.row_offset + part.begin * a_stride, a_stride * step,
                    term.K};
    int64_t accumulate = term.accumulate, starts = index, second_step = 0;
    int64_t first_step = term.row_step;
    if (joined && term.partner >= 0) {
      const Term& partner = loop_.terms[term.partner];
      const int64_t stride = job_.places[partner.row].stride;
      left = {at(partner.row, first) + partner.row_offset + part.begin * stride,
              stride * step,
              partner.K,
              left.a,
              left.stride,
              left.K};
      accumulate = partner.accumulate;
      starts = term.partner;
      second_step = first_step;
      first_step = partner.row_step;
    }
    const int64_t panels = ceil_div(matrix.N, kPanel<T>);
    const int64_t begin = job_.by_columns ? begin_of(panels) : 0;
    const int64_t end = job_.by_columns ? end_of(panels) : panels;
    const int64_t depth = job_.depths[term.matrix];
    const T* bias = static_cast<const T*>(job_.biases[starts]);
    T* c = at(term.out, first) + term.out_offset + part.begin * c_stride;
    const auto multiply_rows = [&](int64_t m, const Left<T>& a, T* to, int64_t to_stride) {
      if constexpr (kMayRound<T>) {
        if (matrix.is_bfloat16) {
          const Pair* packed = static_cast<const Pair*>(job_.packed[term.matrix]) +
                               job_.firsts[starts] / 2 * kPanel<Pair>;
          multiply_rounded(m, a, packed, depth, matrix.N, bias, begin, end, to, to_stride,
                           accumulate != 0, direction, pairs());
          return;
        }
      }
      multiply(m, a,
               static_cast<const T*>(job_.packed[term.matrix]) + job_.firsts[starts] * kPanel<T>,
               depth, matrix.N, bias, begin, end, to, to_stride, accumulate != 0, direction);
    };
    // The rows of a product are those of the batch at one place, or the places of one row.
    if (count >= term.places) {
      for (int64_t p = 0; p < term.places; ++p) {
        multiply_rows(count, left, c + p * term.out_step, c_stride * step);
        left.a += first_step;
        left.a2 += second_step;
      }
      return;
    }
    const Left<T> along = {left.a, first_step, left.K, left.a2, second_step, left.K2};
    for (int64_t r = 0; r < count; ++r) {
      Left<T> row = along;
      row.a += r * left.stride;
      row.a2 += r * left.stride2;
      multiply_rows(term.places, row, c + r * step * c_stride, term.out_step);
    }
  }

  // A term that reads the weights where they are.
  void unpacked_product(int64_t index, const Part& part, int64_t first) {
    for (int64_t p = 0; p < loop_.terms[index].places; ++p) unpacked_at(index, p, part, first);
  }

  void unpacked_at(int64_t index, int64_t place, const Part& part, int64_t first) {
    const Term& term = loop_.terms[index];
    const Matrix& matrix = loop_.matrices[term.matrix];
    const int64_t step = part.step, count = part.count;
    // The columns of packed products: another term of the same result may be one.
    const int64_t panels = ceil_div(matrix.N, kPanel<T>);
    const int64_t begin = job_.by_columns ? begin_of(panels) * kPanel<T> : 0;
    const int64_t end = job_.by_columns ? min_of(end_of(panels) * kPanel<T>, matrix.N) : matrix.N;
    const int64_t a_stride = job_.places[term.row].stride;
    const int64_t c_stride = job_.places[term.out].stride;
    const int64_t begin_a = part.begin * a_stride, begin_c = part.begin * c_stride;
    const T* a = at(term.row, first) + term.row_offset + place * term.row_step + begin_a;
    T* c = at(term.out, first) + term.out_offset + place * term.out_step + begin_c;
    if (!term.accumulate && begin < end) {
      const T* bias = static_cast<const T*>(job_.biases[index]);
      const int64_t bytes = (end - begin) * static_cast<int64_t>(sizeof(T));
      for (int64_t r = 0; r < count; ++r) {
        T* row = c + r * step * c_stride + begin;
        if (bias) {
          memcpy(row, bias + begin, bytes);
        } else {
          memset(row, 0, bytes);
        }
      }
    }
    for (int64_t i = 0; i < matrix.piece_count; ++i) {
      const Piece& piece = matrix.pieces[i];
      const int64_t k = max_of(piece.k0, term.k0);
      const int64_t K = min_of(piece.k0 + piece.K, term.k0 + term.K) - k;
      const int64_t n = max_of(begin - piece.n0, 0), N = min_of(end - piece.n0, piece.N);
      if (K <= 0 || n >= N) continue;
      const void* numbers = job_.tensors.statics[piece.index];
      if constexpr (kMayRound<T>) {
        if (matrix.is_bfloat16) {
          const Bfloat16* w = static_cast<const Bfloat16*>(numbers) + piece.offset;
          multiply_unpacked_rounded(count, a + (k - term.k0), a_stride * step, K,
                                    w + (k - piece.k0), piece.n_stride, n, N, c + piece.n0,
                                    c_stride * step, pairs());
          continue;
        }
      }
      const T* w = static_cast<const T*>(numbers) + piece.offset;
      multiply_unpacked<T>(count, a + (k - term.k0), a_stride * step, K, w + (k - piece.k0),
                           piece.n_stride, n, N, c + piece.n0, c_stride * step, true);
    }
  }

  // A term for all rows of the steps [low, high). Where the threads meet before and behind, any
  // rows may be this thread's.
  void chunk_product(int64_t term, int64_t low, int64_t high, bool is_shared) {
    const int64_t first = start(low), rows = start_end(high) - first;
    const bool is_even = !sequence_.batch_sizes && sequence_.batch % threads_ == 0;
    if (job_.by_columns) {
      product(term, {0, 1, rows}, first, false, 1);
    } else if (is_shared) {
      const int64_t begin = begin_of(rows);
      product(term, {begin, 1, end_of(rows) - begin}, first, false, 1);
    } else if (is_even && !job_.by_blocks) {
      product(term, own(rows), first, false, 1);
    } else {
      for (int64_t t = low; t < high; ++t) product(term, own(batch(t)), start(t), false, 1);
    }
  }

  int64_t start_end(int64_t t) const { return t == sequence_.steps ? sequence_.rows : start(t); }

  void fusion(const Stage& stage, int64_t rows, int64_t first) {
    const Part part = own(rows);
    const int64_t mine = part.count, going = own(min_of(rows, going_)).count;
    for (int64_t r = 0; r < mine;) {
      // Rows of a tile are all of sequences that go on, or all of sequences that begin.
      begins_ = r >= going;
      const int64_t count = min_of(tile_rows_, (begins_ ? mine : going) - r);
      for (int64_t i = 0; i < stage.count; ++i) {
        instruction(loop_.instructions[stage.items[i]], count, part.begin + r * part.step, first);
      }
      r += count;
    }
  }

  Block<T> block(const Operand& operand, int64_t row, int64_t first) const {
    const Buffer& buffer = loop_.buffers[operand.buffer];
    Block<T> out;
    out.outer = operand.strides[0];
    out.middle = operand.strides[1];
    out.inner = operand.strides[2];
    if (buffer.space == kTile) {
      int64_t skipped = 0;
      for (int64_t i = 0; i < buffer.index; ++i) skipped += tile_width<T>(loop_.tiles[i]);
      out.row = tile_width<T>(loop_.tiles[buffer.index]);
      out.base = tiles_ + skipped * tile_rows_ + operand.offset;
      return out;
    }
    if (buffer.space == kPrevious) {
      const Place& place = job_.places[operand.buffer];
      const int64_t stride = begins_ ? place.origin_stride : place.stride;
      T* start = begins_ ? static_cast<T*>(place.origin)
                         : static_cast<T*>(place.base) + previous_ * place.stride;
      out.row = stride * row_step_;
      out.base = start + row * stride + operand.offset;
      return out;
    }
    const int64_t stride = job_.places[operand.buffer].stride;
    out.row = stride * row_step_;
    out.base = at(operand.buffer, first) + row * stride + operand.offset;
    return out;
  }

  void instruction(const Instruction& code, int64_t count, int64_t row, int64_t first) {
    Block<T> in[4];
    for (int64_t k = 0; k < code.count; ++k) in[k] = block(code.in[k], row, first);
    if (code.op == kAccumulate) {
      int64_t skipped = 0;
      for (int64_t i = 0; i < code.out.buffer; ++i) skipped += loop_.sums[i];
      accumulate<T>(count, code.sizes, sums_ + skipped + code.out.offset, code.out.strides, in[0]);
      return;
    }
    execute<T>(code.op, count, code.sizes, block(code.out, row, first), in);
  }

  bool finish_chunk(int64_t low, int64_t high) {
    if (loop_.after_count == 0 && loop_.outer_count == 0) return true;
    const bool is_shared = job_.by_columns || loop_.outer_count;
    if (is_shared && !wait_for_all(job_.team)) return false;
    for (int64_t i = 0; i < loop_.after_count; ++i) {
      if (is_shared_otherwise(loop_.after, i) && !wait_for_all(job_.team)) return false;
      chunk_product(loop_.after[i], low, high, is_shared);
    }
    const int64_t first = start(low), rows = start_end(high) - first;
    for (int64_t i = 0; i < loop_.outer_count; ++i) {
      const Outer& o = loop_.outers[i];
      const int64_t strides[2] = {job_.places[o.gradient].stride, job_.places[o.row].stride};
      const int64_t steps[2] = {o.gradient_step, o.row_step};
      // Summed over at once: the places of one row, or the rows at one place.
      const bool is_long = rows >= o.places;
      const int64_t (&inner)[2] = is_long ? strides : steps;
      const int64_t (&outer)[2] = is_long ? steps : strides;
      for (int64_t k = 0; k < (is_long ? o.places : rows); ++k) {
        add_outer<T>(job_, i, is_long ? rows : o.places,
                     at(o.gradient, first) + o.gradient_offset + k * outer[0],
                     at(o.row, first) + o.row_offset + k * outer[1], inner, begin_of(o.N),
                     end_of(o.N), scratch_);
      }
    }
    return !is_shared || wait_for_all(job_.team);
  }

  const Job& job_;
  const Loop& loop_;
  const Sequence& sequence_;
  const int64_t thread_, threads_, row_step_;
  int64_t chunk_start_ = 0, tile_rows_ = 1;
  // Of the step that is run: the rows of sequences that have been through the step before, in the
  // order of the forward loop, and where that step's rows start. `begins_`: this tile's sequences
  // have not.
  int64_t going_ = 0, previous_ = 0;
  bool begins_ = false;
  T* tiles_;
  T* scratch_;
  double* sums_;
};

}  // namespace CELLO_ISA
}  // namespace cello
