#include "run.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "memory.h"
#include "threads.h"

#if defined(__SSE__) || defined(__x86_64__)
#include <xmmintrin.h>
#endif
#ifdef CELLO_HAS_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace cello {
namespace {

// Tiles are a part of a process's state that Linux grants on request.
#ifdef CELLO_HAS_AMX
bool has_amx() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned kBfloat16 = 1u << 22, kTiles = 1u << 24;
  if ((d & kBfloat16) == 0 || (d & kTiles) == 0) return false;
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

std::vector<std::string> supported() {
  std::vector<std::string> names;
#ifdef CELLO_HAS_AVX512
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
#ifdef CELLO_HAS_AVX512_BF16
  const bool has_bfloat16 = has_avx512 && __builtin_cpu_supports("avx512bf16");
#ifdef CELLO_HAS_AMX
  if (has_bfloat16 && has_amx()) names.push_back("amx");
#endif
  if (has_bfloat16) names.push_back("avx512_bf16");
#endif
  if (has_avx512) names.push_back("avx512");
#endif
#ifdef CELLO_HAS_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) names.push_back("avx2");
#endif
  names.push_back("baseline");
  return names;
}

std::vector<std::string> chosen() {
  const std::vector<std::string> names = supported();
  const char* forced = std::getenv("CELLO_ISA");
  if (forced == nullptr || *forced == '\0') return names;
  std::string possible;
  for (const std::string& name : names) {
    if (name == forced) return {name};
    possible += (possible.empty() ? "" : ", ") + name;
  }
  throw std::invalid_argument("CELLO_ISA is '" + std::string(forced) +
                              "'; on this machine it can be: " + possible);
}

const Kernels& kernels() {
  static const Kernels* best = [] {
    [[maybe_unused]] const std::string& name = instruction_sets().front();
#ifdef CELLO_HAS_AMX
    if (name == "amx") return amx_kernels();
#endif
#ifdef CELLO_HAS_AVX512_BF16
    if (name == "avx512_bf16") return avx512_bf16_kernels();
#endif
#ifdef CELLO_HAS_AVX512
    if (name == "avx512") return avx512_kernels();
#endif
#ifdef CELLO_HAS_AVX2
    if (name == "avx2") return avx2_kernels();
#endif
    return baseline_kernels();
  }();
  return *best;
}

// Numbers too small for the normal format count as zero while this lives: they cost a hundred
// cycles.
class FlushDenormals {
 public:
#if defined(__SSE__) || defined(__x86_64__)
  FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#elif defined(__aarch64__)
  FlushDenormals() {
    __asm__ volatile("mrs %0, fpcr" : "=r"(before_));
    __asm__ volatile("msr fpcr, %0" : : "r"(before_ | (1ull << 24)));
  }
  ~FlushDenormals() { __asm__ volatile("msr fpcr, %0" : : "r"(before_)); }

 private:
  uint64_t before_;
#endif
};

constexpr int64_t kLine = 64;
int64_t rounded(int64_t bytes, int64_t unit) { return (bytes + unit - 1) / unit * unit; }

// Memory of one run, handed out in pieces.
class Workspace {
 public:
  Workspace() = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace() {
    if (memory_) memory::give_back(memory_);
  }

  void reserve(int64_t bytes) { memory_ = next_ = static_cast<char*>(memory::take(bytes)); }

  void* take(int64_t bytes) {
    char* piece = next_;
    next_ += rounded(bytes, kLine);
    return piece;
  }

 private:
  char* memory_ = nullptr;
  char* next_ = nullptr;
};

// Runs all jobs, each by one thread and one after the other.
void in_turn(const Kernels& kernels, const std::vector<const Job*>& jobs, bool is_double) {
  FlushDenormals flush;
  for (const Job* job : jobs) {
    job->team->size = 1;
    Job alone = *job;  // whom it would follow does not ask any more
    alone.poll = jobs.front()->poll;
    kernels.run(alone, 0, is_double);
    if (job->team->stopped) return;
  }
}

// The part of one of the threads that run all jobs at the same time.
void take_part(const Kernels& kernels, const std::vector<const Job*>& jobs, int64_t thread,
               bool is_double) {
  FlushDenormals flush;
  for (const Job* job : jobs) {
    if (thread < job->team->size) return kernels.run(*job, thread, is_double);
    thread -= job->team->size;
  }
}

void in_parallel(const Kernels& kernels, const std::vector<const Job*>& jobs, bool is_double,
                 int64_t usable) {
  int64_t threads = 0;
  for (const Job* job : jobs) threads += job->team->size;
  const bool is_run =
      threads > 1 && threads <= usable &&
      side_by_side(threads, [&](int64_t thread) { take_part(kernels, jobs, thread, is_double); });
  if (!is_run) in_turn(kernels, jobs, is_double);
}

// How the work of a run is laid out.
struct Layout {
  int64_t threads;
  bool by_columns, joins_terms;
  int64_t chunk_steps;
};

// Multiplications and additions that one core does in a microsecond, roughly.
constexpr double kWorkPerMicrosecond = 5e4;
// Microseconds of work that are worth more threads than one.
constexpr double kWorthThreads = 20.0;
// Weights that stay in the second-level cache beside everything else.
constexpr int64_t kCachedWeights = 1 << 20;
// Rows that use a weight often enough to hide the time that it takes to come from beyond, and to
// hide some of it.
constexpr int64_t kRowsToHideWeights = 12, kRowsToHideSomeWeights = 4;

// Microseconds of one core.
double work(const Plan& plan, const Request& request) {
  // Pointwise work counts too: some tens of operations for each number that a product makes.
  return static_cast<double>(request.rows) * static_cast<double>(plan.products_per_row()) /
         kWorkPerMicrosecond;
}

Layout layout(const Plan& plan, const Request& request, int64_t threads) {
  const Loop& loop = plan.loop();
  const double rows = static_cast<double>(request.rows) / static_cast<double>(request.steps);
  const double step = work(plan, request) / static_cast<double>(request.steps);
  Layout out{threads, false, false, 1};
  const int64_t number = request.is_double ? 8 : 4;
  const bool is_cached = plan.loop_weights() * number <= kCachedWeights;
  if (out.threads > 1) {
    const double share = rows / static_cast<double>(out.threads);
    const bool by_rows =
        share >= static_cast<double>(kRowsToHideWeights) || (is_cached && share >= 2.0);
    if (!by_rows && step >= 2.0) {
      out.by_columns = true;
    } else if (share < 1.0 || work(plan, request) < kWorthThreads) {
      out.threads = 1;
    }
  }
  const bool gathers = loop.outer_count > 0 || loop.after_count > 0;
  const bool is_split = !out.by_columns && out.threads > 1;
  const double chunk_rows = gathers ? 1024.0
                            : loop.before_count
                                ? 64.0 * static_cast<double>(is_split ? out.threads : 1)
                                : rows;
  // Rows of a thread that go through a product at once: enough of them hide the time that the
  // weights of the input take to come from the cache, and nothing is gained by doing several steps
  // at once.
  const double together = rows / (is_split ? static_cast<double>(out.threads) : 1.0);
  out.joins_terms = together >= 8.0;
  if (out.joins_terms && !gathers) {
    out.chunk_steps = 1;
    return out;
  }
  out.chunk_steps =
      std::min(request.steps, std::max<int64_t>(1, static_cast<int64_t>(chunk_rows / rows + 0.5)));
  return out;
}

// Whether gradients are gathered apart from the weights': of several weights, or of one whose
// numbers do not lie next to each other along either axis.
bool is_gathered(const Outer& outer) {
  const Part& part = outer.parts[0];
  return outer.part_count > 1 || (part.k_stride != 1 && part.n_stride != 1);
}

// Rows for which reading a weight once each costs less than packing it.
constexpr int64_t kFewRows = 8;

// Whether the rows of all weights of a matrix are contiguous, so that it can be used unpacked.
bool has_rows(const Matrix& matrix) {
  return std::all_of(matrix.pieces, matrix.pieces + matrix.piece_count,
                     [](const Piece& piece) { return piece.k_stride == 1; });
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
const void* widened(const void* from, int64_t count, void* to) {
  const uint16_t* halves = static_cast<const uint16_t*>(from);
  uint32_t* bits = static_cast<uint32_t*>(to);
  for (int64_t i = 0; i < count; ++i) bits[i] = static_cast<uint32_t>(halves[i]) << 16;
  return to;
}

int64_t row_stride(int64_t width, int64_t number) {
  int64_t bytes = rounded(width * number, kLine);
  if (bytes % 1024 == 0) bytes += kLine;  // rows that are a power of two apart share cache sets
  return bytes / number;
}

std::vector<int64_t> take_items(const std::vector<int64_t>& list, size_t from) {
  return std::vector<int64_t>(list.begin() + static_cast<std::ptrdiff_t>(from), list.end());
}

void expect(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(std::string("malformed program: ") + what);
}

Operand operand(const std::vector<int64_t>& list, size_t at) {
  return {list[at], list[at + 1], {list[at + 2], list[at + 3], list[at + 4]}};
}

}  // namespace

const std::vector<std::string>& instruction_sets() {
  static const std::vector<std::string> names = chosen();
  return names;
}

bool multiplies_bfloat16() { return kernels().bfloat16_unit > 0; }

Plan::Plan(const Lists& lists)
    : numbers_(lists.numbers),
      before_(lists.before),
      after_(lists.after),
      sums_(lists.sums),
      tiles_(lists.tiles),
      bfloat16_statics_(lists.bfloat16.size()) {
  const auto in_bfloat16 = [&lists](int64_t index) {
    return index >= 0 && index < static_cast<int64_t>(lists.bfloat16.size()) &&
           lists.bfloat16[static_cast<size_t>(index)];
  };
  for (const auto& b : lists.buffers) {
    expect(b.size() == 6 && b[0] >= 0 && b[0] < kSpaceCount, "a buffer");
    buffers_.push_back({b[0], b[1], b[2], b[3], b[4], b[5]});
  }
  for (const auto& i : lists.instructions) {
    expect(i.size() >= 14 && i.size() <= 29 && (i.size() - 4) % 5 == 0, "an instruction");
    expect(i[0] >= 0 && i[0] < kOpCount, "an opcode");
    Instruction code{
        i[0], {i[1], i[2], i[3]}, static_cast<int64_t>(i.size() - 9) / 5, operand(i, 4), {}};
    for (int64_t k = 0; k < code.count; ++k) code.in[k] = operand(i, 9 + 5 * k);
    instructions_.push_back(code);
  }
  pieces_.reserve(lists.matrices.size());
  for (const auto& m : lists.matrices) {
    expect(m.size() >= 10 && (m.size() - 2) % 8 == 0, "a matrix");
    pieces_.emplace_back();
    for (size_t at = 2; at < m.size(); at += 8) {
      pieces_.back().push_back(
          {m[at], m[at + 1], m[at + 2], m[at + 3], m[at + 4], m[at + 5], m[at + 6], m[at + 7]});
    }
    const std::vector<Piece>& pieces = pieces_.back();
    for (const Piece& p : pieces) {
      if (!in_bfloat16(p.index)) continue;
      int64_t& read = bfloat16_statics_[static_cast<size_t>(p.index)];
      const int64_t last = (p.K - 1) * std::max<int64_t>(p.k_stride, 0) +
                           (p.N - 1) * std::max<int64_t>(p.n_stride, 0);
      read = std::max(read, p.offset + last + 1);
    }
    const bool is_bfloat16 = !pieces.empty() && in_bfloat16(pieces.front().index);
    for (const Piece& p : pieces) expect(in_bfloat16(p.index) == is_bfloat16, "a matrix");
    matrices_.push_back(
        {m[0], m[1], static_cast<int64_t>(pieces.size()), pieces.data(), is_bfloat16});
  }
  for (const auto& t : lists.terms) {
    expect(t.size() == 9 && t[4] >= 0 && t[4] < static_cast<int64_t>(matrices_.size()), "a term");
    terms_.push_back({t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7], t[8]});
  }
  for (const auto& b : lists.biases) {
    expect(b.size() == 5 && b[0] >= 0 && b[0] < static_cast<int64_t>(terms_.size()), "a bias");
    biases_.push_back({b[0], b[1], b[2], b[3], b[4]});
  }
  items_.reserve(lists.stages.size());
  for (const auto& s : lists.stages) {
    expect(s.size() >= 2, "a stage");
    items_.push_back(take_items(s, 1));
    stages_.push_back({s[0], static_cast<int64_t>(items_.back().size()), items_.back().data()});
  }
  parts_.reserve(lists.outers.size());
  for (const auto& o : lists.outers) {
    expect(o.size() >= 12 && (o.size() - 6) % 6 == 0, "an outer product");
    parts_.emplace_back();
    for (size_t at = 6; at < o.size(); at += 6) {
      parts_.back().push_back({o[at], o[at + 1], o[at + 2], o[at + 3], o[at + 4], o[at + 5]});
    }
    const std::vector<Part>& parts = parts_.back();
    const bool is_bfloat16 = in_bfloat16(parts.front().index);
    for (const Part& p : parts) expect(in_bfloat16(p.index) == is_bfloat16, "an outer product");
    outers_.push_back({o[0], o[1], o[2], o[3], o[4], o[5], static_cast<int64_t>(parts.size()),
                       parts.data(), is_bfloat16});
  }
  for (const auto& t : lists.targets) {
    expect(t.size() == 10, "a target");
    targets_.push_back({t[0], t[1], t[2], {t[3], t[4], t[5]}, t[6], {t[7], t[8], t[9]}});
  }
  for (const Term& term : terms_) {
    products_per_row_ += term.K * matrices_[term.matrix].N;
  }
  for (const Instruction& code : instructions_) {
    products_per_row_ += 4 * code.sizes[0] * code.sizes[1] * code.sizes[2];
  }
  for (const Stage& stage : stages_) {
    if (stage.is_segment) continue;
    for (int64_t i = 0; i < stage.count; ++i) {
      const Term& term = terms_[stage.items[i]];
      loop_weights_ += term.K * matrices_[term.matrix].N;
    }
  }
  loop_.buffer_count = static_cast<int64_t>(buffers_.size());
  loop_.instruction_count = static_cast<int64_t>(instructions_.size());
  loop_.matrix_count = static_cast<int64_t>(matrices_.size());
  loop_.term_count = static_cast<int64_t>(terms_.size());
  loop_.stage_count = static_cast<int64_t>(stages_.size());
  loop_.before_count = static_cast<int64_t>(before_.size());
  loop_.after_count = static_cast<int64_t>(after_.size());
  loop_.outer_count = static_cast<int64_t>(outers_.size());
  loop_.sum_count = static_cast<int64_t>(sums_.size());
  loop_.target_count = static_cast<int64_t>(targets_.size());
  loop_.tile_count = static_cast<int64_t>(tiles_.size());
  loop_.bias_count = static_cast<int64_t>(biases_.size());
  loop_.biases = biases_.data();
  loop_.buffers = buffers_.data();
  loop_.numbers = numbers_.data();
  loop_.instructions = instructions_.data();
  loop_.matrices = matrices_.data();
  loop_.terms = terms_.data();
  loop_.stages = stages_.data();
  loop_.before = before_.data();
  loop_.after = after_.data();
  loop_.outers = outers_.data();
  loop_.sums = sums_.data();
  loop_.targets = targets_.data();
  loop_.tiles = tiles_.data();
}

namespace {

// A loop over one batch, ready to be run by a team of threads.
class Prepared {
 public:
  Prepared(const Kernels& isa, const Call& call, int64_t threads, const Poll& poll);
  Prepared(const Prepared&) = delete;
  Prepared& operator=(const Prepared&) = delete;

  const Job* job() const { return &job_; }
  bool has_stopped() const { return __atomic_load_n(&team_.stopped, __ATOMIC_ACQUIRE) != 0; }

  // For another one, that is to stop when this one does.
  Poll poll_of_followers() {
    return {[](void* self) { return static_cast<const Prepared*>(self)->has_stopped(); }, this};
  }

 private:
  Workspace workspace_;
  std::vector<int64_t> starts_, depths_, firsts_;
  std::vector<const void*> statics_;
  std::vector<void*> packed_, biases_, outers_;
  std::vector<Place> places_;
  Team team_{};
  Job job_{};
};

Prepared::Prepared(const Kernels& isa, const Call& call, int64_t threads, const Poll& poll) {
  const Plan& plan = *call.plan;
  const Request& request = call.request;
  const Loop& loop = plan.loop();
  const Layout chosen = layout(plan, request, threads);
  const int64_t number = request.is_double ? 8 : 4;

  int64_t chunk_rows = chosen.chunk_steps * request.batch;
  if (request.batch_sizes) {
    starts_.assign(static_cast<size_t>(request.steps) + 1, 0);
    for (int64_t t = 0; t < request.steps; ++t)
      starts_[t + 1] = starts_[t] + request.batch_sizes[t];
    chunk_rows = std::min(chunk_rows, request.rows);
  }

  const int64_t scratch =
      rounded(isa.scratch_bytes(loop, chunk_rows, request.is_double), kLine) + kLine;
  int64_t sums_width = 0;
  for (int64_t s = 0; s < loop.sum_count; ++s) sums_width += loop.sums[s];
  sums_width = rounded(sums_width * 8, kLine) / 8;

  // Where each term's rows of a packed matrix are: in bfloat16 in whole units of its own.
  depths_.resize(static_cast<size_t>(loop.matrix_count));
  firsts_.resize(static_cast<size_t>(loop.term_count));
  for (int64_t m = 0; m < loop.matrix_count; ++m) depths_[m] = loop.matrices[m].K;
  for (int64_t t = 0; t < loop.term_count; ++t) firsts_[t] = loop.terms[t].k0;
  if (isa.bfloat16_unit > 0) place_units(loop, isa.bfloat16_unit, &depths_, &firsts_);

  int64_t bytes = chosen.threads * (scratch + sums_width * 8) + 4 * kLine;
  int64_t widest = 1;
  for (int64_t b = 0; b < loop.buffer_count; ++b) {
    const Buffer& buffer = loop.buffers[b];
    const int64_t row = row_stride(buffer.width, number) * number;
    widest = std::max(widest, buffer.width);
    if (buffer.space == kChunk) bytes += rounded(row * chunk_rows, kLine);
    if (buffer.space == kState || buffer.space == kWide)
      bytes += rounded(row * request.batch, kLine);
  }
  const auto packed_bytes = [&](int64_t m) {  // in bfloat16, pairs in the place of numbers
    const Matrix& matrix = loop.matrices[m];
    const bool has_pairs = matrix.is_bfloat16 && isa.bfloat16_unit > 0;
    const int64_t rows = has_pairs ? depths_[m] / 2 : depths_[m];
    return isa.packed_size(rows, matrix.N, request.is_double) * number;
  };
  const auto is_packed = [&request](const Matrix& matrix) {
    return request.rows > kFewRows || !has_rows(matrix);
  };
  for (int64_t m = 0; m < loop.matrix_count; ++m) {
    const Matrix& matrix = loop.matrices[m];
    if (!is_packed(matrix)) continue;
    bytes += rounded(packed_bytes(m), kLine);
  }
  for (int64_t count : plan.bfloat16_statics()) {
    if (isa.bfloat16_unit == 0) bytes += rounded(count * number, kLine);
  }
  for (int64_t o = 0; o < loop.outer_count; ++o) {
    if (is_gathered(loop.outers[o])) {
      bytes += rounded(loop.outers[o].N * loop.outers[o].K * number, kLine);
    }
  }
  for (int64_t b = 0; b < loop.bias_count; ++b) {
    const int64_t N = loop.matrices[loop.terms[loop.biases[b].term].matrix].N;
    bytes += rounded(isa.packed_size(1, N, request.is_double) * number, kLine);
  }
  bytes += rounded(widest * number, kLine) + (loop.buffer_count + 1) * kLine;

  workspace_.reserve(bytes);

  // Without products in bfloat16 its weights are weights in float32.
  statics_.assign(request.statics.begin(), request.statics.end());
  for (size_t s = 0; s < plan.bfloat16_statics().size() && isa.bfloat16_unit == 0; ++s) {
    const int64_t count = plan.bfloat16_statics()[s];
    if (count > 0) statics_.at(s) = widened(statics_.at(s), count, workspace_.take(count * number));
  }

  packed_.resize(static_cast<size_t>(loop.matrix_count));
  for (int64_t m = 0; m < loop.matrix_count; ++m) {
    const Matrix& matrix = loop.matrices[m];
    if (!is_packed(matrix)) continue;
    packed_[m] = workspace_.take(packed_bytes(m));
  }
  biases_.resize(static_cast<size_t>(loop.term_count));
  for (int64_t b = 0; b < loop.bias_count; ++b) {
    void*& bias = biases_[loop.biases[b].term];
    const int64_t N = loop.matrices[loop.terms[loop.biases[b].term].matrix].N;
    if (!bias) bias = workspace_.take(isa.packed_size(1, N, request.is_double) * number);
  }
  outers_.resize(static_cast<size_t>(loop.outer_count));
  for (int64_t o = 0; o < loop.outer_count; ++o) {
    if (!is_gathered(loop.outers[o])) continue;
    const int64_t size = loop.outers[o].N * loop.outers[o].K * number;
    outers_[o] = workspace_.take(size);
    std::memset(outers_[o], 0, static_cast<size_t>(size));
  }
  void* zeros = workspace_.take(widest * number);
  std::memset(zeros, 0, static_cast<size_t>(widest * number));

  places_.resize(static_cast<size_t>(loop.buffer_count));
  for (int64_t b = 0; b < loop.buffer_count; ++b) {
    const Buffer& buffer = loop.buffers[b];
    Place& place = places_[b];
    place.stride = row_stride(buffer.width, number);
    switch (buffer.space) {
      case kStream: {
        char* stream = static_cast<char*>(request.streams.at(buffer.index));
        place.base = stream ? stream + buffer.offset * number : zeros;
        place.stride = stream ? buffer.stride : 0;
        break;
      }
      case kPrevious: {
        char* stream = static_cast<char*>(request.streams.at(buffer.index));
        char* origin = static_cast<char*>(request.origins.at(buffer.origin));
        place.base = stream + buffer.offset * number;
        place.stride = buffer.stride;
        place.origin = origin;
        place.origin_stride = buffer.width;
        break;
      }
      case kChunk:
        place.base = workspace_.take(place.stride * number * chunk_rows);
        break;
      case kState:
      case kWide:
        place.base = workspace_.take(place.stride * number * request.batch);
        break;
      case kStatic:
        place = {request.statics.at(buffer.index), 0, nullptr, 0};
        break;
      case kConstant: {
        place = {workspace_.take(number), 0, nullptr, 0};
        const double value = loop.numbers[buffer.index];
        if (request.is_double) {
          *static_cast<double*>(place.base) = value;
        } else {
          *static_cast<float*>(place.base) = static_cast<float>(value);
        }
        break;
      }
      default:
        place = {};
    }
  }

  team_ = {chosen.threads, 0, 0, 0, 0};
  job_.loop = &loop;
  job_.tensors = {request.streams.data(),    statics_.data(),        request.states.data(),
                  request.new_states.data(), request.origins.data(), request.gradients.data()};
  job_.sequence = {request.steps,
                   request.batch,
                   request.rows,
                   request.batch_sizes,
                   request.batch_sizes ? starts_.data() : nullptr,
                   request.descending};
  job_.team = &team_;
  job_.by_columns = chosen.by_columns;
  job_.chunk_steps = chosen.chunk_steps;
  job_.places = places_.data();
  job_.packed = packed_.data();
  job_.depths = depths_.data();
  job_.firsts = firsts_.data();
  job_.outers = outers_.data();
  job_.biases = biases_.data();
  job_.joins_terms = chosen.joins_terms;
  job_.scratch = workspace_.take(chosen.threads * scratch);
  job_.scratch_bytes = scratch;
  job_.sums = static_cast<double*>(workspace_.take(chosen.threads * sums_width * 8));
  job_.sums_width = sums_width;
  std::memset(job_.sums, 0, static_cast<size_t>(chosen.threads * sums_width * 8));
  job_.poll = poll;
}

}  // namespace

bool is_better_together(const Call& call, int64_t threads) {
  const Request& request = call.request;
  // Each team reads all weights of its direction, and not a share of those of one after the other.
  const int64_t bytes = call.plan->loop_weights() * (request.is_double ? 8 : 4);
  const bool hides_weights = request.rows >= kRowsToHideSomeWeights * request.steps;
  return usable_threads(threads) > 1 && bytes < (hides_weights ? 4 : 1) * kCachedWeights;
}

bool run(const std::vector<const Call*>& calls, int64_t threads, const Poll& poll) {
  const Kernels& isa = kernels();
  const bool is_double = calls.front()->request.is_double;
  const int64_t count = static_cast<int64_t>(calls.size());
  double all_work = 0;
  for (const Call* call : calls) all_work += work(*call->plan, call->request);
  const int64_t usable = count > 1 && all_work < kWorthThreads ? 1 : usable_threads(threads);
  std::vector<std::unique_ptr<Prepared>> prepared;
  std::vector<const Job*> jobs;
  const int64_t share = std::max<int64_t>(1, usable / count);
  for (const Call* call : calls) {
    expect(call->request.is_double == is_double, "calls of several dtypes");
    const Poll& asked = jobs.empty() ? poll : prepared.front()->poll_of_followers();
    prepared.push_back(std::make_unique<Prepared>(isa, *call, share, asked));
    jobs.push_back(prepared.back()->job());
  }
  in_parallel(isa, jobs, is_double, usable);
  return std::none_of(prepared.begin(), prepared.end(),
                      [](const auto& loop) { return loop->has_stopped(); });
}

}  // namespace cello
