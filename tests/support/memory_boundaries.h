// Boundaries held in memory: sources and sinks of calibration windows for tests of stages.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <vector>

#include "stages/span_job.h"

namespace coppice::testing {

using Windows = std::vector<at::Tensor>;  // [seqlen, hidden] each

class MemorySource : public ActivationSource {
 public:
  MemorySource(const Windows& windows, at::ScalarType compute, std::vector<std::vector<int>>& log,
               size_t most_at_once)
      : windows_(windows), compute_(compute), announced_(log), most_at_once_(most_at_once) {}

  int num_windows() const override { return static_cast<int>(windows_.size()); }
  void announce(std::span<const int> order) override {
    announced_.emplace_back(order.begin(), order.end());
  }
  MicroBatch read(std::span<const int> windows) override {
    const bool is_kept = at::GradMode::is_enabled();  // with all that follows from it, for backward
    TORCH_CHECK_WITH(OutOfMemoryError, !is_kept || windows.size() <= most_at_once_,
                     "so many windows");
    MicroBatch batch;
    std::vector<at::Tensor> parts;
    for (const int window : windows) {
      parts.push_back(windows_.at(static_cast<size_t>(window)).to(compute_));
      batch.lengths.push_back(static_cast<int>(parts.back().size(0)));
    }
    batch.hidden = at::cat(parts, 0);
    return batch;
  }

 private:
  const Windows& windows_;
  at::ScalarType compute_;
  std::vector<std::vector<int>>& announced_;
  size_t most_at_once_;
};

class MemorySink : public ActivationSink {
 public:
  explicit MemorySink(Windows& windows) : windows_(windows) {}
  void write(int window, const at::Tensor& hidden) override {
    const auto index = static_cast<size_t>(window);
    if (windows_.size() <= index) windows_.resize(index + 1);
    windows_[index] = hidden.clone();
  }

 private:
  Windows& windows_;
};

/// Answers from `held` and `propagated`; a sink writes there, for boundaries in `wanted` only.
class MemoryBoundaries : public Boundaries {
 public:
  std::map<int, Windows> held, propagated;  // by half-block number: of the dense stream, the other
  std::set<int> wanted;                     // in both
  at::ScalarType compute = at::kFloat;
  std::vector<std::vector<int>> announced;  // every order, in the order of the calls
  size_t most_at_once = SIZE_MAX;           // where it is trained: of more windows, out of memory

  std::unique_ptr<ActivationSource> source(Boundary boundary) override {
    return std::make_unique<MemorySource>(of(boundary.stream).at(boundary.half), compute, announced,
                                          most_at_once);
  }
  std::unique_ptr<ActivationSink> sink(Boundary boundary) override {
    if (!wanted.contains(boundary.half)) return nullptr;
    return std::make_unique<MemorySink>(of(boundary.stream)[boundary.half]);
  }

 private:
  std::map<int, Windows>& of(Stream stream) { return stream == Stream::kDense ? held : propagated; }
};

}  // namespace coppice::testing
