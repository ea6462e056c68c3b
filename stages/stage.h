// A stage: one piece of mathematics applied to a window.
#pragma once

#include <cstdint>
#include <string_view>

#include "stages/cost.h"
#include "stages/span_job.h"

namespace coppice {

/// What stages need of each other, as a set of bits.
enum class Products : uint32_t {
  kNone = 0,
  kBoundaries = 1,  // the activations that windows read, in the cache
  kStatistics = 2,  // SpanJob::statistics
  kMasks = 4,       // Variant::masks and the pruned weights in Variant::adapted
  kAdapted = 8,     // Variant::adapted holds reconstructed weights
  kGram = 16,       // InputStatistics::gram
  kSums = 32,       // InputStatistics::sum, and gram_sum beside a Gram matrix
};
constexpr Products operator|(Products a, Products b) { return Products(uint32_t(a) | uint32_t(b)); }
constexpr bool contains(Products all, Products some) {
  return (uint32_t(all) & uint32_t(some)) == uint32_t(some);
}

/// The size of the work: what cost() needs to know of a window and the calibration set.
struct SpanShape {
  const Architecture& architecture;
  HalfRange halves;
  int64_t num_windows = 0;
  int64_t seqlen = 0;
  int64_t compute_bytes = 4;  // of one element in the compute dtype
  bool is_host = true;        // computed in the host's memory
  KeptActivations kept_activations = KeptActivations::kAll;
};

class Stage {
 public:
  virtual ~Stage() = default;
  virtual std::string_view name() const = 0;
  virtual Products needs() const = 0;  // checked when the recipe is read
  virtual Products gives() const = 0;
  virtual Cost cost(const SpanShape& shape) const = 0;
  /// On the device's thread. Throws NumericalError if what it made is not finite.
  virtual void run(WindowJob& job) const = 0;
};

}  // namespace coppice
