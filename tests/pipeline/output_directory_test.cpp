// What a run leaves: shards with the right bytes, the files beside them, and an index that comes
// last.
#include "pipeline/output_directory.h"

#include <ATen/ops/full.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>

#include "configs/errors.h"  // ConfigError
#include "storage/errors.h"
#include "storage/io/file.h"
#include "tests/support/small_checkpoint.h"
#include "tests/support/temp_dir.h"

namespace coppice {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using testing::golden_directory;
using testing::small_config;
using testing::stored_bytes;
using testing::TempDir;
using ::testing::UnorderedElementsAre;
using testing::write_checkpoint;

namespace fs = std::filesystem;

std::vector<std::string> files_in(const fs::path& directory) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory)) {
    names.push_back(entry.path().filename());
  }
  return names;
}

std::vector<std::string> tensors_in(const fs::path& shard) {
  std::vector<std::string> names;
  for (const TensorInfo& info : read_safetensors_header(shard).tensors) names.push_back(info.name);
  return names;
}

// The output of a model, as its own directory.
class Output {
 public:
  explicit Output(const fs::path& model_directory, int num_cut_out = 0)
      : model(open_model(model_directory, {})),
        directory(dir_.path(), model, with_fewer_blocks(model.architecture, num_cut_out)),
        device_(make_device({.device = "cpu"})) {}

  FileRecord write_block(int block, const Variant& variant = {}) {
    const TokenWindows tokens{.ids = {0}, .seqlen = 1, .dataset_sha256 = "", .xxh3_128 = ""};
    const ModelSpans spans(model, tokens);
    GraphSpan span;
    plan_span(span, spans, spans.span_of_block(block));
    AlignedBuffer slot = testing::filled_slot(span.plan, model.checkpoint);
    span.slot = slot.span();
    std::vector<std::byte> memory(directory.largest_image_bytes());
    return directory.write_block(block,
                                 directory.assemble_block(memory, block, *device_, span, variant));
  }
  void write_all_but_the_index() {
    directory.write_outer();
    for (int block = 0; block < model.architecture.num_blocks; ++block) write_block(block);
    directory.copy_side_files();
  }
  fs::path path(const std::string& name) const { return dir_ / name; }

 private:
  static Architecture with_fewer_blocks(Architecture architecture, int num_cut_out) {
    architecture.num_blocks -= num_cut_out;
    return architecture;
  }

  TempDir dir_;

 public:
  const SourceModel model;
  OutputDirectory directory;

 private:
  std::unique_ptr<Device> device_;
};

// ---- files beside the weights ----

class SideFiles : public ::testing::Test {
 protected:
  SideFiles() { write_checkpoint(source_.path(), small_config(1, 16, 8, 31)); }
  void add(const std::string& name, const std::string& text = "x") {
    write_file(source_ / name, text);
  }
  std::vector<std::string> copied() {
    output_ = std::make_unique<Output>(source_.path());
    output_->directory.copy_side_files();
    return files_in(output_->directory.path());
  }
  TempDir source_;
  std::unique_ptr<Output> output_;
};

TEST_F(SideFiles, AreCopiedVerbatim) {
  const std::string binary("\0\xff\r\n", 4);
  add("tokenizer.model", binary);
  add("LICENSE");
  add("modeling_llama.py");
  EXPECT_THAT(copied(), UnorderedElementsAre("config.json", "tokenizer.model", "LICENSE",
                                             "modeling_llama.py"));
  EXPECT_EQ(read_file(output_->path("tokenizer.model")), binary);
  EXPECT_EQ(read_file(output_->path("config.json")), read_file(source_ / "config.json"));
}

TEST_F(SideFiles, OfTheDownloadCacheAreCopiedNotLinked) {
  add("blob", "licence");
  fs::create_symlink("blob", source_ / "LICENSE");
  copied();
  EXPECT_FALSE(fs::is_symlink(output_->path("LICENSE")));
  EXPECT_EQ(read_file(output_->path("LICENSE")), "licence");
}

TEST_F(SideFiles, FoldersThatModulesNameAreCopied) {
  fs::create_directories(source_ / "1_Pooling");
  fs::create_directories(source_ / "onnx");
  add("blob", "pooling");
  fs::create_symlink("../blob", source_ / "1_Pooling/config.json");
  add("onnx/config.json");
  add("modules.json",
      R"([{"path": "", "type": "Transformer"}, {"path": "1_Pooling", "type": "Pooling"},
          {"path": "../onnx"}, {"path": "1_Pooling/../../x"}, {"path": "2_Normalize"}, {"path": 3}, null])");
  EXPECT_THAT(copied(), UnorderedElementsAre("config.json", "blob", "modules.json", "1_Pooling"));
  EXPECT_EQ(read_file(output_->path("1_Pooling/config.json")), "pooling");
}

TEST_F(SideFiles, AModulesFileThatIsNoneIsAFileLikeOthers) {
  add("modules.json", "[{");
  EXPECT_THAT(copied(), UnorderedElementsAre("config.json", "modules.json"));
}

TEST_F(SideFiles, AreNotWeightsInAnyForm) {
  for (const char* name :
       {"pytorch_model.bin", "consolidated.00.pth", "model.gguf", "tf_model.h5",
        "flax_model.msgpack", "other.safetensors", "rank0.pt", "pytorch_model.bin.index.json"}) {
    add(name);
  }
  EXPECT_THAT(copied(), ElementsAre("config.json"));
}

TEST_F(SideFiles, AreNotOursOfAnEarlierRun) {
  for (const char* name :
       {"README.md", "recipe.yaml", "coppice_report.json", "coppice_layers.csv"}) {
    add(name);
  }
  EXPECT_THAT(copied(), ElementsAre("config.json"));
}

TEST_F(SideFiles, AreNeitherHiddenNorUnfinished) {
  add(".gitattributes");
  add("vocab.json.tmp");
  EXPECT_THAT(copied(), ElementsAre("config.json"));
}

// ---- shards ----

TEST(OutputDirectory, ShardsAreOnePerBlockAndOneForTheRest) {
  const Output output(golden_directory("llama_fp32"));
  EXPECT_EQ(output.directory.outer_shard(), "model-00001-of-00004.safetensors");
  EXPECT_EQ(output.directory.block_shard(2), "model-00004-of-00004.safetensors");
}

TEST(OutputDirectory, OuterShardHoldsWhatLiesOutsideTheBlocksAndWhatNobodyKnows) {
  const TempDir source;
  write_checkpoint(source.path(), small_config(2, 16, 8, 31), {{"counts", "I64", {3}}});
  const Output output(source.path());
  output.directory.write_outer();
  const std::string shard = output.directory.outer_shard();
  EXPECT_THAT(tensors_in(output.path(shard)),
              UnorderedElementsAre("model.embed_tokens.weight", "model.norm.weight", "counts"));
}

TEST(OutputDirectory, BlockShardHoldsTheTensorsOfItsBlock) {
  Output output(golden_directory("llama_bias_llama3_fp32"));
  output.write_block(1);
  std::vector<std::string> names;
  for (const NamedShape& tensor : block_tensors(output.model.architecture, 1)) {
    names.push_back(tensor.name);
  }
  EXPECT_THAT(tensors_in(output.path(output.directory.block_shard(1))),
              ::testing::UnorderedElementsAreArray(names));
}

TEST(OutputDirectory, AdaptedTensorsAreThoseOfTheVariantTheOthersThoseOfTheSlot) {
  const TempDir source;
  write_checkpoint(source.path(), small_config(1, 16, 8, 31));
  Output output(source.path());
  const std::string up = "model.layers.0.mlp.up_proj.weight";
  const std::string down = "model.layers.0.mlp.down_proj.weight";
  at::Tensor adapted = at::full({16, 8}, 1.5F).t();  // [8, 16], not laid out in rows
  adapted[0][1] = 2.5F;
  Variant variant;
  variant.adapted[up] = adapted;
  output.write_block(0, variant);
  output.directory.write_outer();
  output.directory.write_index();
  std::vector<float> expected(8 * 16, 1.5F);
  expected[1] = 2.5F;
  const CheckpointReader written(output.directory.path());
  EXPECT_EQ(stored_bytes(written, up),
            std::string(reinterpret_cast<const char*>(expected.data()), expected.size() * 4));
  EXPECT_EQ(stored_bytes(written, down), stored_bytes(output.model.checkpoint, down));
}

TEST(OutputDirectory, BlockRecordIsOfTheFile) {
  Output output(golden_directory("llama_fp32"));
  const FileRecord record = output.write_block(1);
  EXPECT_EQ(record, hash_file(output.path("model-00003-of-00004.safetensors")));
}

TEST(OutputDirectory, LargestImageIsOfTheBlockWithTheLongestNames) {
  const TempDir source;
  write_checkpoint(source.path(), small_config(11, 16, 8, 31));
  Output output(source.path());
  EXPECT_EQ(output.directory.largest_image_bytes(), output.write_block(10).bytes);
  EXPECT_GT(output.directory.largest_image_bytes(), output.write_block(9).bytes);
}

TEST(OutputDirectory, ShardsOfSeveralBlocksLieSideBySide) {
  Output output(golden_directory("llama_fp32"));
  const OutputDirectory& directory = output.directory;
  std::vector<std::byte> memory(directory.largest_image_bytes(2));
  const std::span<std::byte> first = directory.part_of(memory, 1, 1);
  const std::span<std::byte> second = directory.part_of(memory, 1, 2);
  EXPECT_EQ(first.data(), memory.data());
  EXPECT_EQ(first.size(), output.write_block(1).bytes);
  EXPECT_GE(second.data(), first.data() + first.size());
  EXPECT_EQ(second.size(), output.write_block(2).bytes);
}

TEST(OutputDirectory, TotalIsNoLessThanTheShards) {
  Output output(golden_directory("llama_bias_llama3_fp32"));
  uint64_t bytes = output.directory.write_outer().bytes;
  for (int block = 0; block < 2; ++block) bytes += output.write_block(block).bytes;
  EXPECT_GE(output.directory.total_bytes(), bytes);
}

// ---- index ----

TEST(OutputDirectory, DoesNotLoadBeforeItsIndexIsWritten) {
  Output output(golden_directory("llama_fp32"));
  output.write_all_but_the_index();
  EXPECT_THROW(open_model(output.directory.path(), {}), IoError);
  output.directory.write_index();
  EXPECT_NO_THROW(open_model(output.directory.path(), {}));
}

TEST(OutputDirectory, IndexNamesTheShardOfEveryTensor) {
  const TempDir source;
  write_checkpoint(source.path(), small_config(2, 16, 8, 31), {{"counts", "I64", {3}}});
  Output output(source.path());
  output.write_all_but_the_index();
  output.directory.write_index();
  std::map<std::string, std::string> expected;
  for (const std::string& shard : files_in(output.directory.path())) {
    if (!shard.ends_with(".safetensors")) continue;
    for (const std::string& name : tensors_in(output.path(shard))) expected[name] = shard;
  }
  const auto index = nlohmann::json::parse(read_file(output.path("model.safetensors.index.json")));
  EXPECT_EQ(index.at("weight_map"), nlohmann::json(expected));
  EXPECT_EQ(index.at("metadata").at("total_size"), output.model.checkpoint.total_bytes());
}

TEST(OutputDirectory, NothingAdaptedIsTheModelItself) {
  for (const char* folder : {"llama_fp32", "llama_bf16", "llama_bias_llama3_fp32"}) {
    Output output(golden_directory(folder));
    output.write_all_but_the_index();
    output.directory.write_index();
    const CheckpointReader written(output.directory.path());
    const CheckpointReader& source = output.model.checkpoint;
    ASSERT_EQ(written.names(), source.names());
    for (const std::string& name : source.names()) {
      EXPECT_EQ(written.tensor(name).dtype, source.tensor(name).dtype);
      EXPECT_EQ(written.tensor(name).shape, source.tensor(name).shape);
      EXPECT_EQ(stored_bytes(written, name), stored_bytes(source, name)) << folder << " " << name;
    }
  }
}

// ---- blocks that are cut out ----

/// A model of four blocks without the second one, as it is written.
class WithoutABlock : public ::testing::Test {
 protected:
  const json& write(const json& more = json::object()) {
    json config = small_config(4, 16, 8, 31);
    config.update(more);
    write_checkpoint(source_.path(), config);
    output_ = std::make_unique<Output>(source_.path(), 1);
    output_->directory.write_outer();
    output_->directory.cut_out({1});
    for (const int block : {0, 2, 3}) output_->write_block(block);
    output_->directory.copy_side_files();
    output_->directory.write_index();
    return config_ = json::parse(read_file(output_->path("config.json")));
  }
  TempDir source_;
  std::unique_ptr<Output> output_;
  json config_;
};

TEST_F(WithoutABlock, TheOthersAreNumberedAnew) {
  EXPECT_EQ(write().at("num_hidden_layers"), 3);
  const SourceModel written = open_model(output_->directory.path(), {});
  EXPECT_TRUE(written.unknown_tensors.empty());
  const SourceModel& model = output_->model;
  for (const auto& [now, before] : std::map<int, int>{{0, 0}, {1, 2}, {2, 3}}) {
    for (const NamedShape& tensor : block_tensors(written.architecture, now)) {
      const std::string name = tensor.name.substr(in_block(model.architecture, now, "").size());
      EXPECT_EQ(stored_bytes(written.checkpoint, tensor.name),
                stored_bytes(model.checkpoint, in_block(model.architecture, before, name)));
    }
  }
  const json index = json::parse(read_file(written.checkpoint.index_path()));
  EXPECT_EQ(index.at("metadata").at("total_size"), written.checkpoint.total_bytes());
  EXPECT_EQ(output_->directory.block_shard(3), "model-00004-of-00004.safetensors");
}

TEST_F(WithoutABlock, ListsOfBlocksLoseItsEntry) {
  const json kinds = {"full_attention", "sliding_attention", "full_attention", "full_attention"};
  write({{"layer_types", kinds}, {"max_window_layers", 3}});
  EXPECT_EQ(config_.at("layer_types"),
            json({"full_attention", "full_attention", "full_attention"}));
  EXPECT_EQ(config_.at("max_window_layers"), 2);
}

TEST_F(WithoutABlock, WindowsThatStartByDefaultStartWhereTheyDid) {
  write();
  EXPECT_FALSE(config_.contains("max_window_layers"));
  json many = small_config(30, 16, 8, 31);
  many.update({{"architectures", {"Qwen3ForCausalLM"}},
               {"use_sliding_window", true},
               {"sliding_window", 7}});
  write_checkpoint(source_.path(), many);
  Output output(source_.path(), 2);
  output.directory.cut_out({3, 29});
  output.directory.copy_side_files();
  const json config = json::parse(read_file(output.path("config.json")));
  EXPECT_EQ(config.at("max_window_layers"), 27);  // of 28
}

TEST_F(WithoutABlock, ATensorOfABlockThatNobodyKnowsIsRefused) {
  write_checkpoint(source_.path(), small_config(4, 16, 8, 31),
                   {{"model.layers.2.self_attn.rotary_emb.inv_freq", "F32", {4}}});
  EXPECT_NO_THROW(Output(source_.path(), 0));
  EXPECT_THROW(Output(source_.path(), 1), ConfigError);
}

float from_bf16(const std::string& bytes, size_t index) {
  const uint32_t bits =
      uint32_t(uint8_t(bytes[2 * index])) << 16 | uint32_t(uint8_t(bytes[2 * index + 1])) << 24;
  return std::bit_cast<float>(bits);
}

TEST(OutputDirectory, Fp8WeightsAreWrittenAsBf16WithoutTheirScales) {
  const TempDir dir;
  testing::write_fp8_checkpoint(dir.path(), small_config(2, 16, 24, 64));
  Output output(dir.path());
  output.write_all_but_the_index();
  output.directory.write_index();

  const SourceModel written = open_model(output.directory.path(), {});
  EXPECT_FALSE(written.architecture.scale_block.is_there());
  EXPECT_TRUE(written.unknown_tensors.empty());
  EXPECT_EQ(written.checkpoint.tensor("model.layers.1.mlp.up_proj.weight").dtype, "BF16");
  const json index = json::parse(read_file(written.checkpoint.index_path()));
  EXPECT_EQ(index.at("metadata").at("total_size"), written.checkpoint.total_bytes());

  // up_proj is [24, 16]: its byte i is 0x30 + i mod 23, the float 0.5 (1 + that mod 8 / 8) 2^k; its
  // scales are [2, 2], bytes 0x80 + i: 0.25 (1 + i / 128).
  const std::string up = stored_bytes(written.checkpoint, "model.layers.1.mlp.up_proj.weight");
  for (size_t i = 0; i < 24 * 16; ++i) {
    const int byte = int(i % 23);
    const double value = std::ldexp(0.5 * (1 + (byte % 8) / 8.0), byte / 8);
    const size_t scale = i / 16 / 16 * 2 + i % 16 / 8;
    const double exact = value * 0.25 * (1 + double(scale) / 128);
    EXPECT_NEAR(from_bf16(up, i), exact, exact / 256) << i;
  }
}

}  // namespace
}  // namespace coppice
