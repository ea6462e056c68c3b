// Turns a family's description and a checkpoint's config.json into an Architecture.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "stages/model/architecture.h"
#include "storage/checkpoint/checkpoint_reader.h"

namespace coppice {

/// Finds the family that claims `architectures[0]` of `<model>/config.json` among the descriptions
/// compiled in (configs/architectures/*.yaml) and `extra` (may be empty), and fills in the numbers.
/// Both spellings of the rope (rope_theta + rope_scaling, rope_parameters) are read.
/// Throws IoError (no config.json), ConfigError (not JSON, unknown class: lists the known ones; an
/// absent or senseless value, an activation or rope type we do not know; key path and value named).
Architecture load_architecture(const std::filesystem::path& model_directory,
                               const std::filesystem::path& extra = {});

/// Compares the checkpoint's headers with what the architecture expects: every tensor there, with
/// its shape, in a dtype we compute with (F32, F16, BF16; the same within a block); where the
/// architecture has a scale block, matrices of the blocks may be FP8 (F8_E4M3) with their scales
/// (F32) beside them, the rest is BF16. Sets architecture.dtype, and `tied` when the head is
/// absent. Throws ConfigError or CorruptionError naming tensor, expected, found. Returns the names
/// of tensors nobody knows: they are copied through.
std::vector<std::string> match_checkpoint(Architecture& architecture,
                                          const CheckpointReader& checkpoint);

/// Families compiled in: name and YAML text.
struct BuiltinArchitecture {
  std::string name;
  std::string yaml;
};
const std::vector<BuiltinArchitecture>& builtin_architectures();

}  // namespace coppice
