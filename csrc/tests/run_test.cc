// Runs loops that are written by hand, forward and with everything that a backward loop has:
// products ahead of a chunk, within a step and behind a chunk, fusions, sums over all rows and
// gradients of weights; dense and packed batches, both directions of time, one thread and several,
// both ways to split the work. Everything is compared with plain loops in double precision.
#include "../run.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "../instruction_sets.h"
#include "random.h"

using namespace cello;

namespace {

int failures = 0;

void check(bool holds, const std::string& what) {
  if (holds) return;
  ++failures;
  fprintf(stderr, "FAILED: %s\n", what.c_str());
}

double uniform() { return static_cast<double>(random_bits() >> 11) * 0x1p-52 - 1.0; }

typedef std::vector<double> Doubles;

Doubles numbers(int64_t count, double scale) {
  Doubles out(static_cast<size_t>(count));
  for (double& x : out) x = scale * uniform();
  return out;
}

// The loop, for rows of the input x and states h and s:
//
//   y = tanh(x A + h B + v' + b)      x A ahead of the chunk, v' made of two parts of v
//   z = y C
//   h' = 0.5 z + y,  s' = s + the largest of y
//   output: h' in the middle of a wider stream; late: y D, behind the chunk
//   gathered: dA += x^T y and x^T of the two halves of h', side by side and so as one;
//   dC += y^T h' (C in every other row of its static), db += y, e += y^2
//
// Where there are no inputs the stream of x is null and reads as zeros.
struct Sizes {
  int64_t F, H, L;  // widths of x, of y and h, and of the late output
};

constexpr int64_t kBefore = 2, kAfter = 3;  // numbers of a row of the output beside h'

std::vector<int64_t> instruction(int64_t op, int64_t n,
                                 const std::vector<std::vector<int64_t>>& places) {
  std::vector<int64_t> out = {op, 1, 1, n};
  for (const auto& place : places) {
    out.insert(out.end(), {place[0], place[1], 0, 0, place[2]});
  }
  return out;
}

Lists lists(const Sizes& n) {
  enum { kX, kH, kPre, kY, kZ, kOut, kBias, kLate, kSquare, kHalf, kS, kTop, kNew };
  Lists out;
  out.buffers = {
      {kStream, n.F, 0, 0, n.F, 0},                           // x
      {kState, n.H, 0, 0, 0, 0},                              // h
      {kChunk, n.H, 0, 0, 0, 0},                              // x A + h B
      {kChunk, n.H, 0, 0, 0, 0},                              // y
      {kWide, n.H, 0, 0, 0, 0},                               // z
      {kStream, n.H, 1, kBefore, kBefore + n.H + kAfter, 0},  // h', in its stream
      {kStatic, n.H, 3, 0, 0, 0},                             // b
      {kStream, n.L, 2, 0, n.L, 0},                           // late
      {kTile, n.H, 0, 0, 0, 0},                               // y^2
      {kConstant, 1, 0, 0, 0, 0},                             // 0.5
      {kState, 1, 1, 0, 0, 0},                                // s
      {kTile, 1, 1, 0, 0, 0},                                 // the largest of y
      {kChunk, n.H, 0, 0, 0, 0},                              // h', for what is gathered
  };
  out.numbers = {0.5};
  out.tiles = {n.H, 1};
  out.instructions = {
      instruction(kAdd, n.H, {{kY, 0, 1}, {kPre, 0, 1}, {kBias, 0, 1}}),
      instruction(kTanh, n.H, {{kY, 0, 1}, {kY, 0, 1}}),
      instruction(kMul, n.H, {{kSquare, 0, 1}, {kY, 0, 1}, {kY, 0, 1}}),
      instruction(kAccumulate, n.H, {{0, 0, 1}, {kY, 0, 1}}),
      instruction(kAccumulate, n.H, {{1, 0, 1}, {kSquare, 0, 1}}),
      instruction(kAmax, n.H, {{kTop, 0, 0}, {kY, 0, 1}}),
      instruction(kMulAdd, n.H, {{kNew, 0, 1}, {kZ, 0, 1}, {kHalf, 0, 0}, {kY, 0, 1}}),
      instruction(kCopy, n.H, {{kOut, 0, 1}, {kNew, 0, 1}}),
      instruction(kCopy, n.H, {{kH, 0, 1}, {kNew, 0, 1}}),
      instruction(kAdd, 1, {{kS, 0, 1}, {kS, 0, 1}, {kTop, 0, 1}}),
  };
  // A lies as [F][H], B as [H][H] transposed, C as every other row of [2 H][H], D in two halves.
  const int64_t half = n.L / 2;
  out.matrices = {
      {n.F + n.H, n.H, 0, 0, n.H, 1, 0, 0, n.F, n.H, 1, 0, 1, n.H, n.F, 0, n.H, n.H},
      {n.H, n.H, 2, n.H, 2 * n.H, 1, 0, 0, n.H, n.H},
      {n.H, n.L, 4, 0, half, 1, 0, 0, n.H, half, 5, 0, 1, n.H, 0, half, n.H, n.L - half},
  };
  // The first two are partners: one product where enough rows go through it together.
  out.terms = {{kX, 0, kPre, 0, 0, 0, n.F, 0, -1, 1, 0, 0},
               {kH, 0, kPre, 0, 0, n.F, n.H, 1, 0, 1, 0, 0},
               {kY, 0, kZ, 0, 1, 0, n.H, 0, -1, 1, 0, 0},
               {kY, 0, kLate, 0, 2, 0, n.H, 0, -1, 1, 0, 0}};
  out.biases = {{0, 0, n.H, 7, 0}, {0, n.H / 2, n.H - n.H / 2, 7, 1}};
  out.before = {0};
  out.stages = {{0, 1}, {1, 0, 1, 2, 3, 4, 5, 9}, {0, 2}, {1, 6, 7, 8}};
  out.after = {3};
  const int64_t left = n.H / 2;
  out.outers = {
      {kX, 0, n.F, kY, 0, n.H, 1, 0, 0, 0, n.H, 0, 0, n.H, 1},
      {kY, 0, n.H, kNew, 0, n.H, 1, 0, 0, 0, n.H, 2, n.H, 2 * n.H, 1},
      {kX, 0, n.F, kNew, 0, n.H, 1, 0, 0, 0, left, 0, 0, n.H, 1, left, n.H - left, 0, 0, n.H, 1}};
  out.sums = {n.H, n.H};
  out.targets = {{0, 0, 3, 1, 1, n.H, 0, 0, 0, 1}, {1, 0, 6, 1, 1, n.H, 0, 0, 0, 2}};
  return out;
}

struct Batch {
  int64_t T, B, N;
  std::vector<int64_t> sizes;  // empty where all are B

  Batch(int64_t steps, int64_t batch, bool is_packed) : T(steps), B(batch), N(steps * batch) {
    if (!is_packed) return;
    N = 0;
    for (int64_t t = 0; t < T; ++t) {
      sizes.push_back(t == 0 ? B : 1 + (B - 1) * (T - t) / T);
      N += sizes.back();
    }
  }

  int64_t size(int64_t t) const { return sizes.empty() ? B : sizes[static_cast<size_t>(t)]; }
};

// What goes in, and what comes out.
struct Data {
  Doubles x, h, s, A, B, C, b, v, D0, D1;  // C among the odd rows of its static
  Doubles output, late, h_n, s_n, dA, dC, db, e;
};

Data make_data(const Sizes& n, const Batch& batch) {
  Data d;
  const double scale = 1.0 / sqrt(static_cast<double>(n.H));
  d.x = numbers(batch.N * n.F, 1.0);
  d.h = numbers(batch.B * n.H, 1.0);
  d.s = numbers(batch.B, 1.0);
  d.A = numbers(n.F * n.H, 0.5 * scale);
  d.B = numbers(n.H * n.H, scale);
  d.C = numbers(2 * n.H * n.H, scale);
  d.b = numbers(n.H, 0.1);
  d.v = numbers(n.H + 1, 0.1);
  d.D0 = numbers(n.H * (n.L / 2), scale);
  d.D1 = numbers(n.H * (n.L - n.L / 2), scale);
  return d;
}

void plain(const Sizes& n, const Batch& batch, bool descending, bool has_x, Data* d) {
  const int64_t H = n.H, half = n.L / 2;
  d->output.assign(static_cast<size_t>(batch.N * H), 0.0);
  d->late.assign(static_cast<size_t>(batch.N * n.L), 0.0);
  d->dA.assign(static_cast<size_t>(n.F * H), 0.0);
  d->dC.assign(static_cast<size_t>(2 * H * H), 0.0);
  d->db.assign(static_cast<size_t>(H), 0.0);
  d->e.assign(static_cast<size_t>(2 * H), 0.0);
  Doubles h = d->h, s = d->s;
  std::vector<int64_t> starts(1, 0);
  for (int64_t t = 0; t < batch.T; ++t) starts.push_back(starts.back() + batch.size(t));
  for (int64_t k = 0; k < batch.T; ++k) {
    const int64_t t = descending ? batch.T - 1 - k : k;
    for (int64_t r = 0; r < batch.size(t); ++r) {
      const int64_t row = starts[static_cast<size_t>(t)] + r;
      Doubles y(static_cast<size_t>(H)), next(static_cast<size_t>(H));
      double top = -INFINITY;
      for (int64_t j = 0; j < H; ++j) {
        double sum = d->b[j] + d->v[j] + (j < H / 2 ? 0.0 : d->v[1 + j - H / 2]);
        for (int64_t i = 0; i < n.F && has_x; ++i) sum += d->x[row * n.F + i] * d->A[i * H + j];
        for (int64_t i = 0; i < H; ++i) sum += h[r * H + i] * d->B[j * H + i];
        y[j] = tanh(sum);
        top = y[j] > top ? y[j] : top;
        d->db[j] += y[j];
        d->e[2 * j] += y[j] * y[j];
      }
      for (int64_t j = 0; j < H; ++j) {
        double z = 0.0;
        for (int64_t i = 0; i < H; ++i) z += y[i] * d->C[(2 * i + 1) * H + j];
        next[j] = 0.5 * z + y[j];
      }
      for (int64_t j = 0; j < n.L; ++j) {
        double sum = 0.0;
        for (int64_t i = 0; i < H; ++i) {
          sum += y[i] * (j < half ? d->D0[i * half + j] : d->D1[(j - half) * H + i]);
        }
        d->late[row * n.L + j] = sum;
      }
      for (int64_t j = 0; j < H; ++j) {
        h[r * H + j] = d->output[row * H + j] = next[j];
        for (int64_t i = 0; i < n.F && has_x; ++i) {
          d->dA[i * H + j] += d->x[row * n.F + i] * y[j];
          d->dA[i * H + (j < H / 2 ? j : j - H / 2)] += d->x[row * n.F + i] * next[j];
        }
        for (int64_t i = 0; i < H; ++i) d->dC[(2 * i + 1) * H + j] += y[i] * next[j];
      }
      s[r] += top;
    }
  }
  d->h_n = h;
  d->s_n = s;
}

template <typename T>
std::vector<T> as(const Doubles& values) {
  return std::vector<T>(values.begin(), values.end());
}

const Poll kNever = {[](void*) { return false; }, nullptr};

template <typename T>
void compare(const std::string& name, const char* what, const std::vector<T>& got,
             const Doubles& expected, double tolerance = sizeof(T) == 8 ? 1e-12 : 2e-4) {
  double largest = 1e-3, worst = 0.0;
  for (double x : expected) largest = fmax(largest, fabs(x));
  for (size_t i = 0; i < expected.size(); ++i) {
    const double error = fabs(static_cast<double>(got[i]) - expected[i]);
    worst = error == error ? fmax(worst, error) : INFINITY;
  }
  const double allowed = tolerance * largest;
  if (worst > allowed) {
    check(false, name + ": " + what + " is wrong by " + std::to_string(worst));
  }
}

// Where a run leaves its results.
template <typename T>
struct Results {
  static constexpr T kMark = static_cast<T>(-77);
  std::vector<T> output, late, h_n, s_n, dA, dC, db, e;

  Results(const Sizes& n, const Batch& batch, const Data& d)
      : output(static_cast<size_t>(batch.N * (kBefore + n.H + kAfter)), kMark),
        late(static_cast<size_t>(batch.N * n.L), static_cast<T>(NAN)),
        h_n(d.h.size(), static_cast<T>(NAN)),
        s_n(d.s.size(), static_cast<T>(NAN)),
        dA(d.A.size()),
        dC(d.C.size()),
        db(d.b.size()),
        e(2 * d.b.size()) {}

  void enter(Request* request) {
    for (std::vector<T>* sum : {&dA, &dC, &db, &e}) sum->assign(sum->size(), T(0));
    request->streams[1] = output.data();
    request->streams[2] = late.data();
    request->new_states = {h_n.data(), s_n.data()};
    request->gradients = {dA.data(), nullptr, dC.data(), db.data(),
                          nullptr,   nullptr, e.data(),  nullptr};
  }

  void compare_all(const std::string& name, const Sizes& n, const Data& d) const {
    const int64_t wide = kBefore + n.H + kAfter;
    std::vector<T> inner;
    bool untouched = true;
    for (size_t at = 0; at < output.size(); ++at) {
      const int64_t i = static_cast<int64_t>(at) % wide;
      if (i >= kBefore && i < kBefore + n.H) {
        inner.push_back(output[at]);
      } else {
        untouched = untouched && output[at] == kMark;
      }
    }
    check(untouched, name + ": numbers beside the output changed");
    compare(name, "the output", inner, d.output);
    compare(name, "the late output", late, d.late);
    compare(name, "h_n", h_n, d.h_n);
    compare(name, "s_n", s_n, d.s_n);
    compare(name, "the gradient of A", dA, d.dA);
    compare(name, "the gradient of C", dC, d.dC);
    compare(name, "the gradient of b", db, d.db);
    compare(name, "the sum of squares", e, d.e);
  }
};

template <typename T>
void test(const Sizes& n, const Batch& batch, bool descending, bool has_x, int64_t threads) {
  const std::string name =
      std::string(sizeof(T) == 8 ? "double" : "float") + " H=" + std::to_string(n.H) +
      " T=" + std::to_string(batch.T) + " B=" + std::to_string(batch.B) +
      (batch.sizes.empty() ? " dense" : " packed") + (descending ? " descending" : " ascending") +
      (has_x ? "" : " without input") + " threads=" + std::to_string(threads);
  Data d = make_data(n, batch);
  // What a float holds, so that both start from the same numbers.
  for (Doubles* list : {&d.x, &d.h, &d.s, &d.A, &d.B, &d.C, &d.b, &d.v, &d.D0, &d.D1}) {
    for (double& x : *list) x = static_cast<double>(static_cast<float>(x));
  }
  plain(n, batch, descending, has_x, &d);

  std::vector<T> x = as<T>(d.x), h = as<T>(d.h), s = as<T>(d.s);
  std::vector<T> A = as<T>(d.A), B = as<T>(d.B), C = as<T>(d.C), b = as<T>(d.b), v = as<T>(d.v);
  std::vector<T> D0 = as<T>(d.D0), D1 = as<T>(d.D1);
  Results<T> results(n, batch, d), others(n, batch, d);

  const Schedule schedule(lists(n));
  Request request{};
  request.is_double = sizeof(T) == 8;
  request.descending = descending;
  request.steps = batch.T;
  request.batch = batch.B;
  request.rows = batch.N;
  request.batch_sizes = batch.sizes.empty() ? nullptr : batch.sizes.data();
  request.streams = {has_x ? x.data() : nullptr, nullptr, nullptr};
  request.statics = {A.data(),  B.data(),  C.data(), b.data(),
                     D0.data(), D1.data(), nullptr,  v.data()};
  request.states = {h.data(), s.data()};
  results.enter(&request);
  const Call call = {&schedule, request};
  check(run({&call}, threads, kNever), name + ": stopped");
  results.compare_all(name, n, d);
  // Twice at the same time, and in memory that the first run leaves.
  Request other = request;
  results.enter(&request);
  others.enter(&other);
  const Call first = {&schedule, request}, second = {&schedule, other};
  check(run({&first, &second}, threads, kNever), name + ": two stopped");
  results.compare_all(name + " with another", n, d);
  others.compare_all(name + " beside another", n, d);
}

// The same loop without anything that is gathered: nothing then makes threads wait for each other.
template <typename T>
void test_forward_only(const Sizes& n, const Batch& batch, int64_t threads) {
  const std::string name =
      "forward only, T=" + std::to_string(batch.T) + " B=" + std::to_string(batch.B) +
      (batch.sizes.empty() ? " dense" : " packed") + " threads=" + std::to_string(threads);
  Data d = make_data(n, batch);
  plain(n, batch, false, true, &d);
  std::vector<T> x = as<T>(d.x), h = as<T>(d.h), s = as<T>(d.s);
  std::vector<T> A = as<T>(d.A), B = as<T>(d.B), C = as<T>(d.C), b = as<T>(d.b), v = as<T>(d.v);
  std::vector<T> D0 = as<T>(d.D0), D1 = as<T>(d.D1);
  const int64_t wide = kBefore + n.H + kAfter;
  std::vector<T> output(static_cast<size_t>(batch.N * wide)), h_n(h.size()), s_n(s.size());
  std::vector<T> late(d.late.size());
  Lists shorter = lists(n);
  shorter.after.clear();
  shorter.outers.clear();
  shorter.sums.clear();
  shorter.targets.clear();
  shorter.stages[1] = {1, 0, 1, 2, 5, 9};
  const Schedule schedule(shorter);
  Request request{};
  request.is_double = sizeof(T) == 8;
  request.steps = batch.T;
  request.batch = batch.B;
  request.rows = batch.N;
  request.batch_sizes = batch.sizes.empty() ? nullptr : batch.sizes.data();
  request.streams = {x.data(), output.data(), late.data()};
  request.statics = {A.data(),  B.data(),  C.data(), b.data(),
                     D0.data(), D1.data(), nullptr,  v.data()};
  request.states = {h.data(), s.data()};
  request.new_states = {h_n.data(), s_n.data()};
  request.gradients.assign(8, nullptr);
  for (int repeat = 0; repeat < 5; ++repeat) {
    const Call call = {&schedule, request};
    check(run({&call}, threads, kNever), name + ": stopped");
    std::vector<T> inner;
    for (int64_t row = 0; row < batch.N; ++row) {
      const T* p = output.data() + row * wide + kBefore;
      inner.insert(inner.end(), p, p + n.H);
    }
    compare(name, "the output", inner, d.output);
    compare(name, "h_n", h_n, d.h_n);
    compare(name, "s_n", s_n, d.s_n);
  }
}

// Asks to stop once, at a given call.
struct Question {
  int calls, last;
};

bool ask(void* question) {
  Question& q = *static_cast<Question*>(question);
  return ++q.calls == q.last;
}

void test_stopping(const Sizes& n, const Batch& batch, int64_t threads, int last) {
  Data d = make_data(n, batch);
  Results<double> results(n, batch, d), others(n, batch, d);
  Question question = {0, last};
  const Schedule schedule(lists(n));
  Request request{};
  request.is_double = true;
  request.steps = batch.T;
  request.batch = batch.B;
  request.rows = batch.N;
  request.streams = {d.x.data(), nullptr, nullptr};
  request.statics = {d.A.data(),  d.B.data(),  d.C.data(), d.b.data(),
                     d.D0.data(), d.D1.data(), nullptr,    d.v.data()};
  request.states = {d.h.data(), d.s.data()};
  const std::string name = "stopping with " + std::to_string(threads) + " threads";
  Request other = request;
  results.enter(&request);
  others.enter(&other);
  const Call first = {&schedule, request}, second = {&schedule, other};
  for (const std::vector<const Call*>& calls :
       {std::vector<const Call*>{&first}, {&first, &second}}) {
    question.calls = 0;
    check(!run(calls, threads, {ask, &question}), name + ": went on");
    check(question.calls >= last && question.calls <= last + 2,
          name + ": polled " + std::to_string(question.calls) + " times");
  }
}

template <typename Change>
void refuses(const char* what, const Change& change) {
  Lists wrong = lists({3, 4, 2});
  change(&wrong);
  try {
    const Schedule schedule(wrong);
    check(false, std::string("accepts ") + what);
  } catch (const std::invalid_argument& error) {
    check(std::string(error.what()).rfind("malformed program: ", 0) == 0,
          std::string("the message for ") + what);
  }
}

void test_malformed() {
  refuses("a short buffer", [](Lists* l) { l->buffers[1].pop_back(); });
  refuses("an unknown space", [](Lists* l) { l->buffers[1][0] = 99; });
  refuses("an unknown operation", [](Lists* l) { l->instructions[0][0] = kOpCount; });
  refuses("half an operand", [](Lists* l) { l->instructions[0].pop_back(); });
  refuses("half a matrix", [](Lists* l) { l->matrices[0].pop_back(); });
  refuses("a term of no matrix", [](Lists* l) { l->terms[0][4] = 3; });
  refuses("a bias of no term", [](Lists* l) { l->biases[0][0] = 4; });
  refuses("an empty stage", [](Lists* l) { l->stages[0] = {0}; });
  refuses("half an outer product", [](Lists* l) { l->outers[0].pop_back(); });
  refuses("a matrix in two dtypes", [](Lists* l) { l->bfloat16 = {true}; });
  refuses("half a target", [](Lists* l) { l->targets[0].pop_back(); });
}

// The same loop with all matrices in bfloat16 and everything else in float32, compared with plain
// loops over numbers of which those that are bfloat16 are rounded beforehand.
uint16_t to_bfloat16(double number) {
  const float x = static_cast<float>(number);
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

std::vector<uint16_t> rounded(Doubles* numbers) {
  std::vector<uint16_t> halves;
  for (double& x : *numbers) {
    halves.push_back(to_bfloat16(x));
    const uint32_t bits = static_cast<uint32_t>(halves.back()) << 16;
    float out;
    memcpy(&out, &bits, sizeof out);
    x = static_cast<double>(out);
  }
  return halves;
}

void test_bfloat16(const Sizes& n, const Batch& batch, bool descending, int64_t threads) {
  const std::string name =
      "bfloat16 H=" + std::to_string(n.H) + " T=" + std::to_string(batch.T) +
      " B=" + std::to_string(batch.B) + (batch.sizes.empty() ? " dense" : " packed") +
      (descending ? " descending" : " ascending") + " threads=" + std::to_string(threads);
  Data d = make_data(n, batch);
  rounded(&d.x);
  const std::vector<uint16_t> A = rounded(&d.A), B = rounded(&d.B), C = rounded(&d.C);
  const std::vector<uint16_t> D0 = rounded(&d.D0), D1 = rounded(&d.D1);
  plain(n, batch, descending, true, &d);
  const std::vector<float> x = as<float>(d.x), h = as<float>(d.h), s = as<float>(d.s);
  const std::vector<float> b = as<float>(d.b), v = as<float>(d.v);
  const int64_t wide = kBefore + n.H + kAfter;
  std::vector<float> output(static_cast<size_t>(batch.N * wide)), late(d.late.size());
  std::vector<float> h_n(h.size()), s_n(s.size());
  std::vector<float> dA(d.dA.size()), dC(d.dC.size()), db(d.db.size()), e(d.e.size());
  Lists in_bfloat16 = lists(n);
  in_bfloat16.bfloat16 = {true, true, true, false, true, true, false, false};
  const Schedule schedule(in_bfloat16);
  Request request{};
  request.descending = descending;
  request.steps = batch.T;
  request.batch = batch.B;
  request.rows = batch.N;
  request.batch_sizes = batch.sizes.empty() ? nullptr : batch.sizes.data();
  const auto at = [](const auto& list) {
    return const_cast<void*>(static_cast<const void*>(list.data()));
  };
  request.streams = {at(x), output.data(), late.data()};
  request.statics = {at(A), at(B), at(C), at(b), at(D0), at(D1), nullptr, at(v)};
  request.states = {at(h), at(s)};
  request.new_states = {h_n.data(), s_n.data()};
  request.gradients = {dA.data(), nullptr, dC.data(), db.data(),
                       nullptr,   nullptr, e.data(),  nullptr};
  const Call call = {&schedule, request};
  check(run({&call}, threads, kNever), name + ": stopped");
  std::vector<float> inner;
  for (int64_t row = 0; row < batch.N; ++row) {
    const float* p = output.data() + row * wide + kBefore;
    inner.insert(inner.end(), p, p + n.H);
  }
  // Rounded are the rows of products: a relative error of 2^-9 each, of either sign.
  const double allowed = multiplies_bfloat16() ? 1e-2 : 2e-4;
  compare(name, "the output", inner, d.output, allowed);
  compare(name, "the late output", late, d.late, allowed);
  compare(name, "h_n", h_n, d.h_n, allowed);
  compare(name, "s_n", s_n, d.s_n, allowed);
  compare(name, "the gradient of A", dA, d.dA, allowed);
  compare(name, "the gradient of C", dC, d.dC, allowed);
  compare(name, "the gradient of b", db, d.db, allowed);
  compare(name, "the sum of squares", e, d.e, allowed);
}

void test_all_bfloat16() {
  const Sizes small = {3, 5, 3}, medium = {7, 20, 9}, large = {5, 150, 70};
  for (int64_t threads = 1; threads <= 4; ++threads) {
    for (bool is_packed : {false, true}) {
      for (bool descending : {false, true}) {
        test_bfloat16(small, Batch(4, 3, is_packed), descending, threads);
        test_bfloat16(medium, Batch(30, 33, is_packed), descending, threads);
        test_bfloat16(large, Batch(8, 3, is_packed), descending, threads);
        test_bfloat16(large, Batch(2, 3, is_packed), descending, threads);
      }
    }
  }
}

template <typename T>
void test_all() {
  const Sizes small = {3, 5, 3}, medium = {7, 20, 9}, large = {5, 150, 70};
  for (int64_t threads = 1; threads <= 4; ++threads) {
    for (bool is_packed : {false, true}) {
      for (bool descending : {false, true}) {
        test<T>(small, Batch(4, 3, is_packed), descending, true, threads);     // one thread
        test<T>(medium, Batch(80, 33, is_packed), descending, true, threads);  // by rows
        test<T>(large, Batch(12, 3, is_packed), descending, true, threads);    // by columns
      }
      test<T>(medium, Batch(40, 32, is_packed), false, false, threads);
      test_forward_only<T>(medium, Batch(120, 32, is_packed), threads);
      test_forward_only<T>(medium, Batch(400, 12, is_packed), threads);
      test_forward_only<T>(medium, Batch(120, 29, is_packed), threads);
      test_forward_only<T>(large, Batch(20, 2, is_packed), threads);
      // Few rows: weights are read where they are.
      test_forward_only<T>(small, Batch(2, 3, is_packed), threads);
      test_forward_only<T>(medium, Batch(1, 7, is_packed), threads);
      test_forward_only<T>(large, Batch(2, 4, is_packed), threads);
      test<T>(large, Batch(2, 3, is_packed), false, true, threads);
    }
    test<T>(large, Batch(1, 1, false), false, true, threads);
    test<T>(medium, Batch(1500, 1, false), true, true, threads);
  }
}

}  // namespace

int main() {
  const std::vector<std::string>& names = instruction_sets();
  const char* forced = getenv("CELLO_ISA");
  check(!names.empty(), "there is an instruction set");
  check(forced == nullptr || names == std::vector<std::string>{forced}, "CELLO_ISA forces one");
  test_malformed();
  test_all<double>();
  test_all<float>();
  test_all_bfloat16();
  for (int64_t threads = 1; threads <= 4; ++threads) {
    for (int last : {1, 10, 25, 31, 64}) {
      test_stopping({7, 20, 9}, Batch(500, 32, false), threads, last);
      test_stopping({5, 150, 70}, Batch(100, 2, false), threads, last);
    }
  }
  if (failures) fprintf(stderr, "%d failures\n", failures);
  return failures != 0;
}
