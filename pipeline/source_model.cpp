#include "pipeline/source_model.h"

#include "configs/architecture_file.h"

namespace coppice {

SourceModel open_model(const std::filesystem::path& directory,
                       const std::filesystem::path& extra_architecture) {
  // config.json first: a directory of another kind is better described by its class than by its
  // shards.
  Architecture architecture = load_architecture(directory, extra_architecture);
  CheckpointReader checkpoint(directory);
  std::vector<std::string> unknown = match_checkpoint(architecture, checkpoint);
  return {std::move(checkpoint), std::move(architecture), std::move(unknown)};
}

}  // namespace coppice
