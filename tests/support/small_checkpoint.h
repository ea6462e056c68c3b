// A checkpoint of sizes the test chooses, and its bytes by plain reads: no engine, no alignment.
#pragma once

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "configs/architecture_file.h"
#include "storage/checkpoint/checkpoint_reader.h"
#include "storage/io/aligned_buffer.h"
#include "storage/io/read_plan.h"

namespace coppice::testing {

inline std::filesystem::path golden_directory(const std::string& folder) {
  return std::filesystem::path(COPPICE_SOURCE_DIR) / "tests" / "golden" / folder;
}

/// config.json of a tied Llama with two heads of eight.
inline nlohmann::json small_config(int64_t blocks, int64_t hidden, int64_t ffn, int64_t vocab) {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"num_hidden_layers", blocks},
          {"hidden_size", hidden},
          {"intermediate_size", ffn},
          {"num_attention_heads", 2},
          {"num_key_value_heads", 1},
          {"head_dim", 8},
          {"vocab_size", vocab},
          {"max_position_embeddings", 64},
          {"rms_norm_eps", 1e-5},
          {"hidden_act", "silu"},
          {"rope_theta", 10000.0},
          {"tie_word_embeddings", true},
          {"eos_token_id", 2}};
}

/// Writes config.json and model.safetensors: all that the family wants, in F32, then `more`. No two
/// places of the file hold the same bytes.
inline void write_checkpoint(const std::filesystem::path& directory, const nlohmann::json& config,
                             const std::vector<TensorSpec>& more = {}) {
  std::ofstream(directory / "config.json") << config;
  const Architecture architecture = load_architecture(directory);
  std::vector<TensorSpec> tensors;
  const auto add = [&](const std::vector<NamedShape>& shapes) {
    for (const NamedShape& tensor : shapes) tensors.push_back({tensor.name, "F32", tensor.shape});
  };
  for (int block = 0; block < architecture.num_blocks; ++block) {
    add(block_tensors(architecture, block));
  }
  add(outer_tensors(architecture));
  tensors.insert(tensors.end(), more.begin(), more.end());
  uint64_t bytes = 0;
  for (const TensorSpec& tensor : tensors) bytes += tensor.bytes();
  std::vector<uint32_t> content(bytes / 4 + 1);
  for (size_t i = 0; i < content.size(); ++i) content[i] = uint32_t(i);
  std::ofstream file(directory / "model.safetensors", std::ios::binary);
  file << make_safetensors_header(tensors);
  file.write(reinterpret_cast<const char*>(content.data()), std::streamsize(bytes));
}

/// The same as bf16, with the matrices of the blocks as FP8 and a scale for 16 x 8 of their
/// weights. Values and scales differ from their neighbours and are small numbers.
inline void write_fp8_checkpoint(const std::filesystem::path& directory, nlohmann::json config) {
  config["quantization_config"] = {{"quant_method", "fp8"}, {"weight_block_size", {16, 8}}};
  std::ofstream(directory / "config.json") << config;
  const Architecture architecture = load_architecture(directory);
  std::vector<TensorSpec> tensors;
  std::string content;
  const auto add = [&](const std::string& name, const std::string& dtype,
                       const std::vector<int64_t>& shape) {
    tensors.push_back({name, dtype, shape});
    for (uint64_t i = 0; i < tensors.back().bytes() / element_bytes(dtype); ++i) {
      if (dtype == "F8_E4M3") content += char(0x30 + i % 23);            // 0.5 and more
      if (dtype == "BF16") content += {char(i % 128), char(0x3f)};       // 0.5 to 1
      if (dtype == "F32") content += {0, 0, char(0x80 + i % 29), 0x3e};  // 0.25 and more
    }
  };
  for (int block = 0; block < architecture.num_blocks; ++block) {
    for (const NamedShape& tensor : block_tensors(architecture, block)) {
      const bool is_fp8 = tensor.shape.size() == 2;
      add(tensor.name, is_fp8 ? "F8_E4M3" : "BF16", tensor.shape);
      if (!is_fp8) continue;
      add(scales_name(tensor.name), "F32", scales_shape(architecture.scale_block, tensor.shape));
    }
  }
  for (const NamedShape& t : outer_tensors(architecture)) add(t.name, "BF16", t.shape);
  std::ofstream(directory / "model.safetensors", std::ios::binary)
      << make_safetensors_header(tensors) << content;
}

inline std::string read_bytes(const std::filesystem::path& path, uint64_t offset, uint64_t bytes) {
  std::string text(bytes, '\0');
  std::ifstream file(path, std::ios::binary);
  file.seekg(std::streamoff(offset)).read(text.data(), std::streamsize(bytes));
  if (!file) throw std::runtime_error(path.string() + " ends too early");
  return text;
}

inline std::string stored_bytes(const CheckpointReader& checkpoint, const std::string& tensor) {
  const Extent extent = checkpoint.extent(tensor);
  return read_bytes(checkpoint.files().at(extent.file)->path(), extent.offset, extent.bytes);
}

/// A slot of exactly the bytes the plan needs, after its reads.
inline AlignedBuffer filled_slot(const ReadPlan& plan, const CheckpointReader& checkpoint) {
  AlignedBuffer slot(plan.slot_bytes);
  for (const PlannedRead& read : plan.reads) {
    const std::string text =
        read_bytes(checkpoint.files().at(read.file)->path(), read.offset, read.required_bytes);
    std::ranges::copy(std::as_bytes(std::span(text)),
                      slot.span().subspan(read.slot_offset, read.bytes).begin());
  }
  return slot;
}

}  // namespace coppice::testing
