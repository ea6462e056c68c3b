// The boundaries of one span, those inside its blocks recomputed rather than cached.
#pragma once

#include <memory>

#include "stages/span_job.h"

namespace coppice {

/// Answers for boundaries between blocks as `cached` does; for one inside a block with the dense
/// weights at hand (RecomputedSource), and with no sink. Device's thread.
class RecomputedBoundaries final : public Boundaries {
 public:
  explicit RecomputedBoundaries(Boundaries& cached) : cached_(cached) {}

  /// Before the first question; the job owns the weights and outlives the sources.
  void set_job(const SpanJob& job) { job_ = &job; }

  std::unique_ptr<ActivationSource> inputs(HalfRange window) override;
  std::unique_ptr<ActivationSource> targets(HalfRange window) override;
  std::unique_ptr<ActivationSink> sink(Boundary boundary) override;

 private:
  std::unique_ptr<ActivationSource> inside(int half) const;

  Boundaries& cached_;
  const SpanJob* job_ = nullptr;
};

}  // namespace coppice
