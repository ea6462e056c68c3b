#include "pipeline/heap.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>

#include "pipeline/telemetry/process.h"  // resident_bytes

// Of tcmalloc, with which the program is linked and most tests are not.
extern "C" {
__attribute__((weak)) void MallocExtension_ReleaseFreeMemory();
__attribute__((weak)) int MallocExtension_GetNumericProperty(const char* name, size_t* value);
__attribute__((weak)) int MallocExtension_SetNumericProperty(const char* name, size_t value);
__attribute__((weak)) int tc_set_new_mode(int flag);
}

namespace coppice {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kStepMib = 64;

std::mutex limit_mutex;
uint64_t limit_mib = 0;  // 0: none

void set_limit(uint64_t mib) {
  limit_mib = mib;
  MallocExtension_SetNumericProperty("tcmalloc.heap_limit_mb", mib);
}

uint64_t installed_mib() {
  return uint64_t(sysconf(_SC_PHYS_PAGES)) * uint64_t(sysconf(_SC_PAGESIZE)) / kMiB;
}

/// tcmalloc refuses what would exceed its limit. A plan that was wrong by a little shall not end a
/// night's run: it asks again under a higher limit, until it is the kernel that refuses.
void raise_limit() {
  const std::lock_guard lock(limit_mutex);
  if (limit_mib == 0) throw std::bad_alloc();
  const uint64_t raised = limit_mib + kStepMib;
  set_limit(raised < installed_mib() ? raised : 0);
}

}  // namespace

void prefer_huge_pages() { setenv("THP_MEM_ALLOC_ENABLE", "1", /*overwrite=*/0); }

bool knows_its_heap() {
  return MallocExtension_ReleaseFreeMemory != nullptr &&
         MallocExtension_GetNumericProperty != nullptr &&
         MallocExtension_SetNumericProperty != nullptr && tc_set_new_mode != nullptr;
}

void release_free_memory() {
  if (knows_its_heap()) MallocExtension_ReleaseFreeMemory();
}

void limit_heap(uint64_t resident, uint64_t mapped_bytes) {
  if (!knows_its_heap()) return;
  std::set_new_handler(raise_limit);
  tc_set_new_mode(1);  // the handler is for malloc and its kin, too
  size_t heap = 0;
  if (MallocExtension_GetNumericProperty("tcmalloc.pageheap_committed_bytes", &heap) == 0) return;
  const uint64_t now = resident_bytes();
  const uint64_t beside = (now > heap ? now - heap : 0) + mapped_bytes;
  const std::lock_guard lock(limit_mutex);
  set_limit(std::max<uint64_t>(heap, resident > beside ? resident - beside : 0) / kMiB + 1);
}

}  // namespace coppice
