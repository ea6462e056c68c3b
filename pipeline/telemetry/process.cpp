#include "pipeline/telemetry/process.h"

#include <sys/resource.h>

namespace coppice {

uint64_t peak_rss_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return uint64_t(usage.ru_maxrss) * 1024;  // Linux counts KiB
}

}  // namespace coppice
