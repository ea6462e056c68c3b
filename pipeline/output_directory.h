// The Hugging Face directory a run writes: one shard per block, one for the rest, index last.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "pipeline/source_model.h"
#include "pipeline/span_work.h"
#include "stages/span_job.h"
#include "storage/checkpoint/checkpoint_writer.h"

namespace coppice {

/// Shard names and their number are fixed by the headers, before the first byte is computed.
class OutputDirectory {
 public:
  OutputDirectory(std::filesystem::path path, const SourceModel& model);
  /// `output` has the shapes that are written, of tensors of the same names: see
  /// sliced_architecture(). Where it has fewer blocks, cut_out() has to say which. Throws
  /// ConfigError if those would leave tensors behind that nobody knows.
  OutputDirectory(std::filesystem::path path, const SourceModel& model, Architecture output);

  /// Which blocks are not written, ascending: as many as `output` lacks. The others are numbered
  /// anew; here they are called by the numbers that they have in the model. Before any of them is
  /// assembled.
  void cut_out(std::vector<int> blocks);
  bool is_cut_out(int block) const;

  const std::filesystem::path& path() const { return path_; }
  std::string outer_shard() const { return shard_name(0, num_shards()); }
  std::string block_shard(int block) const {
    return shard_name(1 + written_as(block), num_shards());
  }
  int num_shards() const { return int(output_.num_blocks) + 1; }

  /// Memory for the shards of so many blocks side by side, wherever they are; uncut.
  uint64_t largest_image_bytes(int num_blocks = 1) const;
  /// Where in the memory of a span, whose blocks start with `first_block`, a block's shard goes.
  std::span<std::byte> part_of(std::span<std::byte> memory, int first_block, int block) const;
  /// Bytes the finished directory takes, near enough to ask the disk for.
  uint64_t total_bytes() const;

  /// The tensors of a block's shard as they lie in `memory`, for stages to write adapted ones
  /// there: those that their dtype's alignment allows, and none on a device that `memory` is not
  /// of.
  std::map<std::string, at::Tensor> places(std::span<std::byte> memory, int block,
                                           const Device& device) const;

  /// A block's shard in `memory`, each tensor as `tensor` gives it (dtype and shape of the
  /// input's). On the device's thread. Returns the image, which is complete when the device's
  /// downloads() are there.
  std::span<const std::byte> assemble_block(
      std::span<std::byte> memory, int block, Device& device,
      const std::function<at::Tensor(const std::string& name)>& tensor) const;
  /// Completes a block's shard in its part of `memory`: adapted tensors from `variant` (those that
  /// lie there already stay), all others byte for byte from the span's slot. As above.
  std::span<const std::byte> assemble_block(std::span<std::byte> memory, int block, Device& device,
                                            const GraphSpan& span, const Variant& variant) const;
  FileRecord write_block(int block, std::span<const std::byte> image) const;

  /// A shard of the variant's bitmasks of the block, "<weight>.bitmask", in memory of its own;
  /// empty where there are none. On the device's thread.
  std::vector<std::byte> assemble_masks(int block, const Variant& variant) const;
  /// Its name is that below the output directory.
  FileRecord write_masks(int block, std::span<const std::byte> image) const;
  /// From the shards that are there: from here on `masks` is read like a checkpoint.
  void write_masks_index() const;

  /// Everything outside the blocks, and what nobody knows, unchanged.
  FileRecord write_outer() const;

  /// config.json, tokenizer, licence, code: what lies beside the weights, and the folders that a
  /// modules.json names, verbatim; but where weights were FP8, config.json without its
  /// `quantization_config`, and with the keys of biases that were added and the sizes of what was
  /// cut out, and without what it says of single blocks that were.
  void copy_side_files() const;
  /// What it copies, below either directory.
  std::vector<std::string> side_file_names() const;

  /// Of what copy_side_files() copies.
  uint64_t side_bytes() const;

  /// Last: from here on the directory loads.
  void write_index() const;
  /// Whether there still are index and shards with what lies outside the blocks, and masks if it
  /// has them. Reads headers only.
  bool opens(bool has_masks = false) const;

 private:
  std::vector<TensorSpec> specs_of(const Architecture& architecture, int block) const;
  /// As they are written; none of a block that is cut out.
  std::vector<TensorSpec> block_specs(int block) const;
  int written_as(int block) const;  // its number in the output
  bool is_sliced() const {
    return output_.num_blocks != model_.architecture.num_blocks ||
           output_.ffn != model_.architecture.ffn || output_.heads != model_.architecture.heads;
  }
  std::vector<std::string> outer_names() const;
  uint64_t tensor_bytes() const;  // of all that is written
  std::filesystem::path masks_shard(int block) const;

  std::filesystem::path path_;
  const SourceModel& model_;
  Architecture output_;
  std::vector<int> cut_out_;  // blocks
};

}  // namespace coppice
