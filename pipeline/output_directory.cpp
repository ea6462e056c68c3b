#include "pipeline/output_directory.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "configs/errors.h"        // ConfigError
#include "pipeline/mask_source.h"  // bitmask_name
#include "stages/units/slice.h"
#include "storage/errors.h"  // IoError, CorruptionError

namespace coppice {
namespace {

namespace fs = std::filesystem;

// Of shards side by side in memory, as direct writes like it.
uint64_t aligned(uint64_t bytes) { return (bytes + 4095) / 4096 * 4096; }

// Weights in any form and our own files are made anew; everything else beside them is copied.
bool is_side_file(const fs::path& path) {
  const std::string name = path.filename();
  const std::string extension = path.extension();
  const bool is_weights = extension == ".safetensors" || extension == ".bin" ||
                          extension == ".pt" || extension == ".pth" || extension == ".gguf" ||
                          extension == ".h5" || extension == ".msgpack" ||
                          name.ends_with(".index.json");
  const bool is_ours = name == "README.md" || name == "recipe.yaml" ||
                       name == "coppice_report.json" || name == "coppice_layers.csv";
  return !is_weights && !is_ours && name[0] != '.' && extension != ".tmp";
}

// Folders of SentenceTransformers' modules.json, pooling and the like: the class loads them by
// name. A name that leaves the model's directory is none.
std::vector<fs::path> module_folders(const fs::path& model) {
  if (!fs::is_regular_file(model / "modules.json")) return {};
  const auto json = nlohmann::json::parse(read_file(model / "modules.json"), nullptr,
                                          /*allow_exceptions=*/false);
  std::vector<fs::path> folders;
  for (const auto& module : json.is_array() ? json : nlohmann::json::array()) {
    const auto path = module.is_object() ? module.find("path") : module.end();
    if (path == module.end() || !path->is_string()) continue;
    const fs::path folder = fs::path(path->get<std::string>()).lexically_normal();
    const bool is_inside = folder.has_filename() && folder.is_relative() && *folder.begin() != "..";
    if (is_inside && fs::is_directory(model / folder)) folders.push_back(folder);
  }
  return folders;
}

// Relative to the model's directory.
std::vector<fs::path> side_files(const fs::path& model) {
  std::vector<fs::path> files;
  for (const fs::directory_entry& entry : fs::directory_iterator(model)) {
    if (entry.is_regular_file() && is_side_file(entry.path())) {
      files.push_back(entry.path().filename());
    }
  }
  for (const fs::path& folder : module_folders(model)) {
    for (const fs::directory_entry& entry : fs::recursive_directory_iterator(model / folder)) {
      if (entry.is_regular_file()) files.push_back(entry.path().lexically_relative(model));
    }
  }
  return files;
}

// How many blocks stay of those before that one.
int64_t kept_before(int64_t block, const std::vector<int>& cut_out) {
  return block - (std::lower_bound(cut_out.begin(), cut_out.end(), block) - cut_out.begin());
}

// What transformers' config.json says of single blocks: the kind of each, or from which on there is
// a window.
void cut_from_lists(const std::vector<int>& cut_out, const std::vector<int64_t>& windows,
                    nlohmann::ordered_json& json) {
  const auto kinds = json.find("layer_types");
  const bool has_kinds = kinds != json.end() && kinds->is_array();
  for (auto block = cut_out.rbegin(); has_kinds && block != cut_out.rend(); ++block) {
    if (size_t(*block) < kinds->size()) kinds->erase(size_t(*block));
  }
  const auto windowed =
      std::find_if(windows.begin(), windows.end(), [](int64_t window) { return window > 0; });
  const bool has_both = windowed != windows.begin() && windowed != windows.end();
  const auto from = json.find("max_window_layers");
  if (from != json.end() && from->is_number_integer()) {
    *from = kept_before(from->get<int64_t>(), cut_out);
  } else if (has_both && !has_kinds) {  // by its default
    json["max_window_layers"] = kept_before(windowed - windows.begin(), cut_out);
  }
}

// config.json with what is written otherwise than it was read: FP8 as bf16, biases that were added,
// sizes of what was cut out.
std::string edited_config(const std::string& config, const SourceModel& model,
                          const std::map<std::string, int64_t>& sizes,
                          const std::vector<int>& cut_out) {
  nlohmann::ordered_json json = nlohmann::ordered_json::parse(config);
  if (model.architecture.scale_block.is_there()) json.erase("quantization_config");
  for (const std::string& key : model.added_keys) json[key] = true;
  for (const auto& [key, size] : sizes) json[key] = size;
  if (!cut_out.empty()) cut_from_lists(cut_out, model.architecture.attention_windows, json);
  return json.dump(2) + "\n";
}

// What nobody knows is copied through under its name, which a block numbered anew makes wrong.
void require_no_unknown_in_blocks(const SourceModel& model) {
  for (const std::string& name : model.unknown_tensors) {
    for (int block = 0; block < model.architecture.num_blocks; ++block) {
      if (!name.starts_with(in_block(model.architecture, block, ""))) continue;
      throw ConfigError(
          "prune.structured_output: sliced: blocks are numbered anew, and nobody knows what " +
          name + " is for; write the output masked");
    }
  }
}

// Of what is small, or nobody waits for.
void copy_bytes(const at::Tensor& tensor, std::span<std::byte> destination) {
  const at::Tensor host = tensor.to(at::kCPU).contiguous();
  std::memcpy(destination.data(), host.const_data_ptr(), destination.size());
}

/// Whether there is a checkpoint whose index and headers agree, and have these tensors.
bool has_checkpoint(const fs::path& directory, const std::vector<std::string>& names) {
  try {
    const CheckpointReader reader(directory);
    return std::all_of(names.begin(), names.end(),
                       [&](const std::string& name) { return reader.has(name); });
  } catch (const IoError&) {
    return false;
  } catch (const CorruptionError&) {
    return false;
  }
}

}  // namespace

OutputDirectory::OutputDirectory(fs::path path, const SourceModel& model)
    : OutputDirectory(std::move(path), model, model.architecture) {}

OutputDirectory::OutputDirectory(fs::path path, const SourceModel& model, Architecture output)
    : path_(std::move(path)), model_(model), output_(std::move(output)) {
  if (output_.num_blocks != model.architecture.num_blocks) require_no_unknown_in_blocks(model);
}

void OutputDirectory::cut_out(std::vector<int> blocks) {
  if (int64_t(blocks.size()) + output_.num_blocks != model_.architecture.num_blocks) {
    throw std::logic_error("output directory: other blocks are cut out than its shapes lack");
  }
  cut_out_ = std::move(blocks);
}

bool OutputDirectory::is_cut_out(int block) const {
  return std::binary_search(cut_out_.begin(), cut_out_.end(), block);
}

int OutputDirectory::written_as(int block) const { return int(kept_before(block, cut_out_)); }

std::vector<TensorSpec> OutputDirectory::specs_of(const Architecture& architecture,
                                                  int block) const {
  std::vector<TensorSpec> specs;
  for (const NamedShape& tensor : block_tensors(architecture, block)) {
    const std::string dtype =
        tensor.is_added ? architecture.dtype : widened_dtype(model_.checkpoint.tensor(tensor.name));
    specs.push_back({tensor.name, dtype, tensor.shape});
  }
  return specs;
}

std::vector<TensorSpec> OutputDirectory::block_specs(int block) const {
  if (is_cut_out(block)) return {};
  std::vector<TensorSpec> specs = specs_of(output_, block);
  const std::vector<NamedShape> written = block_tensors(output_, written_as(block));
  for (size_t i = 0; i < specs.size(); ++i) specs[i].name = written[i].name;
  return specs;
}

uint64_t OutputDirectory::tensor_bytes() const {
  uint64_t bytes = 0;
  for (const std::string& name : outer_names()) bytes += model_.checkpoint.tensor(name).bytes;
  for (int block = 0; block < model_.architecture.num_blocks; ++block) {
    for (const TensorSpec& spec : block_specs(block)) bytes += spec.bytes();
  }
  return bytes;
}

std::vector<std::string> OutputDirectory::outer_names() const {
  std::vector<std::string> names;
  for (const NamedShape& tensor : outer_tensors(model_.architecture)) names.push_back(tensor.name);
  names.insert(names.end(), model_.unknown_tensors.begin(), model_.unknown_tensors.end());
  return names;
}

uint64_t OutputDirectory::largest_image_bytes(int num_blocks) const {
  uint64_t largest = 0;
  for (int block = 0; block < model_.architecture.num_blocks; ++block) {
    largest = std::max(largest, ShardImage::bytes_needed(specs_of(model_.architecture, block)));
  }
  return uint64_t(num_blocks - 1) * aligned(largest) + largest;
}

std::span<std::byte> OutputDirectory::part_of(std::span<std::byte> memory, int first_block,
                                              int block) const {
  uint64_t offset = 0;
  for (int before = first_block; before < block; ++before) {
    offset += aligned(ShardImage::bytes_needed(block_specs(before)));
  }
  return memory.subspan(offset, ShardImage::bytes_needed(block_specs(block)));
}

uint64_t OutputDirectory::total_bytes() const {
  constexpr uint64_t kHeaderBytes = 64 << 10;
  return tensor_bytes() + uint64_t(num_shards()) * kHeaderBytes;
}

std::map<std::string, at::Tensor> OutputDirectory::places(std::span<std::byte> memory, int block,
                                                          const Device& device) const {
  std::map<std::string, at::Tensor> places;
  if (!device.is_host() || memory.empty()) return places;
  const std::vector<TensorSpec> specs = block_specs(block);
  const std::vector<TensorSpec> dense = specs_of(model_.architecture, block);
  const ShardImage image(memory, specs);
  for (size_t i = 0; i < specs.size(); ++i) {
    const TensorSpec& spec = specs[i];
    if (spec.shape != dense[i].shape) continue;  // adapted whole, then cut
    const std::span<std::byte> bytes = image.tensor(spec.name);
    const at::Tensor place = device.view(bytes, spec.shape, scalar_type(spec.dtype));
    if (place.const_data_ptr() == bytes.data()) places[dense[i].name] = place;
  }
  return places;
}

std::span<const std::byte> OutputDirectory::assemble_block(
    std::span<std::byte> memory, int block, Device& device,
    const std::function<at::Tensor(const std::string& name)>& tensor) const {
  const std::vector<TensorSpec> specs = block_specs(block);
  const ShardImage image(memory, specs);
  const std::vector<NamedShape> read = block_tensors(model_.architecture, block);
  for (size_t i = 0; i < specs.size(); ++i) {
    device.download(tensor(read[i].name), image.tensor(specs[i].name));
  }
  return image.bytes();
}

std::span<const std::byte> OutputDirectory::assemble_block(std::span<std::byte> memory, int block,
                                                           Device& device, const GraphSpan& span,
                                                           const Variant& variant) const {
  std::map<std::string, Slice> slices;
  if (is_sliced()) slices = slices_of(model_.architecture, block, variant.kept_units);
  return assemble_block(memory, block, device, [&](const std::string& name) {
    const auto adapted = variant.adapted.find(name);
    const at::Tensor whole = adapted != variant.adapted.end()
                                 ? adapted->second
                                 : slot_tensor(span, model_, device, name);
    const auto slice = slices.find(name);
    if (slice == slices.end()) return whole;
    return whole.index_select(slice->second.dim, slice->second.index.to(whole.device()));
  });
}

FileRecord OutputDirectory::write_block(int block, std::span<const std::byte> image) const {
  return write_shard(path_ / block_shard(block), image);
}

std::vector<std::byte> OutputDirectory::assemble_masks(int block, const Variant& variant) const {
  const std::string prefix = in_block(model_.architecture, block, "");
  std::vector<TensorSpec> specs;
  for (const auto& [weight, bits] : variant.bitmasks) {
    if (!weight.starts_with(prefix)) continue;
    specs.push_back({bitmask_name(weight), "U8", bits.sizes().vec()});
  }
  if (specs.empty()) return {};
  std::vector<std::byte> memory(ShardImage::bytes_needed(specs));
  const ShardImage image(memory, specs);
  for (const auto& [weight, bits] : variant.bitmasks) {
    if (weight.starts_with(prefix)) copy_bytes(bits, image.tensor(bitmask_name(weight)));
  }
  return memory;
}

fs::path OutputDirectory::masks_shard(int block) const {
  return path_ / "masks" / shard_name(block, int(model_.architecture.num_blocks));
}

FileRecord OutputDirectory::write_masks(int block, std::span<const std::byte> image) const {
  if (!fs::exists(path_ / "masks")) {
    make_directories(path_ / "masks");
    sync_directory(path_);
  }
  FileRecord file = write_shard(masks_shard(block), image);
  file.name = "masks/" + file.name;
  return file;
}

void OutputDirectory::write_masks_index() const {
  std::map<std::string, std::string> shard_of_tensor;
  uint64_t bytes = 0;
  for (int block = 0; block < model_.architecture.num_blocks; ++block) {
    const fs::path shard = masks_shard(block);
    if (!fs::exists(shard)) continue;  // a block without targets
    for (const TensorInfo& tensor : read_safetensors_header(shard).tensors) {
      shard_of_tensor[tensor.name] = shard.filename();
      bytes += tensor.bytes;
    }
  }
  coppice::write_index(path_ / "masks", shard_of_tensor, bytes);
}

FileRecord OutputDirectory::write_outer() const {
  return copy_shard(path_ / outer_shard(), model_.checkpoint, outer_names());
}

void OutputDirectory::copy_side_files() const {
  const fs::path& model = model_.checkpoint.directory();
  for (const fs::path& file : side_files(model)) {
    const bool is_edited = file == "config.json" && (model_.architecture.scale_block.is_there() ||
                                                     !model_.added_keys.empty() || is_sliced());
    const std::string text = read_file(model / file);
    if (file.has_parent_path()) make_directories(path_ / file.parent_path());
    write_file(path_ / file,
               is_edited ? edited_config(text, model_, sliced_sizes(model_.architecture, output_),
                                         cut_out_)
                         : text);
  }
}

std::vector<std::string> OutputDirectory::side_file_names() const {
  std::vector<std::string> names;
  for (const fs::path& file : side_files(model_.checkpoint.directory())) names.push_back(file);
  return names;
}

uint64_t OutputDirectory::side_bytes() const {
  const fs::path& model = model_.checkpoint.directory();
  uint64_t bytes = 0;
  for (const fs::path& file : side_files(model)) bytes += fs::file_size(model / file);
  return bytes;
}

bool OutputDirectory::opens(bool has_masks) const {
  return has_checkpoint(path_, outer_names()) &&
         (!has_masks || has_checkpoint(path_ / "masks", {}));
}

void OutputDirectory::write_index() const {
  std::map<std::string, std::string> shard_of_tensor;
  for (const std::string& name : outer_names()) shard_of_tensor[name] = outer_shard();
  for (int block = 0; block < model_.architecture.num_blocks; ++block) {
    for (const TensorSpec& spec : block_specs(block))
      shard_of_tensor[spec.name] = block_shard(block);
  }
  coppice::write_index(path_, shard_of_tensor, tensor_bytes());
}

}  // namespace coppice
