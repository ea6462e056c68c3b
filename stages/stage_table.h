// Which stages there are, by name; a recipe becomes a list of them.
#pragma once

#include <memory>
#include <vector>

#include "stages/calibrate.h"
#include "stages/stage.h"

namespace coppice {

/// The stages of one variant, in order: what runs on every window of a span after the dense
/// forward. Throws std::logic_error if a stage's needs are not given by the ones before it.
std::vector<std::unique_ptr<Stage>> adapt_stages(const PruneOptions& prune,
                                                 const ReconstructOptions& reconstruct);

/// The dense forward that these stages want before them; null where nothing of the
/// dense model's own activations is wanted.
std::unique_ptr<Stage> forward_stage(const PruneOptions& prune,
                                     const ReconstructOptions& reconstruct,
                                     Calibrate::Convert convert = Calibrate::Convert::kAhead);

/// What of a recipe is mathematics.
struct VariantOptions {
  PruneOptions prune;
  ReconstructOptions reconstruct;
};

/// One dense forward for several variants: it gathers what any of them wants. Several want dense
/// propagation and one validation_fraction. Throws std::logic_error where they do not.
std::unique_ptr<Stage> forward_stage(const std::vector<VariantOptions>& variants,
                                     Calibrate::Convert convert = Calibrate::Convert::kAhead);

/// The windows of a span in the order they are worked, e.g. {2b, 2b+1}, {2b+1, 2b+2}. Whole blocks
/// start where the span does; the last window may hold fewer.
std::vector<HalfRange> windows_of(HalfRange span, const Window& window);

}  // namespace coppice
