#include "pipeline/resident_tensors.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/randn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "storage/errors.h"
#include "tests/support/small_checkpoint.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using ::testing::ElementsAre;
using testing::IsIdenticalTo;
using ::testing::Key;

TEST(ResidentTensors, HaveTheBytesOfTheCheckpoint) {
  const testing::TempDir dir;
  testing::write_checkpoint(dir.path(), testing::small_config(2, 16, 24, 20));
  const CheckpointReader checkpoint(dir.path());
  const std::vector<std::string> names = checkpoint.names();
  const auto tensors = read_tensors(checkpoint, names, at::kCPU);
  ASSERT_EQ(tensors.size(), names.size());
  for (const auto& [name, tensor] : tensors) {
    const std::string expected = testing::stored_bytes(checkpoint, name);
    ASSERT_EQ(tensor.nbytes(), expected.size()) << name;
    EXPECT_EQ(std::memcmp(tensor.const_data_ptr(), expected.data(), expected.size()), 0) << name;
    EXPECT_EQ(tensor.sizes().vec(), checkpoint.tensor(name).shape) << name;
  }
}

TEST(ResidentTensors, OfAWholeModelAddedBiasesAreZeros) {
  const testing::TempDir dir;
  testing::write_checkpoint(dir.path(), testing::small_config(2, 16, 24, 20));
  SourceModel model = open_model(dir.path(), {});
  add_biases(model);
  const ResidentModel resident = read_model(model, *make_device({.device = "cpu"}));
  EXPECT_GT(resident.tensors.size(), model.checkpoint.names().size());
  for (const auto& [name, tensor] : resident.tensors) {
    if (model.checkpoint.has(name)) continue;
    EXPECT_TRUE(name.ends_with("_proj.bias")) << name;
    EXPECT_FALSE(tensor.any().item<bool>()) << name;
  }
}

TEST(ResidentTensors, AreOnlyThoseThatAreAskedFor) {
  const testing::TempDir dir;
  testing::write_checkpoint(dir.path(), testing::small_config(1, 16, 24, 20));
  EXPECT_THAT(read_tensors(CheckpointReader(dir.path()), {"model.norm.weight"}, at::kCPU),
              ElementsAre(Key("model.norm.weight")));
}

TEST(ResidentTensors, FileOfTheirOwnGivesThemBack) {
  const testing::TempDir dir;
  const std::map<std::string, at::Tensor> tensors = {{"a.value", at::randn({3, 5})},
                                                     {"b.first_moment", at::randn({7})}};
  const FileRecord file = write_tensors(dir / "state.safetensors", tensors);
  EXPECT_EQ(hash_file(dir / "state.safetensors"), file);
  const auto found = read_tensors(dir / "state.safetensors");
  ASSERT_EQ(found.size(), 2);
  for (const auto& [name, tensor] : tensors) EXPECT_THAT(found.at(name), IsIdenticalTo(tensor));
}

TEST(ResidentTensors, StridedOnesAreWrittenRowByRow) {
  const testing::TempDir dir;
  const at::Tensor turned = at::arange(6, at::kFloat).view({2, 3}).t();
  write_tensors(dir / "turned", {{"t", turned}});
  EXPECT_THAT(read_tensors(dir / "turned").at("t"), IsIdenticalTo(turned.contiguous()));
}

TEST(ResidentTensors, TruncatedFileIsCorrupt) {
  const testing::TempDir dir;
  write_tensors(dir / "cut", {{"t", at::randn({64})}});
  std::filesystem::resize_file(dir / "cut", std::filesystem::file_size(dir / "cut") - 4);
  EXPECT_THROW(read_tensors(dir / "cut"), CorruptionError);
}

}  // namespace
}  // namespace coppice
