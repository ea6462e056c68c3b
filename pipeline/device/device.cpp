#include "pipeline/device/device.h"

#include <stdexcept>

#include "configs/errors.h"  // ConfigError

namespace coppice {
namespace {

/// A block must come out the same wherever it is worked on.
void require_alike(const Device& device, const Device& other) {
  if (device.where().is_cuda() && device.name() == other.name()) {
    throw ConfigError("resources.device: " + device.name() + " is named twice");
  }
  if (device.numerics() == other.numerics()) return;
  throw ConfigError("resources.device: " + device.name() + " (" + device.numerics() + ") and " +
                    other.name() + " (" + other.numerics() +
                    ") do not compute the same bits; name devices of one kind");
}

}  // namespace

std::unique_ptr<Device> make_device(const DeviceOptions& options) {
  const std::string& wanted = options.device;
  if (wanted == "cpu") return make_cpu_device(options);
  std::string why;
  if (wanted == "auto") {
    std::unique_ptr<Device> gpu = make_cuda_device(0, options, why);
    return gpu ? std::move(gpu) : make_cpu_device(options);
  }
  if (wanted.rfind("cuda:", 0) == 0 && wanted.size() > 5 &&
      wanted.find_first_not_of("0123456789", 5) == std::string::npos) {
    if (auto gpu = make_cuda_device(std::stoi(wanted.substr(5)), options, why)) return gpu;
    throw ConfigError("resources.device: " + wanted + ": " + why + "; use cpu or auto");
  }
  throw ConfigError("resources.device: " + wanted + ": expected auto, cpu or cuda:N");
}

std::vector<std::unique_ptr<Device>> make_devices(const DeviceOptions& options) {
  std::vector<std::unique_ptr<Device>> devices;
  const std::string& names = options.device;
  for (size_t first = 0, comma = 0; comma != std::string::npos; first = comma + 1) {
    comma = names.find(',', first);
    DeviceOptions one = options;
    one.device = names.substr(first, comma == std::string::npos ? comma : comma - first);
    auto device = make_device(one);
    for (const auto& other : devices) require_alike(*device, *other);
    devices.push_back(std::move(device));
  }
  return devices;
}

at::ScalarType scalar_type(const std::string& safetensors_dtype) {
  if (safetensors_dtype == "BF16") return at::kBFloat16;
  if (safetensors_dtype == "F16") return at::kHalf;
  if (safetensors_dtype == "F32") return at::kFloat;
  throw std::invalid_argument("dtype " + safetensors_dtype + " is not one we compute with");
}

}  // namespace coppice
