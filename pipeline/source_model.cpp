#include "pipeline/source_model.h"

#include "configs/architecture_file.h"

namespace coppice {

std::string widened_dtype(const TensorInfo& tensor) {
  return tensor.dtype == kFp8 ? "BF16" : tensor.dtype;
}

void add_biases(SourceModel& model) { model.added_keys = add_biases(model.architecture); }

uint64_t count_parameters(const SourceModel& model) {
  const bool has_scales = model.architecture.scale_block.is_there();
  uint64_t parameters = 0;
  for (const SafetensorsHeader& header : model.checkpoint.headers()) {
    for (const TensorInfo& tensor : header.tensors) {
      if (has_scales && tensor.name.ends_with(scales_name(""))) continue;
      parameters += uint64_t(tensor.num_elements());
    }
  }
  return parameters;
}

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
