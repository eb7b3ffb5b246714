// The memory of a call, laid out for its threads.
#pragma once

#include <cstdint>
#include <vector>

#include "division.h"
#include "schedule.h"

namespace cello {

// Memory of one call: pieces that are asked for one by one and then taken at once.
class Workspace {
 public:
  Workspace() = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace();

  // `piece` points to so many bytes, which begin a line of the cache, once all is taken.
  void ask(int64_t bytes, void** piece) { asked_.push_back({bytes, piece}); }

  void take();

 private:
  struct Asked {
    int64_t bytes;
    void** piece;
  };
  std::vector<Asked> asked_;
  void* memory_ = nullptr;
};

// A loop over one batch, ready to be run by a team of threads.
class Prepared {
 public:
  // `call` outlives it.
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
  void ask_for_weights();
  void ask_for_gradients();
  void ask_for_buffers();
  void fill_weights();
  void fill_buffers();

  const Kernels& isa_;
  const Schedule& schedule_;
  const Loop& loop_;
  const Request& request_;
  const Division division_;
  const int64_t number_;  // bytes of a number
  int64_t chunk_rows_;
  Workspace workspace_;
  void* zeros_ = nullptr;  // a row of them
  std::vector<int64_t> starts_, depths_, firsts_;
  std::vector<const void*> statics_;
  std::vector<void*> widened_, packed_, biases_, outers_;
  std::vector<Place> places_;
  Team team_{};
  Job job_{};
};

}  // namespace cello
