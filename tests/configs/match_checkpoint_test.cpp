// match_checkpoint() of configs/architecture_file.h.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "configs/architecture_file.h"
#include "configs/errors.h"
#include "storage/checkpoint/safetensors.h"
#include "storage/errors.h"
#include "tests/support/odd_config.h"
#include "tests/support/temp_dir.h"

namespace coppice {
namespace {

using ::nlohmann::json;
using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;
using ::testing::ThrowsMessage;
using ::testing::UnorderedElementsAreArray;

json biased_config() {
  json config = testing::odd_config();
  config["attention_bias"] = true;
  return config;
}

// A checkpoint of zeros beside a config.json.
class Checkpoint {
 public:
  explicit Checkpoint(const json& config, const std::string& dtype = "BF16") {
    std::ofstream(directory_ / "config.json") << config;
    architecture = load_architecture(directory_.path());
    for (int block = 0; block < architecture.num_blocks; ++block) {
      for (const NamedShape& t : block_tensors(architecture, block)) add(t.name, t.shape, dtype);
    }
    for (const NamedShape& t : outer_tensors(architecture)) add(t.name, t.shape, dtype);
  }

  void add(const std::string& name, const std::vector<int64_t>& shape, const std::string& dtype) {
    tensors_.push_back({name, dtype, shape});
  }
  TensorSpec& tensor(const std::string& name) {
    return *std::find_if(tensors_.begin(), tensors_.end(),
                         [&](const TensorSpec& t) { return t.name == name; });
  }
  void remove(const std::string& name) {
    std::erase_if(tensors_, [&](const TensorSpec& t) { return t.name == name; });
  }
  std::vector<std::string> match() {
    uint64_t bytes = 0;
    for (const TensorSpec& tensor : tensors_) bytes += tensor.bytes();
    std::ofstream(directory_ / "model.safetensors", std::ios::binary)
        << make_safetensors_header(tensors_) << std::string(bytes, '\0');
    return match_checkpoint(architecture, CheckpointReader(directory_.path()));
  }
  std::string path() const { return directory_.path().string(); }

  Architecture architecture;

 private:
  testing::TempDir directory_;
  std::vector<TensorSpec> tensors_;
};

TEST(MatchCheckpoint, SetsTheDtypeOfTheBlocks) {
  for (const char* dtype : {"F32", "F16", "BF16"}) {
    Checkpoint checkpoint(testing::odd_config(), dtype);
    EXPECT_THAT(checkpoint.match(), IsEmpty());
    EXPECT_EQ(checkpoint.architecture.dtype, dtype);
  }
}

TEST(MatchCheckpoint, ReturnsTensorsThatNobodyKnows) {
  Checkpoint checkpoint(testing::odd_config());
  checkpoint.add("model.layers.0.self_attn.rotary_emb.inv_freq", {2}, "F32");
  checkpoint.add("counts", {3}, "I64");
  EXPECT_THAT(checkpoint.match(),
              ElementsAre("counts", "model.layers.0.self_attn.rotary_emb.inv_freq"));
}

TEST(MatchCheckpoint, TiesAHeadThatIsAbsent) {
  Checkpoint checkpoint(testing::odd_config());
  checkpoint.remove("lm_head.weight");
  EXPECT_THAT(checkpoint.match(), IsEmpty());
  EXPECT_TRUE(checkpoint.architecture.tied);
  EXPECT_EQ(checkpoint.architecture.head, "model.embed_tokens.weight");
}

TEST(MatchCheckpoint, LeavesAHeadThatIsThereUntied) {
  Checkpoint checkpoint(testing::odd_config());
  checkpoint.match();
  EXPECT_FALSE(checkpoint.architecture.tied);
}

TEST(MatchCheckpoint, NamesATensorThatIsAbsent) {
  for (const char* name :
       {"model.layers.1.mlp.up_proj.weight", "model.norm.weight", "model.embed_tokens.weight",
        "model.layers.0.self_attn.q_proj.weight", "model.layers.1.input_layernorm.weight"}) {
    Checkpoint checkpoint(testing::odd_config());
    checkpoint.remove(name);
    EXPECT_THAT([&] { checkpoint.match(); },
                ThrowsMessage<CorruptionError>(
                    AllOf(HasSubstr(checkpoint.path()), HasSubstr(name), EndsWith("found absent"))))
        << name;
  }
}

TEST(MatchCheckpoint, NamesABiasThatConfigJsonPromised) {
  Checkpoint checkpoint(biased_config());
  checkpoint.remove("model.layers.1.self_attn.o_proj.bias");
  EXPECT_THAT(
      [&] { checkpoint.match(); },
      ThrowsMessage<CorruptionError>(HasSubstr("'model.layers.1.self_attn.o_proj.bias' [24]")));
}

TEST(MatchCheckpoint, NamesBothShapesWhereTheyDiffer) {
  Checkpoint checkpoint(testing::odd_config());
  checkpoint.tensor("model.layers.1.self_attn.k_proj.weight").shape = {24, 8};
  EXPECT_THAT([&] { checkpoint.match(); },
              ThrowsMessage<CorruptionError>(AllOf(
                  HasSubstr("model.safetensors"),
                  HasSubstr("'model.layers.1.self_attn.k_proj.weight' [8, 24], as config.json"),
                  EndsWith("found [24, 8]"))));
}

TEST(MatchCheckpoint, RefusesDtypesThatAreNotComputedWith) {
  for (const char* name : {"model.layers.1.mlp.up_proj.weight", "model.norm.weight"}) {
    Checkpoint checkpoint(testing::odd_config());
    checkpoint.tensor(name).dtype = "I32";
    EXPECT_THAT(
        [&] { checkpoint.match(); },
        ThrowsMessage<ConfigError>(AllOf(HasSubstr(checkpoint.path()), HasSubstr(name),
                                         HasSubstr("I32"), HasSubstr("one of F32, F16, BF16"))))
        << name;
  }
}

TEST(MatchCheckpoint, RefusesASecondDtypeWithinTheBlocks) {
  Checkpoint checkpoint(testing::odd_config());
  checkpoint.tensor("model.layers.1.post_attention_layernorm.weight").dtype = "F32";
  EXPECT_THAT([&] { checkpoint.match(); },
              ThrowsMessage<ConfigError>(
                  AllOf(HasSubstr("model.layers.1.post_attention_layernorm.weight: F32"),
                        HasSubstr("must be BF16"))));
}

TEST(MatchCheckpoint, OuterTensorsMayHaveAnotherDtypeThanTheBlocks) {
  Checkpoint checkpoint(testing::odd_config());
  checkpoint.tensor("model.norm.weight").dtype = "F32";
  EXPECT_THAT(checkpoint.match(), IsEmpty());
  EXPECT_EQ(checkpoint.architecture.dtype, "BF16");
}

// Checkpoints that transformers wrote: of every family at least one, each named <family>_<variant>.
TEST(MatchCheckpoint, EveryBuiltinFamilyNamesEveryTensorOfItsCheckpointsAndNoOther) {
  std::set<std::string> seen;
  for (const auto& entry :
       std::filesystem::directory_iterator(COPPICE_SOURCE_DIR "/tests/golden")) {
    if (!entry.is_directory()) continue;
    SCOPED_TRACE(entry.path());
    Architecture architecture = load_architecture(entry.path());
    EXPECT_THAT(entry.path().filename().string(), StartsWith(architecture.family + "_"));
    seen.insert(architecture.family);
    const CheckpointReader checkpoint(entry.path());
    EXPECT_THAT(match_checkpoint(architecture, checkpoint), IsEmpty());

    std::vector<std::string> named;
    for (const NamedShape& tensor : outer_tensors(architecture)) named.push_back(tensor.name);
    for (int block = 0; block < architecture.num_blocks; ++block) {
      for (const NamedShape& t : block_tensors(architecture, block)) named.push_back(t.name);
    }
    EXPECT_THAT(named, UnorderedElementsAreArray(checkpoint.names()));
  }
  for (const BuiltinArchitecture& builtin : builtin_architectures()) {
    EXPECT_THAT(seen, Contains(builtin.name)) << "no golden checkpoint of this family";
  }
}

json fp8_config() {
  json config = testing::odd_config();
  config["quantization_config"] = {{"quant_method", "fp8"}, {"weight_block_size", {16, 8}}};
  return config;
}

/// down_proj of both blocks, [24, 37], as FP8 with its scales.
struct Fp8Checkpoint : Checkpoint {
  Fp8Checkpoint() : Checkpoint(fp8_config()) {
    for (const char* weight : {"model.layers.0.mlp.down_proj.weight", kWeight}) {
      tensor(weight).dtype = "F8_E4M3";
      add(std::string(weight) + "_scale_inv", {2, 5}, "F32");
    }
  }
  static constexpr char kWeight[] = "model.layers.1.mlp.down_proj.weight";
  static constexpr char kScales[] = "model.layers.1.mlp.down_proj.weight_scale_inv";
};

TEST(MatchCheckpoint, Fp8MatricesAreKnownWithTheirScales) {
  Fp8Checkpoint checkpoint;
  EXPECT_THAT(checkpoint.match(), IsEmpty());
  EXPECT_EQ(checkpoint.architecture.dtype, "BF16");
}

TEST(MatchCheckpoint, AnFp8MatrixWithoutItsScalesIsNamed) {
  Fp8Checkpoint checkpoint;
  checkpoint.remove(Fp8Checkpoint::kScales);
  EXPECT_THAT([&] { checkpoint.match(); },
              ThrowsMessage<CorruptionError>(
                  AllOf(HasSubstr(Fp8Checkpoint::kScales), HasSubstr("[2, 5]"))));
}

TEST(MatchCheckpoint, ScalesThatDoNotCoverTheirMatrixAreNamed) {
  Fp8Checkpoint shapes, dtypes;
  shapes.tensor(Fp8Checkpoint::kScales).shape = {2, 4};
  EXPECT_THAT([&] { shapes.match(); },
              ThrowsMessage<CorruptionError>(AllOf(HasSubstr("[2, 5]"), HasSubstr("[2, 4]"))));
  dtypes.tensor(Fp8Checkpoint::kScales).dtype = "BF16";
  EXPECT_THAT([&] { dtypes.match(); },
              ThrowsMessage<ConfigError>(
                  AllOf(HasSubstr(Fp8Checkpoint::kScales), HasSubstr("one of F32"))));
}

TEST(MatchCheckpoint, ScalesWithoutAnFp8MatrixAreNamed) {
  Fp8Checkpoint checkpoint;
  checkpoint.tensor(Fp8Checkpoint::kWeight).dtype = "BF16";
  EXPECT_THAT(
      [&] { checkpoint.match(); },
      ThrowsMessage<CorruptionError>(AllOf(HasSubstr(Fp8Checkpoint::kScales), HasSubstr("BF16"))));
}

TEST(MatchCheckpoint, Fp8IsRefusedWhereConfigJsonSaysNothingOfIt) {
  Checkpoint checkpoint(testing::odd_config());
  checkpoint.tensor(Fp8Checkpoint::kWeight).dtype = "F8_E4M3";
  EXPECT_THAT([&] { checkpoint.match(); },
              ThrowsMessage<ConfigError>(AllOf(HasSubstr(Fp8Checkpoint::kWeight),
                                               HasSubstr("F8_E4M3: this dtype is not computed"))));
}

TEST(MatchCheckpoint, BesideFp8TheRestOfABlockIsBf16) {
  Fp8Checkpoint checkpoint;
  checkpoint.tensor("model.layers.1.mlp.up_proj.weight").dtype = "F16";
  EXPECT_THAT([&] { checkpoint.match(); },
              ThrowsMessage<ConfigError>(HasSubstr("one of BF16, F8_E4M3")));
}

}  // namespace
}  // namespace coppice
