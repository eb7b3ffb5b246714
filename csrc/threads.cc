#include "threads.h"

#include <dlfcn.h>
#include <unistd.h>

#include <atomic>
#include <initializer_list>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__APPLE__)
#include <mach-o/dyld.h>

#include <string>
#endif

namespace cello {
namespace {

// The library of torch's that calls OpenMP, or null where this process has none.
void* torch_library() {
  constexpr int kLoadedAlready = RTLD_LAZY | RTLD_NOLOAD;
#if defined(__APPLE__)
  const std::string name = "/libtorch_cpu.dylib";
  for (uint32_t i = 0; i < _dyld_image_count(); ++i) {
    const char* image = _dyld_get_image_name(i);
    const std::string path = image == nullptr ? "" : image;  // one that was just unloaded
    if (path.size() > name.size() && path.substr(path.size() - name.size()) == name) {
      return dlopen(path.c_str(), kLoadedAlready);
    }
  }
  return nullptr;
#else
  return dlopen("libtorch_cpu.so", kLoadedAlready);
#endif
}

// The functions behind `#pragma omp parallel`, of the library that torch itself calls. Every
// OpenMP library of a Unix has them under GCC's names. They are looked up in the process and not
// linked to: the name of torch's library differs from build to build (libgomp.so.1,
// libgomp-a49a47f9.so.1.0.0, libomp.dylib), and a second library would be a second set of threads
// that takes the cores from the first.
struct OpenMP {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
  int (*in_parallel)() = nullptr;
  int (*num_threads)() = nullptr;
  int (*thread_num)() = nullptr;

  explicit operator bool() const { return parallel && in_parallel && num_threads && thread_num; }
};

template <typename Function>
void look_up(Function** function, void* library, const char* name) {
  *function = reinterpret_cast<Function*>(dlsym(library, name));
}

OpenMP functions_of(void* library) {
  OpenMP found;
  look_up(&found.parallel, library, "GOMP_parallel");
  look_up(&found.in_parallel, library, "omp_in_parallel");
  look_up(&found.num_threads, library, "omp_get_num_threads");
  look_up(&found.thread_num, library, "omp_get_thread_num");
  return found;
}

const OpenMP& openmp() {
  static const OpenMP found = [] {
#if !defined(__APPLE__)
    // As for torch's own calls, what is global in the process comes first, such as a library of
    // LD_PRELOAD.
    if (const OpenMP global = functions_of(RTLD_DEFAULT)) return global;
#endif
    void* library = torch_library();
    return library == nullptr ? OpenMP{} : functions_of(library);
  }();
  return found;
}

struct Region {
  int64_t count;
  const std::function<void(int64_t)>* part;
  bool has_run;
};

void run_region(void* argument) {
  Region& region = *static_cast<Region*>(argument);
  // Fewer threads than asked for would wait for each other for ever.
  if (openmp().num_threads() != region.count) return;
  const int thread = openmp().thread_num();
  if (thread == 0) region.has_run = true;
  (*region.part)(thread);
}

bool run_in_new_threads(int64_t count, const std::function<void(int64_t)>& part) {
  // None begins before all are there, since they will wait for each other.
  enum State { kStarting, kRunning, kGivenUp };
  std::atomic<State> state{kStarting};
  std::vector<std::thread> others;
  try {
    for (int64_t thread = 1; thread < count; ++thread) {
      others.emplace_back([&state, &part, thread] {
        while (state == kStarting) std::this_thread::yield();
        if (state == kRunning) part(thread);
      });
    }
    state = kRunning;
    part(0);
  } catch (const std::system_error&) {  // the system gives no more threads
    state = kGivenUp;
  }
  for (std::thread& other : others) other.join();
  return state == kRunning;
}

// A thread of a pool does not live on in a forked process, and waiting for it would never end.
const pid_t kProcess = getpid();

}  // namespace

bool shares_threads() { return static_cast<bool>(openmp()); }

int64_t usable_threads(int64_t asked) {
  if (!shares_threads()) return asked;
  return getpid() == kProcess && !openmp().in_parallel() ? asked : 1;
}

bool side_by_side(int64_t count, const std::function<void(int64_t)>& part) {
  if (!shares_threads()) return run_in_new_threads(count, part);
  Region region{count, &part, false};
  openmp().parallel(run_region, &region, static_cast<unsigned>(count), 0);
  return region.has_run;
}

}  // namespace cello
