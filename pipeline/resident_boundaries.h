// Hidden states as tensors on the device: boundaries that cost nothing.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <vector>

#include "stages/span_job.h"

namespace coppice {

/// Every boundary that was written stays until it is written again. For measuring what is computed
/// without what is stored. Used by the device's thread alone.
class ResidentBoundaries final : public Boundaries {
 public:
  enum class Keep { kAll, kBetweenBlocks };

  /// Kept in `stored`, read in `compute`.
  ResidentBoundaries(int windows, at::ScalarType stored, at::ScalarType compute,
                     Keep keep = Keep::kAll)
      : windows_(windows), stored_(stored), compute_(compute), keep_(keep) {}

  /// Throws std::out_of_range for a boundary that nobody wrote.
  std::unique_ptr<ActivationSource> source(Boundary boundary) override;
  std::unique_ptr<ActivationSink> sink(Boundary boundary) override;

 private:
  using Windows = std::vector<at::Tensor>;
  class Source;
  class Sink;

  int windows_;
  at::ScalarType stored_, compute_;
  Keep keep_;
  std::map<Boundary, Windows> held_;
};

}  // namespace coppice
