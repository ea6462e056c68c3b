#include "tests/support/golden.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <stdexcept>

#include "configs/architecture_file.h"

namespace coppice::testing {
namespace {

std::filesystem::path golden_directory(const std::string& folder) {
  return std::filesystem::path(COPPICE_SOURCE_DIR) / "tests" / "golden" / folder;
}

at::Tensor read_tensor(const std::filesystem::path& path, const TensorInfo& info) {
  static const std::map<std::string, at::ScalarType> kTypes = {{"F32", at::kFloat},
                                                               {"F16", at::kHalf},
                                                               {"BF16", at::kBFloat16},
                                                               {"I64", at::kLong},
                                                               {"U8", at::kByte}};
  at::Tensor tensor = at::empty(info.shape, at::TensorOptions(kTypes.at(info.dtype)));
  std::ifstream file(path, std::ios::binary);
  file.seekg(static_cast<std::streamoff>(info.offset));
  file.read(static_cast<char*>(tensor.data_ptr()), static_cast<std::streamsize>(info.bytes));
  if (!file || tensor.nbytes() != info.bytes) {
    throw std::runtime_error(path.string() + ": no " + std::to_string(tensor.nbytes()) +
                             " bytes of tensor " + info.name);
  }
  return tensor;
}

}  // namespace

std::vector<std::string> golden_folders() {
  std::vector<std::string> folders;
  for (const auto& entry : std::filesystem::directory_iterator(golden_directory(""))) {
    if (entry.is_directory()) folders.push_back(entry.path().filename());
  }
  std::sort(folders.begin(), folders.end());
  return folders;
}

Golden::Golden(const std::string& folder)
    : golden_path_(golden_directory(folder) / "golden.safetensors"),
      checkpoint_(golden_directory(folder)),
      golden_(read_safetensors_header(golden_path_)),
      architecture_(load_architecture(golden_directory(folder))) {
  match_checkpoint(architecture_, checkpoint_);
}

at::Tensor Golden::weight(const std::string& name) const {
  const Extent extent = checkpoint_.extent(name);
  return read_tensor(checkpoint_.files().at(extent.file)->path(), checkpoint_.tensor(name));
}

at::Tensor Golden::expected(const std::string& name) const {
  for (const TensorInfo& info : golden_.tensors) {
    if (info.name == name) return read_tensor(golden_path_, info);
  }
  throw std::out_of_range(golden_path_.string() + " has no tensor " + name);
}

BlockWeights Golden::block(int block) const {
  return gather_block(architecture_, block,
                      [this](const std::string& name) { return weight(name); });
}

at::ScalarType Golden::compute_dtype() const {
  if (architecture_.dtype == "BF16") return at::kBFloat16;
  return at::kFloat;
}

}  // namespace coppice::testing
