#include "pipeline/mask_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "configs/errors.h"
#include "pipeline/source_model.h"
#include "storage/checkpoint/checkpoint_writer.h"
#include "tests/support/small_checkpoint.h"
#include "tests/support/temp_dir.h"

namespace coppice {
namespace {

using testing::golden_directory;
using ::testing::HasSubstr;
using testing::TempDir;
using ::testing::ThrowsMessage;

const std::string kLinear = "model.layers.1.mlp.up_proj", kWeight = kLinear + ".weight";

class MaskSourceTest : public ::testing::Test {
 protected:
  /// A directory with one zeroed tensor.
  MaskSource source_with(const TensorSpec& tensor) {
    std::vector<std::byte> memory(ShardImage::bytes_needed({tensor}));
    write_shard(directory_.path() / "model.safetensors", ShardImage(memory, {tensor}).bytes());
    return source_of(directory_.path());
  }
  MaskSource source_of(const std::filesystem::path& directory) {
    prune_.masks = directory;
    return MaskSource(prune_);
  }
  auto checking(const TensorSpec& tensor) {
    return [this, tensor] { source_with(tensor).check(model_.architecture); };
  }
  std::vector<int64_t> shape() const { return model_.checkpoint.tensor(kWeight).shape; }

  TempDir directory_;
  SourceModel model_ = open_model(golden_directory("llama_fp32"), {});
  PruneOptions prune_;
};

TEST_F(MaskSourceTest, ACheckpointDecidesByTheTensorOfTheSameName) {
  const MaskSource source = source_of(golden_directory("llama_fp32"));
  EXPECT_NO_THROW(source.check(model_.architecture));
  EXPECT_EQ(source.tensor_for(kLinear), kWeight);
}

TEST_F(MaskSourceTest, ABitmaskGoesBeforeTheWeight) {
  const TensorSpec bits{kWeight + ".bitmask", "U8", {shape()[0], (shape()[1] + 7) / 8}};
  const MaskSource source = source_with(bits);
  EXPECT_NO_THROW(source.check(model_.architecture));
  EXPECT_EQ(source.tensor_for(kLinear), bits.name);
  EXPECT_EQ(source.tensor_for("model.layers.0.mlp.up_proj"), "");
}

TEST_F(MaskSourceTest, AMaskOfAnotherShapeIsRefusedWithBothShapes) {
  EXPECT_THAT(checking({kWeight + ".bitmask", "U8", {shape()[0], 1}}),
              ThrowsMessage<ConfigError>(
                  HasSubstr("is U8 [" + std::to_string(shape()[0]) + ", 1]: '" + kWeight + "'")));
  EXPECT_THAT(checking({kWeight, "F32", {3, 4}}),
              ThrowsMessage<ConfigError>(HasSubstr("is F32 [3, 4]")));
}

TEST_F(MaskSourceTest, AMaskOfAnotherTypeIsRefused) {
  EXPECT_THAT(checking({kWeight, "I32", shape()}), ThrowsMessage<ConfigError>(HasSubstr("is I32")));
}

TEST_F(MaskSourceTest, ABitmaskOfAnotherModelIsRefused) {
  EXPECT_THAT(checking({"model.layers.99.mlp.up_proj.weight.bitmask", "U8", {3, 4}}),
              ThrowsMessage<ConfigError>(HasSubstr("names no linear of the model")));
}

TEST_F(MaskSourceTest, WhatIsNoTargetHasNoMask) {
  prune_.ignore = {"up_proj"};
  const MaskSource source = source_of(golden_directory("llama_fp32"));
  EXPECT_EQ(source.tensor_for(kLinear), "");
  EXPECT_EQ(source.tensor_for("model.layers.1.mlp.down_proj"),
            "model.layers.1.mlp.down_proj.weight");
}

TEST_F(MaskSourceTest, MasksOfNoTargetAreRefused) {
  prune_.targets = {"down_proj"};
  EXPECT_THAT(checking({kWeight, "F32", shape()}),
              ThrowsMessage<ConfigError>(HasSubstr("holds neither a mask nor the weight")));
}

}  // namespace
}  // namespace coppice
