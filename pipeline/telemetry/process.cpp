#include "pipeline/telemetry/process.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

namespace coppice {
namespace {

constexpr uint64_t kUnlimited = std::numeric_limits<uint64_t>::max();

/// The number a file begins with; kUnlimited where it is absent or says "max".
uint64_t number_in(const std::string& path) {
  std::ifstream file(path);
  uint64_t number = 0;
  return file >> number ? number : kUnlimited;
}

uint64_t kernel_available_bytes() {
  std::ifstream meminfo("/proc/meminfo");
  std::string name, unit;
  uint64_t kib = 0;
  while (meminfo >> name >> kib) {
    if (name == "MemAvailable:") return kib * 1024;
    std::getline(meminfo, unit);
  }
  return kUnlimited;
}

/// Of a group's usage, file pages that the kernel gives up before it refuses memory.
uint64_t reclaimable_bytes(const std::string& directory, const std::string& key) {
  std::ifstream statistics(directory + "/memory.stat");
  uint64_t bytes = 0;
  for (std::string name; statistics >> name >> bytes;) {
    if (name == key) return bytes;
  }
  return 0;
}

/// What is left of the limits of a control group and those above it.
uint64_t left_in_group(const std::string& root, std::string group, const char* limit_file,
                       const char* usage_file, const char* file_pages) {
  uint64_t left = kUnlimited;
  for (;;) {
    const uint64_t limit = number_in(root + group + "/" + limit_file);
    const uint64_t usage = number_in(root + group + "/" + usage_file);
    if (limit != kUnlimited && usage != kUnlimited) {
      const uint64_t reclaimable = reclaimable_bytes(root + group, file_pages);
      left = std::min(left, limit - std::min(limit, usage - std::min(usage, reclaimable)));
    }
    if (group.empty() || group == "/") return left;
    group.resize(group.rfind('/'));
  }
}

uint64_t left_in_control_groups() {
  std::ifstream groups("/proc/self/cgroup");
  uint64_t left = kUnlimited;
  for (std::string line; std::getline(groups, line);) {  // "4:memory:/a/b", "0::/a/b"
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string group = line.substr(second + 1);
    if (controllers.empty()) {
      left = std::min(left, left_in_group("/sys/fs/cgroup", group, "memory.max", "memory.current",
                                          "inactive_file"));
    } else if (("," + controllers + ",").find(",memory,") != std::string::npos) {
      left = std::min(left, left_in_group("/sys/fs/cgroup/memory", group, "memory.limit_in_bytes",
                                          "memory.usage_in_bytes", "total_inactive_file"));
    }
  }
  return left;
}

}  // namespace

// Not getrusage's: that begins with the peak of whoever called exec.
uint64_t peak_rss_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) return std::stoull(line.substr(6)) * 1024;  // counted in KiB
  }
  return resident_bytes();
}

void forget_peak_rss() { std::ofstream("/proc/self/clear_refs") << "5"; }

uint64_t resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  uint64_t size = 0, resident = 0;
  statm >> size >> resident;
  return resident * uint64_t(sysconf(_SC_PAGESIZE));
}

uint64_t available_memory_bytes() {
  return std::min(kernel_available_bytes(), left_in_control_groups());
}

}  // namespace coppice
