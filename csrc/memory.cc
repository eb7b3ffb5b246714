#include "memory.h"

#include <cstdlib>
#include <iterator>
#include <list>
#include <mutex>
#include <new>
#include <unordered_map>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace cello {
namespace memory {
namespace {

struct Block {
  void* memory;
  int64_t bytes;
};

struct Store {
  std::mutex mutex;
  std::list<Block> kept;  // the latest used first
  int64_t kept_bytes = 0;
  std::unordered_map<void*, int64_t> used;
};

// Never destroyed: tensors may outlive everything else when a process ends.
Store& store() {
  static Store* all = new Store;
  return *all;
}

int64_t rounded(int64_t bytes) {
  const int64_t unit = bytes >= kHugePage ? kHugePage : 4096;
  return (bytes + unit - 1) / unit * unit;
}

}  // namespace

void* take(int64_t bytes) {
  bytes = rounded(bytes > 0 ? bytes : 1);
  Store& all = store();
  {
    std::lock_guard<std::mutex> lock(all.mutex);
    auto best = all.kept.end();
    for (auto it = all.kept.begin(); it != all.kept.end(); ++it) {
      // A much larger block would keep others from using it.
      const bool fits = it->bytes >= bytes && it->bytes <= bytes + bytes / 4 + (64 << 10);
      if (fits && (best == all.kept.end() || it->bytes < best->bytes)) best = it;
    }
    if (best != all.kept.end()) {
      const Block found = *best;
      all.kept.erase(best);
      all.kept_bytes -= found.bytes;
      all.used[found.memory] = found.bytes;
      return found.memory;
    }
  }
  const bool is_large = bytes >= kHugePage;
  void* fresh = std::aligned_alloc(is_large ? kHugePage : 4096, static_cast<size_t>(bytes));
  if (fresh == nullptr) throw std::bad_alloc();
#if defined(__linux__)
  if (is_large) madvise(fresh, static_cast<size_t>(bytes), MADV_HUGEPAGE);
#endif
  std::lock_guard<std::mutex> lock(all.mutex);
  all.used[fresh] = bytes;
  return fresh;
}

void give_back(void* block) noexcept {
  Store& all = store();
  std::list<Block> freed;
  {
    std::lock_guard<std::mutex> lock(all.mutex);
    const auto found = all.used.find(block);
    all.kept.push_front({block, found->second});
    all.kept_bytes += found->second;
    all.used.erase(found);
    while (all.kept_bytes > kKeptBytes) {
      all.kept_bytes -= all.kept.back().bytes;
      freed.splice(freed.begin(), all.kept, std::prev(all.kept.end()));
    }
  }
  for (const Block& old : freed) std::free(old.memory);
}

}  // namespace memory
}  // namespace cello
