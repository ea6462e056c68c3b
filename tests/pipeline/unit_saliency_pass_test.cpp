#include "pipeline/unit_saliency_pass.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "configs/errors.h"
#include "pipeline/run_checks.h"
#include "tests/support/small_checkpoint.h"
#include "tests/support/temp_dir.h"

namespace coppice {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

class UnitSaliencyBudget : public ::testing::Test {
 protected:
  UnitSaliencyBudget() {
    testing::write_checkpoint(dir_.path(), testing::small_config(3, 16, 24, 20));
    model_ = std::make_unique<SourceModel>(open_model(dir_.path(), {}));
  }
  ResidentBudget budget(int64_t seqlen, const ResourceOptions& resources = {}) {
    return unit_saliency_budget(*model_, seqlen, resources, *device_);
  }
  static uint64_t bytes_of(const ResidentBudget& budget, const std::string& item) {
    for (const PlanItem& found : budget.ram.items) {
      if (found.name.find(item) != std::string::npos) return found.bytes;
    }
    ADD_FAILURE() << "no item " << item;
    return 0;
  }

  testing::TempDir dir_;
  std::unique_ptr<SourceModel> model_;
  std::unique_ptr<Device> device_ = make_device({.device = "cpu"});
};

TEST_F(UnitSaliencyBudget, HoldsTheWholeModel) {
  EXPECT_EQ(bytes_of(budget(32), "as it is stored"), model_->checkpoint.total_bytes());
}

TEST_F(UnitSaliencyBudget, BiasesThatNoCheckpointHasAreNotCounted) {
  add_biases(*model_);
  EXPECT_EQ(bytes_of(budget(32), "as it is stored"), model_->checkpoint.total_bytes());
}

TEST_F(UnitSaliencyBudget, HiddenStatesGrowWithTheLength) {
  EXPECT_GT(bytes_of(budget(1 << 20), "hidden states"), bytes_of(budget(32), "hidden states"));
}

TEST_F(UnitSaliencyBudget, RefusalNamesNeedAndWhatWouldFit) {
  ResourceOptions resources;
  resources.ram_budget_bytes = 1 << 20;
  EXPECT_THAT(unit_saliency_refusal(budget(32, resources)),
              AllOf(HasSubstr("needed, 1.0 MiB given by --ram-budget"),
                    HasSubstr("the model as it is stored"), HasSubstr("flap and wanda_sp")));
  EXPECT_EQ(unit_saliency_refusal(budget(32)), "");
}

TEST(UnitSaliencyOfFp8, IsRefused) {
  testing::TempDir dir;
  testing::write_fp8_checkpoint(dir.path(), testing::small_config(2, 16, 24, 20));
  const SourceModel model = open_model(dir.path(), {});
  Recipe recipe;
  recipe.prune.method = PruneMethod::kSnip;
  recipe.prune.ffn_sparsity = 0.5;
  TokenWindows tokens;
  tokens.seqlen = 32;
  EXPECT_THAT([&] { check_against_model(recipe, model.architecture, tokens); },
              ThrowsMessage<ConfigError>(HasSubstr("FP8 weights have none; choose flap")));
}

}  // namespace
}  // namespace coppice
