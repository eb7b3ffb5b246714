// The extension module cello.engines.native._native.
//
// Nothing here throws during the import: nanobind makes an ImportError of it, which would look as
// if the module had not been built.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <chrono>

#include "instruction_sets.h"
#include "memory.h"
#include "run.h"
#include "threads.h"

namespace nb = nanobind;

namespace {

typedef std::chrono::steady_clock Clock;

// Lets Python look after signals (Ctrl-C) a few times a second, from the thread that called.
struct Signals {
  Clock::time_point next = Clock::now() + std::chrono::milliseconds(200);

  static bool poll(void* self) {
    Signals& signals = *static_cast<Signals*>(self);
    if (Clock::now() < signals.next) return false;
    signals.next = Clock::now() + std::chrono::milliseconds(200);
    nb::gil_scoped_acquire gil;
    return PyErr_CheckSignals() != 0;
  }
};

std::vector<void*> pointers(const std::vector<uintptr_t>& addresses) {
  std::vector<void*> out;
  for (uintptr_t address : addresses) out.push_back(reinterpret_cast<void*>(address));
  return out;
}

template <size_t Count>
std::vector<std::string> names(const char* const (&list)[Count]) {
  return {list, list + Count};
}

cello::Call make_call(const cello::Schedule& schedule, bool is_double, bool descending,
                      int64_t steps, int64_t batch, int64_t rows, uintptr_t batch_sizes,
                      const std::vector<uintptr_t>& streams, const std::vector<uintptr_t>& statics,
                      const std::vector<uintptr_t>& states,
                      const std::vector<uintptr_t>& new_states,
                      const std::vector<uintptr_t>& origins,
                      const std::vector<uintptr_t>& gradients) {
  return {&schedule,
          {is_double, descending, steps, batch, rows, reinterpret_cast<const int64_t*>(batch_sizes),
           pointers(streams), pointers(statics), pointers(states), pointers(new_states),
           pointers(origins), pointers(gradients)}};
}

void run(const std::vector<const cello::Call*>& calls, int64_t threads) {
  Signals signals;
  bool finished;
  {
    nb::gil_scoped_release release;
    finished = cello::run(calls, threads, {&Signals::poll, &signals});
  }
  if (!finished) throw nb::python_error();
}

// A tensor of torch over memory that is used again when the tensor and all its views are gone.
nb::object empty(int64_t rows, int64_t width, bool is_double) {
  int64_t bytes;
  if (__builtin_mul_overflow(rows, width, &bytes) || bytes > INT64_MAX / 16) throw std::bad_alloc();
  bytes *= is_double ? 8 : 4;
  void* block = cello::memory::take(bytes);
  nb::capsule owner(block, [](void* memory) noexcept { cello::memory::give_back(memory); });
  const size_t shape[2] = {static_cast<size_t>(rows), static_cast<size_t>(width)};
  return nb::cast(nb::ndarray<nb::pytorch>(block, 2, shape, owner, nullptr,
                                           is_double ? nb::dtype<double>() : nb::dtype<float>()));
}

cello::Schedule* make_schedule(const cello::Rows& buffers, const std::vector<double>& numbers,
                               const cello::Rows& instructions, const cello::Rows& matrices,
                               const cello::Rows& terms, const cello::Rows& biases,
                               const cello::Rows& stages, const std::vector<int64_t>& before,
                               const std::vector<int64_t>& after, const cello::Rows& outers,
                               const std::vector<int64_t>& sums, const cello::Rows& targets,
                               const std::vector<int64_t>& tiles,
                               const std::vector<bool>& bfloat16) {
  cello::Lists lists;
  lists.buffers = buffers;
  lists.numbers = numbers;
  lists.instructions = instructions;
  lists.matrices = matrices;
  lists.terms = terms;
  lists.biases = biases;
  lists.stages = stages;
  lists.before = before;
  lists.after = after;
  lists.outers = outers;
  lists.sums = sums;
  lists.targets = targets;
  lists.tiles = tiles;
  lists.bfloat16 = bfloat16;
  return new cello::Schedule(lists);
}

}  // namespace

NB_MODULE(_native, m) {
  // Schedules are cached for the life of the process, which nanobind would report at its end.
  nb::set_leak_warnings(false);
  m.def("instruction_sets", &cello::instruction_sets,
        "The instruction sets that the engine can use here, best first; CELLO_ISA forces one.");
  m.def("multiplies_bfloat16", &cello::multiplies_bfloat16,
        "Whether products with weights in bfloat16 are products in bfloat16; if not, in float32.");
  m.def("shares_threads", &cello::shares_threads,
        "Whether the engine's threads are those of torch's OpenMP library.");
  m.def("operations", [] { return names(cello::kOpNames); }, "The operations, by their numbers.");
  m.def("spaces", [] { return names(cello::kSpaceNames); }, "Kinds of memory, by their numbers.");
  m.def("empty", &empty, nb::arg("rows"), nb::arg("width"), nb::arg("is_double"),
        "A tensor (rows, width) with any content, in memory that is used again.");
  nb::class_<cello::Schedule>(m, "Schedule", "A loop, from lists of numbers.")
      .def(nb::new_(&make_schedule), nb::arg("buffers"), nb::arg("numbers"),
           nb::arg("instructions"), nb::arg("matrices"), nb::arg("terms"), nb::arg("biases"),
           nb::arg("stages"), nb::arg("before"), nb::arg("after"), nb::arg("outers"),
           nb::arg("sums"), nb::arg("targets"), nb::arg("tiles"), nb::arg("bfloat16"))
      .def(
          "call", &make_call, nb::keep_alive<0, 1>(), nb::arg("is_double"), nb::arg("descending"),
          nb::arg("steps"), nb::arg("batch"), nb::arg("rows"), nb::arg("batch_sizes"),
          nb::arg("streams"), nb::arg("statics"), nb::arg("states"), nb::arg("new_states"),
          nb::arg("origins"), nb::arg("gradients"),
          "The loop over the steps of a batch, not run yet; tensors are given by their addresses.");
  nb::class_<cello::Call>(m, "Call", "A loop over the steps of a batch.")
      .def("is_better_together", &cello::is_better_together, nb::arg("threads"),
           "Whether two such calls take less time side by side than in turn.");
  m.def("run", &run, nb::arg("calls"), nb::arg("threads"),
        "Run all calls, of one dtype, at the same time.");
}
