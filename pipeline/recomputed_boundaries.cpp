#include "pipeline/recomputed_boundaries.h"

#include "stages/recomputed_source.h"

namespace coppice {
namespace {

bool is_inside_a_block(int half) { return half % 2 == 1; }

}  // namespace

std::unique_ptr<ActivationSource> RecomputedBoundaries::inside(int half) const {
  const HalfRange attention{half - 1, half};
  return std::make_unique<RecomputedSource>(*job_, attention, cached_.inputs(attention));
}

std::unique_ptr<ActivationSource> RecomputedBoundaries::inputs(HalfRange window) {
  return is_inside_a_block(window.first) ? inside(window.first) : cached_.inputs(window);
}

std::unique_ptr<ActivationSource> RecomputedBoundaries::targets(HalfRange window) {
  return is_inside_a_block(window.last) ? inside(window.last) : cached_.targets(window);
}

std::unique_ptr<ActivationSink> RecomputedBoundaries::sink(Boundary boundary) {
  return is_inside_a_block(boundary.half) ? nullptr : cached_.sink(boundary);
}

}  // namespace coppice
