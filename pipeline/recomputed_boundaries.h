// The boundaries of one span, those inside its blocks recomputed rather than cached.
#pragma once

#include <memory>

#include "stages/span_job.h"

namespace coppice {

/// Answers for the dense boundaries inside a block with the weights at hand (RecomputedSource), and
/// with no sink; for all others as `cached` does. Device's thread.
class RecomputedBoundaries final : public Boundaries {
 public:
  explicit RecomputedBoundaries(Boundaries& cached) : cached_(cached) {}

  /// Before the first question; the job owns the weights and outlives the sources.
  void set_job(const SpanJob& job) { job_ = &job; }

  std::unique_ptr<ActivationSource> source(Boundary boundary) override;
  std::unique_ptr<ActivationSink> sink(Boundary boundary) override;

 private:
  Boundaries& cached_;
  const SpanJob* job_ = nullptr;
};

}  // namespace coppice
