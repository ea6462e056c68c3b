// Masks that somebody else decided on: bitmasks, or the zeros of a checkpoint.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "stages/model/architecture.h"
#include "stages/prune_options.h"
#include "storage/checkpoint/checkpoint_reader.h"

namespace coppice {

/// A tensor "<weight>.bitmask" (FORMATS.md, masks) decides for its weight; where there is none, the
/// zeros of the tensor called as the weight do. Headers only are read here: masks travel with their
/// block.
class MaskSource {
 public:
  /// Opens the masks beside a checkpoint that was written with them, `prune.masks`/masks, and else
  /// `prune.masks` itself. Throws as CheckpointReader does.
  explicit MaskSource(const PruneOptions& prune);

  /// Throws ConfigError for a mask of another shape than its weight, a bitmask that names no weight
  /// of the model, and where no target has a mask.
  void check(const Architecture& architecture) const;

  const CheckpointReader& checkpoint() const { return checkpoint_; }

  /// The tensor that decides for a linear's weight; empty where none does, and for linears that are
  /// no targets: they stay dense.
  std::string tensor_for(const std::string& linear) const;

 private:
  PruneOptions prune_;
  CheckpointReader checkpoint_;
};

/// The source that PruneOptions::masks names; null where scores decide.
std::unique_ptr<MaskSource> open_masks(const PruneOptions& prune);

/// What a weight's bitmask is called.
std::string bitmask_name(const std::string& weight);

}  // namespace coppice
