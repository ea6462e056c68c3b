#include "pipeline/mask_source.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <set>

#include "configs/errors.h"  // ConfigError
#include "stages/targets.h"  // is_target

namespace coppice {
namespace {

namespace fs = std::filesystem;

const std::string kSuffix = ".bitmask";

fs::path with_masks(const fs::path& directory) {
  return fs::is_directory(directory / "masks") ? directory / "masks" : directory;
}

/// How a tensor must look to decide for a weight.
void require_shape(const std::string& directory, const TensorInfo& tensor, const LinearSpec& spec,
                   const std::string& weight) {
  const bool is_packed = tensor.name.ends_with(kSuffix);
  const std::vector<int64_t> shape = {spec.out, is_packed ? (spec.in + 7) / 8 : spec.in};
  const std::set<std::string> dtypes =
      is_packed ? std::set<std::string>{"U8"} : std::set<std::string>{"F32", "F16", "BF16"};
  if (tensor.shape == shape && dtypes.contains(tensor.dtype)) return;
  throw ConfigError(
      fmt::format("prune.masks: {}: '{}' is {} [{}]: '{}' [{}, {}] wants {} [{}] of its masks",
                  directory, tensor.name, tensor.dtype, fmt::join(tensor.shape, ", "), weight,
                  spec.out, spec.in, fmt::join(dtypes, " or "), fmt::join(shape, ", ")));
}

}  // namespace

std::string bitmask_name(const std::string& weight) { return weight + kSuffix; }

std::unique_ptr<MaskSource> open_masks(const PruneOptions& prune) {
  return prune.masks.empty() ? nullptr : std::make_unique<MaskSource>(prune);
}

MaskSource::MaskSource(const PruneOptions& prune)
    : prune_(prune), checkpoint_(with_masks(prune.masks)) {}

std::string MaskSource::tensor_for(const std::string& linear) const {
  if (!is_target(prune_, linear)) return "";
  const std::string weight = linear + ".weight";
  if (checkpoint_.has(bitmask_name(weight))) return bitmask_name(weight);
  return checkpoint_.has(weight) ? weight : "";
}

void MaskSource::check(const Architecture& architecture) const {
  const std::string directory = checkpoint_.directory().string();
  std::set<std::string> bitmasks;  // that could be
  bool any_target = false;
  for (int block = 0; block < architecture.num_blocks; ++block) {
    for (const LinearSpec& spec : architecture.linears) {
      const std::string linear = in_block(architecture, block, spec.name);
      bitmasks.insert(bitmask_name(linear + ".weight"));
      const std::string tensor = tensor_for(linear);
      if (tensor.empty()) continue;
      any_target = true;
      require_shape(directory, checkpoint_.tensor(tensor), spec, linear + ".weight");
    }
  }
  for (const std::string& name : checkpoint_.names()) {
    if (!name.ends_with(kSuffix) || bitmasks.contains(name)) continue;
    throw ConfigError(fmt::format(
        "prune.masks: {}: '{}' names no linear of the model: are these masks of another model?",
        directory, name));
  }
  if (any_target) return;
  throw ConfigError(
      fmt::format("prune.masks: {}: holds neither a mask nor the weight of any linear that "
                  "prune.targets and prune.ignore leave to prune",
                  directory));
}

}  // namespace coppice
