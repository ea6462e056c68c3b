#include "pipeline/resident_tensors.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <span>

#include "storage/checkpoint/safetensors.h"
#include "storage/io/read_progress.h"  // read_blocking

namespace coppice {
namespace {

std::span<std::byte> bytes_of(const at::Tensor& tensor) {
  return {static_cast<std::byte*>(tensor.mutable_data_ptr()), tensor.nbytes()};
}

at::Tensor read_tensor(const ReadFile& file, const TensorInfo& info) {
  at::Tensor tensor = at::empty(info.shape, at::TensorOptions(scalar_type(info.dtype)));
  read_blocking({.file = &file,
                 .offset = info.offset,
                 .into = bytes_of(tensor),
                 .required_bytes = info.bytes});
  return tensor;
}

}  // namespace

std::map<std::string, at::Tensor> read_tensors(const CheckpointReader& checkpoint,
                                               const std::vector<std::string>& names,
                                               at::Device where) {
  // Direct reads want aligned memory, which a tensor is not: through the page cache, once.
  std::map<uint32_t, ReadFile> files;
  std::map<std::string, at::Tensor> tensors;
  for (const std::string& name : names) {
    const uint32_t index = checkpoint.extent(name).file;
    const auto file =
        files.try_emplace(index, checkpoint.files()[index]->path(), ReadFile::Direct::kNever).first;
    tensors[name] = read_tensor(file->second, checkpoint.tensor(name)).to(where);
  }
  return tensors;
}

ResidentModel read_model(const SourceModel& model, const Device& device) {
  const Architecture& architecture = model.architecture;
  const at::ScalarType stored = scalar_type(architecture.dtype);
  std::vector<std::string> names;
  NamedTensors added;
  const auto add = [&](const std::vector<NamedShape>& tensors) {
    for (const NamedShape& tensor : tensors) {
      if (!tensor.is_added) {
        names.push_back(tensor.name);
      } else {
        added[tensor.name] =
            at::zeros(tensor.shape, at::TensorOptions(stored).device(device.where()));
      }
    }
  };
  add(outer_tensors(architecture));
  for (int block = 0; block < architecture.num_blocks; ++block) {
    add(block_tensors(architecture, block));
  }
  ResidentModel resident{architecture, read_tensors(model.checkpoint, names, device.where()),
                         device.compute_dtype(stored)};
  resident.tensors.merge(added);
  return resident;
}

std::map<std::string, at::Tensor> read_tensors(const std::filesystem::path& path) {
  const ReadFile file(path, ReadFile::Direct::kNever);
  std::map<std::string, at::Tensor> tensors;
  for (const TensorInfo& info : read_safetensors_header(path).tensors) {
    tensors[info.name] = read_tensor(file, info);
  }
  return tensors;
}

FileRecord write_tensors(const std::filesystem::path& path,
                         const std::map<std::string, at::Tensor>& tensors) {
  std::vector<TensorSpec> specs;
  uint64_t bytes = 0;
  for (const auto& [name, tensor] : tensors) {
    specs.push_back({name, "F32", tensor.sizes().vec()});
    bytes += specs.back().bytes();
  }
  const std::string header = make_safetensors_header(specs);
  StagedFile file(path, header.size() + bytes);
  file.append(std::as_bytes(std::span(header)));
  for (const auto& [name, tensor] : tensors) {
    file.append(bytes_of(tensor.to(at::kCPU, at::kFloat).contiguous()));
  }
  return file.publish();
}

}  // namespace coppice
