// The allocator's heap: how much of what is freed it may keep.
#pragma once

#include <cstdint>

namespace coppice {

/// Large tensors shall lie in huge pages, which take a seventh of the time to be touched first.
/// Before the first tensor. A user's own THP_MEM_ALLOC_ENABLE stays.
void prefer_huge_pages();

/// Whether the allocator is tcmalloc: elsewhere the functions below do nothing.
bool knows_its_heap();

/// Makes the allocator give back what is free: later allocations take new pages, zeroed by the
/// kernel.
void release_free_memory();

/// From now on the allocator gives freed memory back before the process has more than
/// `resident_bytes`, of which `mapped_bytes` are still to be mapped beside the heap, and keeps
/// most of it otherwise, because touching new pages is slow. What is in use may exceed it: memory
/// that is needed is never refused, the heap just grows. Any thread; later calls replace earlier
/// ones.
void limit_heap(uint64_t resident_bytes, uint64_t mapped_bytes);

}  // namespace coppice
