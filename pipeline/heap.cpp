#include "pipeline/heap.h"

#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <new>

#include "pipeline/telemetry/process.h"  // resident_bytes

// Of tcmalloc, with which the program is linked and tests are not.
extern "C" {
__attribute__((weak)) void MallocExtension_ReleaseFreeMemory();
__attribute__((weak)) int MallocExtension_GetNumericProperty(const char* name, size_t* value);
__attribute__((weak)) int MallocExtension_SetNumericProperty(const char* name, size_t value);
}

namespace coppice {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kStepMib = 64;  // at least, so that what is small finds room as well

std::atomic<uint64_t> limit_mib = 0;  // 0: none

bool is_tcmalloc() {
  return MallocExtension_ReleaseFreeMemory != nullptr &&
         MallocExtension_GetNumericProperty != nullptr &&
         MallocExtension_SetNumericProperty != nullptr;
}

void set_limit(uint64_t mib) {
  limit_mib = mib;
  MallocExtension_SetNumericProperty("tcmalloc.heap_limit_mb", mib);
}

/// False where there is no limit to raise.
bool raise_limit(uint64_t bytes) {
  if (limit_mib == 0) return false;
  set_limit(limit_mib + bytes / kMiB + kStepMib);
  return true;
}

/// tcmalloc refuses what would exceed its limit. A plan that was wrong by a little shall not end a
/// night's run: whatever is refused is asked for again under a higher limit.
class NeverRefusing final : public c10::Allocator {
 public:
  explicit NeverRefusing(c10::Allocator& next) : next_(next) {}

  c10::DataPtr allocate(size_t bytes) override {
    try {
      return next_.allocate(bytes);
    } catch (const c10::Error&) {
      if (!raise_limit(bytes)) throw;
      return next_.allocate(bytes);
    }
  }
  c10::DeleterFnPtr raw_deleter() const override { return next_.raw_deleter(); }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    next_.copy_data(to, from, bytes);
  }

 private:
  c10::Allocator& next_;
};

void install() {
  static NeverRefusing allocator(*c10::GetCPUAllocator());
  c10::SetCPUAllocator(&allocator, /*priority=*/1);
  std::set_new_handler([] {
    // What operator new asks for is small: refused this often, it is not the limit that refuses.
    static std::atomic<int> times = 0;
    if (++times > 16 || !raise_limit(0)) throw std::bad_alloc();
  });
}

}  // namespace

void prefer_huge_pages() { setenv("THP_MEM_ALLOC_ENABLE", "1", /*overwrite=*/0); }

void release_free_memory() {
  if (is_tcmalloc()) MallocExtension_ReleaseFreeMemory();
}

void limit_heap(uint64_t resident, uint64_t mapped_bytes) {
  if (!is_tcmalloc()) return;
  static std::once_flag installed;
  std::call_once(installed, install);
  size_t heap = 0;
  if (MallocExtension_GetNumericProperty("tcmalloc.pageheap_committed_bytes", &heap) == 0) return;
  const uint64_t now = resident_bytes();
  const uint64_t beside = (now > heap ? now - heap : 0) + mapped_bytes;
  set_limit(std::max<uint64_t>(heap, resident > beside ? resident - beside : 0) / kMiB + 1);
}

}  // namespace coppice
