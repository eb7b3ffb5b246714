// Large blocks of memory that are used again and again.
//
// Fresh memory costs more than what a recurrent layer computes with it: the kernel maps and clears
// it page by page, and the C library gives large blocks back at once. Here they are kept for the
// next call.
#pragma once

#include <cstdint>

namespace cello {
namespace memory {

// Blocks from this size on lie on huge pages, where the system has them.
constexpr int64_t kHugePage = 2 << 20;
// No more than this is kept while nobody uses it.
constexpr int64_t kKeptBytes = 256 << 20;

// A block of at least `bytes`, aligned to a page, with any content. Throws std::bad_alloc.
void* take(int64_t bytes);

// Ends the use of a block. Safe from any thread.
void give_back(void* block) noexcept;

}  // namespace memory
}  // namespace cello
