// Holds a checkpoint's headers against what its config.json promises.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <set>

#include "configs/architecture_file.h"
#include "configs/errors.h"
#include "storage/errors.h"

namespace coppice {
namespace {

const std::array<std::string, 3> kDtypes = {"F32", "F16", "BF16"};

std::string shape_text(const std::vector<int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

const TensorInfo& matched(const CheckpointReader& checkpoint, const NamedShape& expected) {
  const std::string directory = checkpoint.directory().string();
  if (!checkpoint.has(expected.name)) {
    throw CorruptionError(directory, 0,
                          fmt::format("tensor '{}' {}, as config.json has it", expected.name,
                                      shape_text(expected.shape)),
                          "absent");
  }
  const TensorInfo& tensor = checkpoint.tensor(expected.name);
  if (std::find(kDtypes.begin(), kDtypes.end(), tensor.dtype) == kDtypes.end()) {
    throw ConfigError(
        fmt::format("{}: {}: {}: this dtype is not computed with; save the model in "
                    "one of {}",
                    directory, expected.name, tensor.dtype, fmt::join(kDtypes, ", ")));
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

void match_block(const Architecture& architecture, const CheckpointReader& checkpoint, int block,
                 std::set<std::string>& known) {
  for (const NamedShape& expected : block_tensors(architecture, block)) {
    const TensorInfo& tensor = matched(checkpoint, expected);
    known.insert(expected.name);
    if (tensor.dtype == architecture.dtype) continue;
    throw ConfigError(fmt::format(
        "{}: {}: {}: must be {} as the first tensor of the blocks; save the model in one dtype",
        checkpoint.directory().string(), expected.name, tensor.dtype, architecture.dtype));
  }
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
    matched(checkpoint, expected);
    known.insert(expected.name);
  }
  architecture.dtype = matched(checkpoint, block_tensors(architecture, 0).front()).dtype;
  for (int block = 0; block < architecture.num_blocks; ++block) {
    match_block(architecture, checkpoint, block, known);
  }

  std::vector<std::string> unknown;
  for (const std::string& name : checkpoint.names()) {
    if (known.count(name) == 0) unknown.push_back(name);
  }
  return unknown;
}

}  // namespace coppice
