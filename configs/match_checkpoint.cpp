// Holds a checkpoint's headers against what its config.json promises.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>

#include "configs/architecture_file.h"
#include "configs/errors.h"
#include "storage/errors.h"

namespace coppice {
namespace {

const std::vector<std::string> kDtypes = {"F32", "F16", "BF16"};
const std::string kWidened = "BF16";  // what FP8 becomes

std::string shape_text(const std::vector<int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

/// `dtypes` are those it may have.
const TensorInfo& matched(const CheckpointReader& checkpoint, const NamedShape& expected,
                          const std::vector<std::string>& dtypes) {
  const std::string directory = checkpoint.directory().string();
  if (!checkpoint.has(expected.name)) {
    throw CorruptionError(directory, 0,
                          fmt::format("tensor '{}' {}, as config.json has it", expected.name,
                                      shape_text(expected.shape)),
                          "absent");
  }
  const TensorInfo& tensor = checkpoint.tensor(expected.name);
  if (std::find(dtypes.begin(), dtypes.end(), tensor.dtype) == dtypes.end()) {
    throw ConfigError(
        fmt::format("{}: {}: {}: this dtype is not computed with; save the model in "
                    "one of {}",
                    directory, expected.name, tensor.dtype, fmt::join(dtypes, ", ")));
  }
  if (tensor.shape != expected.shape) {
    const auto& shard = checkpoint.files()[checkpoint.extent(expected.name).file];
    throw CorruptionError(shard->path().string(), tensor.offset,
                          fmt::format("tensor '{}' {}, as config.json has it", expected.name,
                                      shape_text(expected.shape)),
                          shape_text(tensor.shape));
  }
  return tensor;
}

/// A tensor of the blocks; of FP8 its scales, too. Returns the dtype that it is computed in.
std::string match_tensor(const Architecture& architecture, const CheckpointReader& checkpoint,
                         const NamedShape& expected, std::set<std::string>& known) {
  known.insert(expected.name);
  const bool may_be_fp8 = architecture.scale_block.is_there() && expected.shape.size() == 2;
  if (!may_be_fp8) return matched(checkpoint, expected, kDtypes).dtype;
  const std::string dtype = matched(checkpoint, expected, {kWidened, kFp8}).dtype;
  if (dtype != kFp8) return dtype;
  const NamedShape scales = {scales_name(expected.name),
                             scales_shape(architecture.scale_block, expected.shape)};
  known.insert(scales.name);
  matched(checkpoint, scales, {"F32"});
  return kWidened;
}

void match_block(const Architecture& architecture, const CheckpointReader& checkpoint, int block,
                 std::set<std::string>& known) {
  for (const NamedShape& expected : block_tensors(architecture, block)) {
    const std::string dtype = match_tensor(architecture, checkpoint, expected, known);
    if (dtype == architecture.dtype) continue;
    throw ConfigError(fmt::format(
        "{}: {}: {}: must be {} as the first tensor of the blocks; save the model in one dtype",
        checkpoint.directory().string(), expected.name, dtype, architecture.dtype));
  }
}

/// Scales whose weight is not FP8 belong to another checkpoint.
void require_no_scales(const Architecture& architecture, const CheckpointReader& checkpoint,
                       const std::string& name) {
  static const std::string kSuffix = scales_name("");
  if (!architecture.scale_block.is_there() || !name.ends_with(kSuffix)) return;
  const std::string weight = name.substr(0, name.size() - kSuffix.size());
  throw CorruptionError(
      checkpoint.directory().string(), 0,
      fmt::format("an FP8 weight ({}) of the blocks with the scales '{}'", kFp8, name),
      checkpoint.has(weight) ? checkpoint.tensor(weight).dtype : "none");
}

/// An MLP that all tokens go through beside the experts would be left out of the forward, unsaid.
void require_no_other_experts(const Architecture& architecture, const std::string& name) {
  if (architecture.experts.count == 0 || name.find("expert") == std::string::npos) return;
  throw ConfigError(fmt::format(
      "{}: the description '{}' names no such tensor: experts of another kind, shared ones among "
      "them, are not computed",
      name, architecture.family));
}

}  // namespace

std::vector<std::string> match_checkpoint(Architecture& architecture,
                                          const CheckpointReader& checkpoint) {
  if (!architecture.tied && !architecture.head.empty() && !checkpoint.has(architecture.head)) {
    architecture.tied = true;
    architecture.head = architecture.embedding;
  }
  std::set<std::string> known;
  for (const NamedShape& expected : outer_tensors(architecture)) {
    matched(checkpoint, expected, kDtypes);
    known.insert(expected.name);
  }
  architecture.dtype =
      match_tensor(architecture, checkpoint, block_tensors(architecture, 0).front(), known);
  for (int block = 0; block < architecture.num_blocks; ++block) {
    match_block(architecture, checkpoint, block, known);
  }

  std::vector<std::string> unknown;
  for (const std::string& name : checkpoint.names()) {
    if (known.count(name) != 0) continue;
    require_no_scales(architecture, checkpoint, name);
    require_no_other_experts(architecture, name);
    unknown.push_back(name);
  }
  return unknown;
}

}  // namespace coppice
