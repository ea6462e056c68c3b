#include "pipeline/resident_boundaries.h"

#include <ATen/ops/cat.h>

namespace coppice {

class ResidentBoundaries::Source final : public ActivationSource {
 public:
  Source(const Windows& held, at::ScalarType compute) : held_(held), compute_(compute) {}
  int num_windows() const override { return int(held_.size()); }
  void announce(std::span<const int>) override {}
  MicroBatch read(std::span<const int> windows) override {
    MicroBatch batch;
    std::vector<at::Tensor> parts;
    for (const int window : windows) {
      parts.push_back(held_.at(size_t(window)));
      batch.lengths.push_back(int(parts.back().size(0)));
    }
    const at::Tensor hidden = parts.size() == 1 ? parts.front() : at::cat(parts);
    batch.hidden = hidden.to(compute_, /*non_blocking=*/false, /*copy=*/parts.size() == 1);
    return batch;
  }

 private:
  const Windows& held_;
  at::ScalarType compute_;
};

class ResidentBoundaries::Sink final : public ActivationSink {
 public:
  Sink(Windows& held, at::ScalarType stored) : held_(held), stored_(stored) {}
  void write(int window, const at::Tensor& hidden) override {
    held_.at(size_t(window)) = hidden.to(stored_, /*non_blocking=*/false, /*copy=*/true);
  }

 private:
  Windows& held_;
  at::ScalarType stored_;
};

std::unique_ptr<ActivationSource> ResidentBoundaries::source(Boundary boundary) {
  return std::make_unique<Source>(held_.at(boundary), compute_);
}

std::unique_ptr<ActivationSink> ResidentBoundaries::sink(Boundary boundary) {
  if (keep_ == Keep::kBetweenBlocks && half_of(boundary.half) == Half::kMlp) return nullptr;
  Windows& windows = held_[boundary];
  windows.resize(size_t(windows_));
  return std::make_unique<Sink>(windows, stored_);
}

}  // namespace coppice
