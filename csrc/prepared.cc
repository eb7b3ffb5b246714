#include "prepared.h"

#include <algorithm>
#include <cstring>

#include "memory.h"

namespace cello {
namespace {

constexpr int64_t kLine = 64;
int64_t rounded(int64_t bytes, int64_t unit) { return (bytes + unit - 1) / unit * unit; }

// Numbers next to each other, of which some may be left out.
struct Range {
  int64_t first, count;
  bool meets(const Range& other) const {
    return first < other.first + other.count && other.first < first + count;
  }
};

// Whether two outers may add to the same number of a weight by different threads. Each thread takes
// a range of the numbers along n.
bool may_meet(const Outer& a, const Outer& b) {
  const Slice &one = a.slices[0], &other = b.slices[0];
  if (one.index != other.index) return false;
  const auto whole = [](const Outer& outer, const Slice& slice) {
    return Range{slice.offset, (outer.N - 1) * slice.n_stride + (outer.K - 1) * slice.k_stride + 1};
  };
  if (!whole(a, one).meets(whole(b, other))) return false;
  if (one.k_stride != other.k_stride || one.n_stride != other.n_stride) return true;
  // Both are parts of one matrix, unless one of them goes on in its next row.
  const bool n_is_outer = one.n_stride > one.k_stride;
  const int64_t row = n_is_outer ? one.n_stride : one.k_stride;
  const int64_t step = n_is_outer ? one.k_stride : one.n_stride;
  const auto along = [&](const Outer& outer, const Slice& slice, bool is_n) {
    const int64_t place = slice.offset, count = is_n ? outer.N : outer.K;
    return is_n == n_is_outer ? Range{place / row, count}
                              : Range{place % row, (count - 1) * step + 1};
  };
  const auto goes_on = [&](const Outer& outer, const Slice& slice) {
    const Range inner = along(outer, slice, !n_is_outer);
    return inner.first + inner.count > row;
  };
  if (goes_on(a, one) || goes_on(b, other)) return &a != &b || (a.N > 1 && a.K > 1);
  const Range n = along(a, one, true), other_n = along(b, other, true);
  if (!n.meets(other_n) || !along(a, one, false).meets(along(b, other, false))) return false;
  return n.first != other_n.first || n.count != other_n.count;
}

// Whether gradients are gathered apart from the weights', to which one thread adds them at the end:
// of several weights; of one whose numbers do not lie next to each other along either axis; and
// where two threads would add to the same number, of a weight that repeats its numbers (stride 0)
// or is in another outer, in another way.
bool is_gathered(const Loop& loop, const Outer& outer) {
  const Slice& slice = outer.slices[0];
  if (outer.slice_count > 1 || slice.k_stride == 0 || slice.n_stride == 0) return true;
  if (slice.k_stride != 1 && slice.n_stride != 1) return true;
  return std::any_of(loop.outers, loop.outers + loop.outer_count,
                     [&outer](const Outer& other) { return may_meet(outer, other); });
}

// Rows for which reading a weight once each costs less than packing it.
constexpr int64_t kFewRows = 8;

// Whether the rows of all weights of a matrix are contiguous, so that it can be used unpacked.
bool has_rows(const Matrix& matrix) {
  return std::all_of(matrix.pieces, matrix.pieces + matrix.piece_count,
                     [](const Piece& piece) { return piece.k_stride == 1; });
}

// At how many places of a row a matrix is used, at most.
int64_t places_of(const Loop& loop, int64_t matrix) {
  int64_t places = 1;
  for (int64_t t = 0; t < loop.term_count; ++t) {
    if (loop.terms[t].matrix == matrix) places = std::max(places, loop.terms[t].places);
  }
  return places;
}

// Places the rows that terms use of matrices in bfloat16 in whole units, one term's below the
// other's.
void place_units(const Loop& loop, int64_t unit, std::vector<int64_t>* depths,
                 std::vector<int64_t>* firsts) {
  std::vector<int64_t> terms(static_cast<size_t>(loop.term_count));
  for (int64_t t = 0; t < loop.term_count; ++t) terms[t] = t;
  std::stable_sort(terms.begin(), terms.end(),
                   [&loop](int64_t a, int64_t b) { return loop.terms[a].k0 < loop.terms[b].k0; });
  for (int64_t m = 0; m < loop.matrix_count; ++m) {
    if (loop.matrices[m].is_bfloat16) (*depths)[m] = 0;
  }
  for (int64_t t : terms) {
    const Term& term = loop.terms[t];
    if (!loop.matrices[term.matrix].is_bfloat16) continue;
    (*firsts)[t] = (*depths)[term.matrix];
    (*depths)[term.matrix] += rounded(term.K, unit);
  }
}

// Numbers in bfloat16 as float32, in `to`.
void widen(const void* from, int64_t count, void* to) {
  const uint16_t* halves = static_cast<const uint16_t*>(from);
  uint32_t* bits = static_cast<uint32_t*>(to);
  for (int64_t i = 0; i < count; ++i) bits[i] = static_cast<uint32_t>(halves[i]) << 16;
}

// The distance between rows of which a thread takes every `step`-th. Rows that are a power of two
// apart share sets of the first-level cache, so that it holds few of them.
int64_t row_stride(int64_t width, int64_t number, int64_t step) {
  int64_t bytes = rounded(width * number, kLine);
  if (bytes * step % 1024 == 0 && bytes % (2 * kLine) == 0) bytes += kLine;
  return bytes / number;
}

// The width of the widest buffer.
int64_t widest(const Loop& loop) {
  int64_t width = 1;
  for (int64_t b = 0; b < loop.buffer_count; ++b) width = std::max(width, loop.buffers[b].width);
  return width;
}

}  // namespace

Workspace::~Workspace() {
  if (memory_) memory::give_back(memory_);
}

void Workspace::take() {
  int64_t bytes = 0;
  for (const Asked& asked : asked_) bytes += rounded(asked.bytes, kLine);
  memory_ = memory::take(bytes);
  char* next = static_cast<char*>(memory_);
  for (const Asked& asked : asked_) {
    *asked.piece = next;
    next += rounded(asked.bytes, kLine);
  }
}

Prepared::Prepared(const Kernels& isa, const Call& call, int64_t threads, const Poll& poll)
    : isa_(isa),
      schedule_(*call.schedule),
      loop_(call.schedule->loop()),
      request_(call.request),
      division_(divide(*call.schedule, call.request, threads)),
      number_(call.request.is_double ? 8 : 4),
      chunk_rows_(division_.chunk_steps * call.request.batch) {
  if (request_.batch_sizes) {
    starts_.assign(static_cast<size_t>(request_.steps) + 1, 0);
    for (int64_t t = 0; t < request_.steps; ++t)
      starts_[t + 1] = starts_[t] + request_.batch_sizes[t];
    chunk_rows_ = std::min(chunk_rows_, request_.rows);
  }
  const int64_t scratch =
      rounded(isa.scratch_bytes(loop_, chunk_rows_, request_.is_double), kLine) + kLine;
  int64_t sums_width = 0;
  for (int64_t s = 0; s < loop_.sum_count; ++s) sums_width += loop_.sums[s];
  sums_width = rounded(sums_width * 8, kLine) / 8;
  void* sums = nullptr;

  ask_for_weights();
  ask_for_gradients();
  ask_for_buffers();
  workspace_.ask(division_.threads * scratch, &job_.scratch);
  workspace_.ask(division_.threads * sums_width * 8, &sums);
  workspace_.take();
  fill_weights();
  fill_buffers();

  team_ = {division_.threads, 0, 0, 0, 0};
  job_.loop = &loop_;
  job_.tensors = {request_.streams.data(),    statics_.data(),         request_.states.data(),
                  request_.new_states.data(), request_.origins.data(), request_.gradients.data()};
  job_.sequence = {request_.steps,
                   request_.batch,
                   request_.rows,
                   request_.batch_sizes,
                   request_.batch_sizes ? starts_.data() : nullptr,
                   request_.descending};
  job_.team = &team_;
  job_.by_columns = division_.by_columns;
  job_.by_blocks = division_.by_blocks;
  job_.chunk_steps = division_.chunk_steps;
  job_.places = places_.data();
  job_.packed = packed_.data();
  job_.depths = depths_.data();
  job_.firsts = firsts_.data();
  job_.outers = outers_.data();
  job_.biases = biases_.data();
  job_.joins_terms = division_.joins_terms;
  job_.scratch_bytes = scratch;
  job_.sums = static_cast<double*>(sums);
  job_.sums_width = sums_width;
  std::memset(sums, 0, static_cast<size_t>(division_.threads * sums_width * 8));
  job_.poll = poll;
}

void Prepared::ask_for_weights() {
  // Where each term's rows of a packed matrix are: in bfloat16 in whole units of its own.
  depths_.resize(static_cast<size_t>(loop_.matrix_count));
  firsts_.resize(static_cast<size_t>(loop_.term_count));
  for (int64_t m = 0; m < loop_.matrix_count; ++m) depths_[m] = loop_.matrices[m].K;
  for (int64_t t = 0; t < loop_.term_count; ++t) firsts_[t] = loop_.terms[t].k0;
  if (isa_.bfloat16_unit > 0) place_units(loop_, isa_.bfloat16_unit, &depths_, &firsts_);

  packed_.resize(static_cast<size_t>(loop_.matrix_count));
  for (int64_t m = 0; m < loop_.matrix_count; ++m) {
    const Matrix& matrix = loop_.matrices[m];
    if (request_.rows * places_of(loop_, m) <= kFewRows && has_rows(matrix)) continue;
    // In bfloat16 a pair is as large as a number.
    const bool has_pairs = matrix.is_bfloat16 && isa_.bfloat16_unit > 0;
    const int64_t rows = has_pairs ? depths_[m] / 2 : depths_[m];
    workspace_.ask(isa_.packed_size(rows, matrix.N, request_.is_double) * number_, &packed_[m]);
  }
  biases_.resize(static_cast<size_t>(loop_.term_count));
  for (int64_t t = 0; t < loop_.term_count; ++t) {
    const bool has_bias = std::any_of(loop_.biases, loop_.biases + loop_.bias_count,
                                      [t](const Bias& bias) { return bias.term == t; });
    const int64_t N = loop_.matrices[loop_.terms[t].matrix].N;
    if (has_bias) workspace_.ask(isa_.packed_size(1, N, request_.is_double) * number_, &biases_[t]);
  }
  const std::vector<int64_t>& bfloat16 = schedule_.bfloat16_statics();
  widened_.resize(bfloat16.size());
  for (size_t s = 0; s < bfloat16.size() && isa_.bfloat16_unit == 0; ++s) {
    if (bfloat16[s] > 0) workspace_.ask(bfloat16[s] * number_, &widened_[s]);
  }
}

void Prepared::ask_for_gradients() {
  outers_.resize(static_cast<size_t>(loop_.outer_count));
  for (int64_t o = 0; o < loop_.outer_count; ++o) {
    const Outer& outer = loop_.outers[o];
    if (is_gathered(loop_, outer)) workspace_.ask(outer.N * outer.K * number_, &outers_[o]);
  }
}

void Prepared::ask_for_buffers() {
  places_.resize(static_cast<size_t>(loop_.buffer_count));
  const int64_t step = division_.by_columns || division_.by_blocks ? 1 : division_.threads;
  for (int64_t b = 0; b < loop_.buffer_count; ++b) {
    const Buffer& buffer = loop_.buffers[b];
    Place& place = places_[b];
    place.stride = row_stride(buffer.width, number_, step);
    const int64_t row = place.stride * number_;
    if (buffer.space == kChunk) workspace_.ask(row * chunk_rows_, &place.base);
    if (buffer.space == kState || buffer.space == kWide)
      workspace_.ask(row * request_.batch, &place.base);
    if (buffer.space == kConstant) workspace_.ask(number_, &place.base);
  }
  workspace_.ask(widest(loop_) * number_, &zeros_);
}

void Prepared::fill_weights() {
  // Without products in bfloat16 its weights are weights in float32.
  statics_.assign(request_.statics.begin(), request_.statics.end());
  for (size_t s = 0; s < widened_.size(); ++s) {
    if (!widened_[s]) continue;
    widen(statics_.at(s), schedule_.bfloat16_statics()[s], widened_[s]);
    statics_[s] = widened_[s];
  }
  for (int64_t o = 0; o < loop_.outer_count; ++o) {
    const int64_t size = loop_.outers[o].N * loop_.outers[o].K * number_;
    if (outers_[o]) std::memset(outers_[o], 0, static_cast<size_t>(size));
  }
}

void Prepared::fill_buffers() {
  std::memset(zeros_, 0, static_cast<size_t>(widest(loop_) * number_));
  for (int64_t b = 0; b < loop_.buffer_count; ++b) {
    const Buffer& buffer = loop_.buffers[b];
    Place& place = places_[b];
    switch (buffer.space) {
      case kStream: {
        char* stream = static_cast<char*>(request_.streams.at(buffer.index));
        place.base = stream ? stream + buffer.offset * number_ : zeros_;
        place.stride = stream ? buffer.stride : 0;
        break;
      }
      case kPrevious: {
        char* stream = static_cast<char*>(request_.streams.at(buffer.index));
        place.base = stream + buffer.offset * number_;
        place.stride = buffer.stride;
        place.origin = request_.origins.at(buffer.origin);
        place.origin_stride = buffer.width;
        break;
      }
      case kStatic:
        place = {request_.statics.at(buffer.index), 0, nullptr, 0};
        break;
      case kConstant: {
        place.stride = 0;
        const double value = loop_.numbers[buffer.index];
        if (request_.is_double) {
          *static_cast<double*>(place.base) = value;
        } else {
          *static_cast<float*>(place.base) = static_cast<float>(value);
        }
        break;
      }
      case kTile:
        place = {};
        break;
      default:
        break;  // memory that was asked for
    }
  }
}

}  // namespace cello
