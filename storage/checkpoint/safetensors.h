// The safetensors format: 8 bytes little-endian header length, JSON header, data.
// Source: https://github.com/huggingface/safetensors (format section).
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace coppice {

/// One tensor as the header describes it. `dtype` is the format's own word ("BF16", "F32", …), kept
/// as it is: an unknown one is copied through, never interpreted.
struct TensorInfo {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  uint64_t offset = 0;  // from the start of the file
  uint64_t bytes = 0;

  int64_t num_elements() const;
};

/// The word for 8-bit floats of 4 exponent and 3 mantissa bits.
inline constexpr char kFp8[] = "F8_E4M3";

struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;              // ascending by offset
  std::map<std::string, std::string> metadata;  // "__metadata__"
  uint64_t data_offset = 0;                     // where the data begins
};

/// Bytes of one element, or 0 for a dtype this program does not know.
uint64_t element_bytes(std::string_view dtype);

/// Parses and checks a header: JSON of sane depth and size, offsets ascending, inside the file,
/// without overlap or hole, equal to shape × element size, names unique. `json` is the text after
/// the length; `file_bytes` the size of the whole file. Throws CorruptionError naming `path`,
/// tensor and bytes.
SafetensorsHeader parse_safetensors_header(const std::string& path, std::string_view json,
                                           uint64_t file_bytes);

/// Reads and parses the header of a file. Throws IoError (absent), CorruptionError (truncated,
/// lying).
SafetensorsHeader read_safetensors_header(const std::filesystem::path& path);

/// What a new file shall hold; offsets follow from the order.
struct TensorSpec {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;

  uint64_t bytes() const;  // throws std::invalid_argument for an unknown dtype
};

/// Length prefix and JSON header (padded with spaces so that the data begins at a multiple of 8;
/// metadata
/// {"format":"pt"}) for tensors laid end to end in the order given.
/// Throws std::invalid_argument for a name given twice.
std::string make_safetensors_header(const std::vector<TensorSpec>& tensors);
/// The same for tensors copied as they are, whatever their dtype: `bytes` counts, `offset` does
/// not.
std::string make_copy_header(const std::vector<TensorInfo>& tensors);

}  // namespace coppice
