// Tensors that are read whole and stay in memory, and tensors kept in a file of their own.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "pipeline/device/device.h"
#include "pipeline/source_model.h"
#include "stages/retrain/resident_model.h"
#include "storage/checkpoint/checkpoint_reader.h"
#include "storage/io/file.h"

namespace coppice {

/// The tensors of the checkpoint with these names, on `where`, in their own dtypes. On the device's
/// thread. Throws IoError, CorruptionError.
std::map<std::string, at::Tensor> read_tensors(const CheckpointReader& checkpoint,
                                               const std::vector<std::string>& names,
                                               at::Device where);

/// The whole model on the device, as it is stored; biases that no checkpoint has are zeros. On the
/// device's thread. Throws IoError, CorruptionError.
ResidentModel read_model(const SourceModel& model, const Device& device);

/// All tensors of one safetensors file, on the CPU. Throws IoError, CorruptionError.
std::map<std::string, at::Tensor> read_tensors(const std::filesystem::path& path);

/// Writes fp32 tensors of any device to one safetensors file, durably (StagedFile). On the device's
/// thread. Throws IoError.
FileRecord write_tensors(const std::filesystem::path& path,
                         const std::map<std::string, at::Tensor>& tensors);

}  // namespace coppice
