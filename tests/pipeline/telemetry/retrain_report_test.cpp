#include "pipeline/telemetry/retrain_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/tiny_model.h"

namespace coppice {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::tiny_pruned_model;

const char* const kQuery = "model.layers.1.self_attn.q_proj.weight";

RetrainProgress progress_with(std::vector<double> validations, int best) {
  RetrainProgress progress;
  progress.validations = std::move(validations);
  progress.best = best;
  progress.loss_pruned = 3;
  progress.loss_retrained = 2;
  return progress;
}

TEST(RetrainReport, CountsTheZerosOfTheLinears) {
  const ResidentModel model = tiny_pruned_model();
  int64_t zeros = 0, weights = 0;
  for (const auto& [name, tensor] : model.tensors) {
    if (name.find("_proj.weight") == std::string::npos) continue;
    weights += tensor.numel();
    zeros += tensor.eq(0).sum().item<int64_t>();
  }
  const ZeroCount count = count_zeros(
      model.architecture, [&](const std::string& name) { return model.tensors.at(name); });
  EXPECT_EQ(count.matrices, 14);
  EXPECT_EQ(count.weights, weights);
  EXPECT_EQ(count.zeros, zeros);
}

TEST(RetrainReport, BlockNamesWhatHasChanged) {
  const ResidentModel model = tiny_pruned_model();
  NamedTensors result = model.tensors;
  result[kQuery] = model.tensors.at(kQuery).mul(2);
  const json block = retrained_block(model.architecture, 1, model.tensors, result);
  EXPECT_THAT(block.at("trained"), ElementsAre(kQuery));
  EXPECT_EQ(block.at("linears").size(), 7);
}

TEST(RetrainReport, ZeroThatIsNoneAnyMoreIsAnError) {
  const ResidentModel model = tiny_pruned_model();
  NamedTensors result = model.tensors;
  result[kQuery] = model.tensors.at(kQuery).add(1);
  EXPECT_THROW(retrained_block(model.architecture, 1, model.tensors, result), std::logic_error);
}

TEST(RetrainReport, BestEpochIsWhatWasKept) {
  const json report =
      retrain_report(progress_with({3.0, 2.5, 2.75}, 1), {}, 10, {14, 100, 50}, json::array());
  EXPECT_EQ(report.at("kept"), "retrained");
  EXPECT_EQ(report.at("best_epoch"), 1);
  EXPECT_EQ(report.at("validation_pruned"), 3.0);
  EXPECT_EQ(report.at("validation_retrained"), 2.5);
  EXPECT_THAT(report.at("epoch_validations"), ElementsAre(2.5, 2.75));
  EXPECT_EQ(report.at("fallback"), "");
}

TEST(RetrainReport, PrunedModelThatStaysIsExplained) {
  const json report =
      retrain_report(progress_with({3.0, 3.5}, 0), {}, 10, {14, 100, 50}, json::array());
  EXPECT_EQ(report.at("kept"), "pruned");
  EXPECT_EQ(report.at("validation_retrained"), 3.0);
  EXPECT_THAT(report.at("fallback").get<std::string>(), HasSubstr("no epoch lowered"));
}

}  // namespace
}  // namespace coppice
