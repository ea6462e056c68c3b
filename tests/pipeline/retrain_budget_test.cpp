#include "pipeline/retrain_budget.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "pipeline/device/gpu_device.h"
#include "pipeline/errors.h"
#include "tests/support/fake_gpu.h"
#include "tests/support/small_checkpoint.h"
#include "tests/support/temp_dir.h"

namespace coppice {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class RetrainBudgetTest : public ::testing::Test {
 protected:
  static constexpr int64_t kWindows = 64;
  RetrainBudgetTest() {
    testing::write_checkpoint(dir_.path(), testing::small_config(3, 16, 24, 20));
    model_ = std::make_unique<SourceModel>(open_model(dir_.path(), {}));
  }
  RetrainBudget budget(const RetrainOptions& options, int64_t seqlen = 32,
                       const ResourceOptions& resources = {}) {
    const OutputDirectory output(dir_ / "out", *model_);
    return retrain_budget(*model_, output, options, seqlen, resources, *device_, kWindows);
  }
  static uint64_t bytes_of(const RetrainBudget& budget, const std::string& item) {
    for (const PlanItem& found : budget.ram.items) {
      if (found.name.find(item) != std::string::npos) return found.bytes;
    }
    ADD_FAILURE() << "no item " << item;
    return 0;
  }

  testing::TempDir dir_;
  std::unique_ptr<SourceModel> model_;
  testing::FakeGpu gpu_;  // outlives the device
  std::unique_ptr<Device> device_ = make_device({.device = "cpu"});
};

TEST_F(RetrainBudgetTest, HoldsTheWholeModel) {
  EXPECT_EQ(bytes_of(budget({}), "as it is stored"), model_->checkpoint.total_bytes());
}

TEST_F(RetrainBudgetTest, AdaptersGrowWithTheirRank) {
  RetrainOptions options;
  options.rank = 8;
  const uint64_t small = bytes_of(budget(options), "adapters");
  options.rank = 16;
  EXPECT_GT(bytes_of(budget(options), "adapters"), small * 3 / 2);
}

TEST_F(RetrainBudgetTest, HiddenStatesGrowWithBatchAndLength) {
  RetrainOptions options;
  const uint64_t small = bytes_of(budget(options, 32), "hidden states");
  EXPECT_EQ(bytes_of(budget(options, 64), "hidden states"), 2 * small);
  options.training.batch_size *= 3;
  EXPECT_EQ(bytes_of(budget(options, 32), "hidden states"), 3 * small);
}

TEST_F(RetrainBudgetTest, ABatchIsOfNoMoreWindowsThanThereAre) {
  RetrainOptions options;
  options.training.batch_size = 60;  // 4 of 64 judge
  const uint64_t all = bytes_of(budget(options), "hidden states");
  options.training.batch_size = 1000;
  EXPECT_EQ(bytes_of(budget(options), "hidden states"), all);
}

TEST_F(RetrainBudgetTest, OfAHeadThatIsSmallNoMoreIsCountedThanItsLogits) {
  EXPECT_LT(bytes_of(budget({}), "of the head"), 1 << 20);
}

TEST_F(RetrainBudgetTest, TokensGrowWithTheWindows) {
  const OutputDirectory output(dir_ / "out", *model_);
  const RetrainBudget read = retrain_budget(*model_, output, {}, 32, {}, *device_, 1000);
  EXPECT_EQ(bytes_of(read, "tokens"), 12U * 32 * 1000);
}

TEST_F(RetrainBudgetTest, OnAGpuATensorLiesInRamOnItsWay) {
  device_ = std::make_unique<GpuDevice>(testing::make_fake_driver(gpu_), DeviceOptions{});
  const uint64_t largest = model_->checkpoint.tensor("model.layers.0.mlp.up_proj.weight").bytes;
  EXPECT_EQ(bytes_of(budget({}), "on its way"), largest);
}

TEST_F(RetrainBudgetTest, RefusalNamesNeedAndBudget) {
  ResourceOptions resources;
  resources.ram_budget_bytes = 1 << 20;
  try {
    require_fits(budget({}, 32, resources));
    FAIL() << "nothing was refused";
  } catch (const BudgetError& error) {
    EXPECT_THAT(error.what(),
                AllOf(HasSubstr("needed, 1.0 MiB given by --ram-budget"),
                      HasSubstr("the model as it is stored"), HasSubstr("--batch-size")));
  }
}

TEST_F(RetrainBudgetTest, WhatFitsIsNotRefused) { EXPECT_NO_THROW(require_fits(budget({}))); }

}  // namespace
}  // namespace coppice
