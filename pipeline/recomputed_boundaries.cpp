#include "pipeline/recomputed_boundaries.h"

#include "stages/recomputed_source.h"

namespace coppice {
namespace {

bool is_recomputed(Boundary boundary) {
  return boundary.stream == Stream::kDense && boundary.is_inside_a_block();
}

}  // namespace

std::unique_ptr<ActivationSource> RecomputedBoundaries::source(Boundary boundary) {
  if (!is_recomputed(boundary)) return cached_.source(boundary);
  const HalfRange attention{boundary.half - 1, boundary.half};
  return std::make_unique<RecomputedSource>(*job_, attention,
                                            cached_.source({Stream::kDense, attention.first}));
}

std::unique_ptr<ActivationSink> RecomputedBoundaries::sink(Boundary boundary) {
  return is_recomputed(boundary) ? nullptr : cached_.sink(boundary);
}

}  // namespace coppice
