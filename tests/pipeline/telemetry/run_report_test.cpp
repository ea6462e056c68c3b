// The report's keys are what README promises; the two forms for people say the same.
#include "pipeline/telemetry/run_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

namespace coppice {
namespace {

using nlohmann::json;
using ::testing::EndsWith;
using ::testing::HasSubstr;

WindowReport attention_window() {
  WindowReport window;
  window.name = "attention";
  window.loss_pruned = 4;
  window.loss_reconstructed = 2;
  window.validation_pruned = 5;
  window.validation_fitted = 4.5;
  window.validation_reconstructed = 3;
  window.kept = "adamw";
  window.steps = 60;
  window.lr = 0.0005;
  window.retries = 1;
  window.seconds = 1.5;
  return window;
}

Variant two_linears_one_window(int block = 0) {
  Variant variant;
  variant.windows = {attention_window()};
  variant.windows[0].halves = {2 * block, 2 * block + 1};
  variant.linears = {{"q.weight", "wanda", "unstructured", 0.5, 300},
                     {"o.weight", "wanda", "2:4", 0.25, 100, "too flat"}};
  variant.trained = {"q.weight", "o.weight"};
  return variant;
}

// ---- json ----

TEST(RunReport, BlockTellsWindowsLinearsAndWhatWasTrained) {
  EXPECT_EQ(block_report(7, "", two_linears_one_window(7)), json::parse(R"({
    "block": 7,
    "windows": [{"name": "attention", "loss_pruned": 4.0, "loss_reconstructed": 2.0,
                 "validation_pruned": 5.0, "validation_fitted": 4.5,
                 "validation_reconstructed": 3.0, "kept": "adamw", "steps": 60, "ridge": 0.0, "lr": 0.0005, "micro_batch": 0, "retries": 1, "fallback": "", "seconds": 1.5}],
    "linears": [{"name": "q.weight", "method": "wanda", "sparsity": 0.5, "weights": 300,
                 "pattern": "unstructured", "fallback": ""},
                {"name": "o.weight", "method": "wanda", "sparsity": 0.25, "weights": 100, "pattern": "2:4",
                 "fallback": "too flat"}],
    "trained": ["q.weight", "o.weight"]})"));
}

TEST(RunReport, LossesThatOverflowedAreNullLikeThoseOfTheJournal) {
  Variant variant = two_linears_one_window();
  variant.windows[0].validation_pruned = variant.windows[0].validation_reconstructed =
      std::numeric_limits<double>::quiet_NaN();
  const json report = block_report(0, "", variant);
  EXPECT_EQ(report, json::parse(report.dump()));
  EXPECT_THAT(block_line(report, 2), HasSubstr("held-out loss nan -> nan"));
}

TEST(RunReport, BlockWithNothingDoneHasListsAllTheSame) {
  EXPECT_EQ(block_report(0, "", {}),
            json::parse(R"({"block": 0, "windows": [], "linears": [], "trained": []})"));
}

TEST(RunReport, WaitsOfABlockComeFromItsStamps) {
  const auto at = [](int seconds) { return SpanTimes::Time(std::chrono::seconds(1000 + seconds)); };
  SpanTimes times;
  times.reads_idle_since = at(0);
  times.slot_granted = at(1);
  times.reads_begin = at(2);
  times.reads_end = at(10);
  times.inputs_there = at(4);
  times.free_for_forward = at(5);
  times.forward_begin = at(10);
  times.forward_end = at(13);
  times.output_granted = at(17);
  times.free_for_adapt = at(13);
  times.adapt_begin = at(17);
  times.adapt_end = at(27);
  times.store_begin = at(30);
  EXPECT_EQ(waits_report(times, 0.25, at(36)), json::parse(R"({
    "waits": {"compute_for_weights": 5.0, "compute_for_activations": 0.25,
              "compute_for_shard_buffer": 4.0, "reads_for_slot": 1.0},
    "times": {"read_seconds": 8.0, "forward_seconds": 3.0, "adapt_seconds": 10.0,
              "store_seconds": 6.0}})"));
}

TEST(RunReport, TotalsComeFromTheirMeters) {
  RunMeters meters;
  meters.reads.add_seconds(2);
  meters.reads.add_bytes(1000);
  meters.writes.add_seconds(3);
  meters.writes.add_bytes(500);
  meters.device_busy.add_seconds(10);
  meters.waits.add_seconds(1.5);
  meters.encode.add_seconds(7);
  meters.decode.add_seconds(8);
  meters.decode.add_bytes(900);
  meters.cache_raw.add_bytes(64);
  meters.cache_stored.add_bytes(32);
  RunTotals totals;
  totals.wall_seconds = 12;
  totals.device_idle_seconds = 0.5;
  totals.peak_device_bytes = 77;
  totals.resumed = true;
  totals.stages["prune"] = {4, 1e9};
  json report = totals_report(meters, totals);
  EXPECT_GT(report.at("peak_rss_bytes"), 1 << 20);
  report.erase("peak_rss_bytes");
  EXPECT_EQ(report, json::parse(R"({
    "wall_seconds": 12.0, "compute_seconds": 8.5, "read_seconds": 2.0, "write_seconds": 3.0,
    "compute_waited_for_io_seconds": 2.0, "bytes_read": 1000, "bytes_written": 500,
    "peak_device_bytes": 77, "resumed": true,
    "stages": {"prune": {"seconds": 4.0, "flop": 1e9}},
    "activation_cache": {"raw_bytes": 64, "stored_bytes": 32,
                         "encode_seconds": 7.0, "decode_seconds": 8.0, "decoded_bytes": 900}})"));
}

TEST(RunReport, BlocksAndTotalsJoinTheHeadInOrder) {
  const json report = run_report({{"version", "1"}}, {{10, "c"}, {2, "b"}, {0, "a"}}, "totals");
  EXPECT_EQ(report, json::parse(R"({"version": "1", "blocks": ["a", "b", "c"],
                                    "totals": "totals"})"));
}

TEST(RunReport, RecipeHasEveryKeyInItsSection) {
  const json recipe = recipe_json({});
  for (const RecipeKey& key : recipe_keys()) {
    EXPECT_TRUE(recipe.at(key.section).contains(key.name)) << key.path();
  }
}

TEST(RunReport, RecipeKeepsNumbersFactsAndWords) {
  Recipe recipe;
  recipe.prune.sparsity = 0.625;
  recipe.prune.pattern = {2, 4};
  recipe.reconstruct.shuffle = true;
  recipe.calibration.nsamples = 64;
  const json written = recipe_json(recipe);
  EXPECT_EQ(written.at("prune").at("sparsity"), json(0.625));
  EXPECT_EQ(written.at("prune").at("sparsity_type"), json("2:4"));
  EXPECT_EQ(written.at("reconstruct").at("shuffle"), json(true));
  EXPECT_EQ(written.at("calibration").at("nsamples"), json(64));
}

// ---- for people ----

TEST(RunReport, LineOfABlockCountsFromOneAndGivesTheShareOfItsWeights) {
  EXPECT_EQ(block_line(block_report(6, "", two_linears_one_window(6)), 30),
            "block 7/30: 43.8 % zeros; attention held-out loss 5 -> 3; 1.5 s");
}

TEST(RunReport, LineOfABlockSaysWherePrunedWeightsStayed) {
  Variant variant = two_linears_one_window();
  variant.windows.push_back(variant.windows[0]);
  variant.windows[0].kept = "pruned";
  EXPECT_THAT(block_line(block_report(0, "", variant), 1),
              EndsWith("loss 5 -> 3 (pruned weights kept); attention held-out loss 5 -> 3; 3.0 s"));
}

TEST(RunReport, LineOfAPrunedBlockHasNoLossAndNoTime) {
  Variant variant = two_linears_one_window();
  variant.windows.clear();
  EXPECT_EQ(block_line(block_report(0, "", variant), 2), "block 1/2: 43.8 % zeros");
}

TEST(RunReport, LineOfABlockWithoutTargetsIsItsNumber) {
  EXPECT_EQ(block_line(block_report(0, "", {}), 3), "block 1/3");
}

TEST(RunReport, LayersAreALineALinearInTheOrderOfTheBlocks) {
  Variant one;
  one.linears = {{"k.weight", "magnitude", "unstructured", 0.125, 8}};
  const std::map<int, json> blocks = {{10, block_report(10, "", one)},
                                      {2, block_report(2, "", two_linears_one_window(2))}};
  EXPECT_EQ(layers_csv(blocks),
            "block,name,method,pattern,sparsity\n"
            "2,q.weight,wanda,unstructured,0.5\n"
            "2,o.weight,wanda,2:4,0.25\n"
            "10,k.weight,magnitude,unstructured,0.125\n");
}

}  // namespace
}  // namespace coppice
