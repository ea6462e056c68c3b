// The header is data from strangers: every number is checked before it is used, products and sums
// against overflow.
#include "storage/checkpoint/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <tuple>
#include <unordered_set>
#include <utility>

#include "storage/checkpoint/strict_json.h"
#include "storage/errors.h"
#include "storage/io/read_progress.h"  // read_blocking

namespace coppice {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

constexpr uint64_t kPrefixBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the limit of the reference implementation
constexpr size_t kDataAlignment = 8;
constexpr const char* kMetadataKey = "__metadata__";

/// What complaints need: every one is a CorruptionError that names the file and the tensor.
struct HeaderContext {
  const std::string& path;
  uint64_t data_offset;
  uint64_t data_bytes;
};

[[noreturn]] void complain(const HeaderContext& in, const std::string& tensor,
                           const std::string& expected, const std::string& found) {
  throw CorruptionError(in.path, kPrefixBytes, fmt::format("tensor '{}' {}", tensor, expected),
                        found);
}

std::optional<uint64_t> product(uint64_t a, uint64_t b) {
  uint64_t result = 0;
  if (__builtin_mul_overflow(a, b, &result)) return std::nullopt;
  return result;
}

/// Elements of a shape, or nothing if there are more than an int64 counts or a dimension is
/// negative.
std::optional<uint64_t> count_elements(const std::vector<int64_t>& shape) {
  std::optional<uint64_t> elements = 1;
  for (const int64_t dimension : shape) {
    if (dimension < 0) return std::nullopt;
    elements = product(*elements, static_cast<uint64_t>(dimension));
    if (!elements.has_value() || *elements > uint64_t{std::numeric_limits<int64_t>::max()}) {
      return std::nullopt;
    }
  }
  return elements;
}

const json& member(const HeaderContext& in, const std::string& tensor, const json& entry,
                   const char* key) {
  const auto found = entry.find(key);
  if (found == entry.end()) {
    complain(in, tensor, fmt::format("with key '{}'", key), entry.dump().substr(0, 100));
  }
  return *found;
}

/// A natural number a signed 64-bit integer can hold; JSON also has −1, 1.5 and 1e30.
uint64_t natural(const HeaderContext& in, const std::string& tensor, const json& value,
                 const char* of_what) {
  if (!value.is_number_unsigned() ||
      value.get<uint64_t>() > uint64_t{std::numeric_limits<int64_t>::max()}) {
    complain(in, tensor, fmt::format("with {} of natural numbers below 2^63", of_what),
             value.dump().substr(0, 100));
  }
  return value.get<uint64_t>();
}

const json& array_of(const HeaderContext& in, const std::string& tensor, const json& entry,
                     const char* key) {
  const json& value = member(in, tensor, entry, key);
  if (!value.is_array()) {
    complain(in, tensor, fmt::format("with an array '{}'", key), value.dump().substr(0, 100));
  }
  return value;
}

void check_size(const HeaderContext& in, const TensorInfo& tensor) {
  const std::optional<uint64_t> elements = count_elements(tensor.shape);
  if (!elements.has_value()) {
    complain(in, tensor.name, "with fewer than 2^63 elements",
             fmt::format("shape {}", json(tensor.shape).dump()));
  }
  const uint64_t element = element_bytes(tensor.dtype);
  if (element == 0) return;  // an unknown dtype: its size is what the header says
  const std::optional<uint64_t> bytes = product(*elements, element);
  if (bytes != tensor.bytes) {
    complain(in, tensor.name,
             fmt::format("of shape {} and dtype {} to have {} bytes", json(tensor.shape).dump(),
                         tensor.dtype, bytes.has_value() ? fmt::to_string(*bytes) : "over 2^64"),
             fmt::format("{} bytes", tensor.bytes));
  }
}

TensorInfo parse_tensor(const HeaderContext& in, const std::string& name, const json& entry) {
  if (!entry.is_object()) complain(in, name, "as an object", entry.dump().substr(0, 100));
  TensorInfo tensor;
  tensor.name = name;
  const json& dtype = member(in, name, entry, "dtype");
  if (!dtype.is_string()) complain(in, name, "with a string 'dtype'", dtype.dump().substr(0, 100));
  tensor.dtype = dtype.get<std::string>();
  for (const json& dimension : array_of(in, name, entry, "shape")) {
    tensor.shape.push_back(static_cast<int64_t>(natural(in, name, dimension, "a shape")));
  }
  const json& offsets = array_of(in, name, entry, "data_offsets");
  if (offsets.size() != 2) {
    complain(in, name, "with two data_offsets", fmt::format("{}", offsets.size()));
  }
  const uint64_t begin = natural(in, name, offsets[0], "data_offsets");
  const uint64_t end = natural(in, name, offsets[1], "data_offsets");
  if (begin > end) {
    complain(in, name, "to begin before it ends", fmt::format("data_offsets {}", offsets.dump()));
  }
  if (end > in.data_bytes) {
    complain(in, name,
             fmt::format("to end inside the file of {} bytes", in.data_offset + in.data_bytes),
             fmt::format("its end at byte {}", in.data_offset + end));
  }
  tensor.offset = in.data_offset + begin;
  tensor.bytes = end - begin;
  check_size(in, tensor);
  return tensor;
}

std::map<std::string, std::string> parse_metadata(const std::string& path, const json& entry) {
  std::map<std::string, std::string> metadata;
  bool texts_only = entry.is_object();
  for (auto item = entry.begin(); texts_only && item != entry.end(); ++item) {
    texts_only = item->is_string();
    if (texts_only) metadata[item.key()] = item->get<std::string>();
  }
  if (!texts_only) {
    throw CorruptionError(path, kPrefixBytes, "__metadata__ as an object of strings",
                          entry.dump().substr(0, 100));
  }
  return metadata;
}

/// The format wants every data byte to belong to exactly one tensor: bytes nobody names could hide
/// anything, and two tensors over one byte would change together.
void check_tiling(const HeaderContext& in, const std::vector<TensorInfo>& tensors) {
  uint64_t end = in.data_offset;
  for (const TensorInfo& tensor : tensors) {
    if (tensor.offset != end) {
      complain(in, tensor.name, fmt::format("to begin at byte {} where the one before ends", end),
               fmt::format("byte {} ({})", tensor.offset,
                           tensor.offset < end ? "an overlap" : "a hole"));
    }
    end += tensor.bytes;
  }
  const uint64_t file_bytes = in.data_offset + in.data_bytes;
  if (end != file_bytes) {
    throw CorruptionError(in.path, end, "the end of the file after the last tensor",
                          fmt::format("{} bytes that belong to no tensor", file_bytes - end));
  }
}

}  // namespace

int64_t TensorInfo::num_elements() const {
  const std::optional<uint64_t> elements = count_elements(shape);
  if (!elements.has_value()) {
    throw std::invalid_argument(
        fmt::format("tensor '{}': shape {} is not countable", name, json(shape).dump()));
  }
  return static_cast<int64_t>(*elements);
}

uint64_t element_bytes(std::string_view dtype) {
  struct Row {
    std::string_view dtype;
    uint64_t bytes;
  };
  static constexpr std::array kTable{
      Row{"BOOL", 1}, Row{"U8", 1},  Row{"I8", 1},  Row{"F8_E4M3", 1}, Row{"F8_E5M2", 1},
      Row{"I16", 2},  Row{"U16", 2}, Row{"F16", 2}, Row{"BF16", 2},    Row{"I32", 4},
      Row{"U32", 4},  Row{"F32", 4}, Row{"F64", 8}, Row{"I64", 8},     Row{"U64", 8}};
  for (const Row& row : kTable) {
    if (row.dtype == dtype) return row.bytes;
  }
  return 0;
}

SafetensorsHeader parse_safetensors_header(const std::string& path, std::string_view text,
                                           uint64_t file_bytes) {
  if (file_bytes < kPrefixBytes || text.size() > file_bytes - kPrefixBytes) {
    throw CorruptionError(path, kPrefixBytes, fmt::format("a header of {} bytes", text.size()),
                          fmt::format("a file of {} bytes", file_bytes));
  }
  const json root = parse_strict_json(path, text, kPrefixBytes);
  if (!root.is_object()) {
    throw CorruptionError(path, kPrefixBytes, "a JSON object", root.type_name());
  }
  SafetensorsHeader header;
  header.data_offset = kPrefixBytes + text.size();
  const HeaderContext in{path, header.data_offset, file_bytes - header.data_offset};
  for (const auto& [name, entry] : root.items()) {
    if (name == kMetadataKey) {
      header.metadata = parse_metadata(path, entry);
    } else {
      header.tensors.push_back(parse_tensor(in, name, entry));
    }
  }
  std::sort(header.tensors.begin(), header.tensors.end(),
            [](const TensorInfo& a, const TensorInfo& b) {
              return std::tie(a.offset, a.bytes, a.name) < std::tie(b.offset, b.bytes, b.name);
            });
  check_tiling(in, header.tensors);
  return header;
}

SafetensorsHeader read_safetensors_header(const std::filesystem::path& path) {
  const ReadFile file(path, ReadFile::Direct::kNever);
  const auto read_exactly = [&file](uint64_t offset, std::span<std::byte> into) {
    read_blocking({.file = &file, .offset = offset, .into = into, .required_bytes = into.size()});
  };
  uint64_t header_bytes = 0;
  read_exactly(0, std::as_writable_bytes(std::span(&header_bytes, 1)));
  if (header_bytes > kMaxHeaderBytes || header_bytes > file.bytes() - kPrefixBytes) {
    throw CorruptionError(path.string(), 0,
                          fmt::format("a header length of at most {}",
                                      std::min(kMaxHeaderBytes, file.bytes() - kPrefixBytes)),
                          fmt::format("{} (truncated, or not a safetensors file)", header_bytes));
  }
  std::string text(header_bytes, '\0');
  read_exactly(kPrefixBytes, std::as_writable_bytes(std::span(text)));
  return parse_safetensors_header(path.string(), text, file.bytes());
}

uint64_t TensorSpec::bytes() const {
  const uint64_t element = element_bytes(dtype);
  if (element == 0) {
    throw std::invalid_argument(
        fmt::format("tensor '{}': the bytes of dtype '{}' are not known", name, dtype));
  }
  const std::optional<uint64_t> elements = count_elements(shape);
  const std::optional<uint64_t> bytes =
      elements.has_value() ? product(*elements, element) : std::nullopt;
  if (!bytes.has_value()) {
    throw std::invalid_argument(
        fmt::format("tensor '{}': shape {} is not countable", name, json(shape).dump()));
  }
  return *bytes;
}

// The text is put together tensor by tensor: an ordered object of the library looks every new key
// up among all it has, minutes for hundreds of thousands of tensors.
std::string make_copy_header(const std::vector<TensorInfo>& tensors) {
  std::string text = fmt::format(R"({{"{}":{{"format":"pt"}})", kMetadataKey);
  std::unordered_set<std::string_view> names{kMetadataKey};
  uint64_t end = 0;
  for (const TensorInfo& tensor : tensors) {
    if (!names.insert(tensor.name).second) {
      throw std::invalid_argument(
          fmt::format("shard header: tensor '{}' is named twice or reserved", tensor.name));
    }
    const uint64_t begin = end;
    end += tensor.bytes;
    text += fmt::format(R"(,{}:{{"dtype":{},"shape":{},"data_offsets":[{},{}]}})",
                        json(tensor.name).dump(), json(tensor.dtype).dump(),
                        json(tensor.shape).dump(), begin, end);
  }
  text += '}';
  text.resize((text.size() + kDataAlignment - 1) / kDataAlignment * kDataAlignment, ' ');
  const uint64_t length = text.size();
  std::string header(kPrefixBytes, '\0');
  std::memcpy(header.data(), &length, kPrefixBytes);
  return header + text;
}

std::string make_safetensors_header(const std::vector<TensorSpec>& tensors) {
  std::vector<TensorInfo> sized;
  sized.reserve(tensors.size());
  for (const TensorSpec& tensor : tensors) {
    sized.push_back({.name = tensor.name,
                     .dtype = tensor.dtype,
                     .shape = tensor.shape,
                     .bytes = tensor.bytes()});
  }
  return make_copy_header(sized);
}

}  // namespace coppice
