#include "pipeline/telemetry/sweep_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace coppice {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

json block(double sparsity, double pruned, double reconstructed) {
  json windows = json::array();
  if (pruned > 0) {
    windows.push_back({{"validation_pruned", pruned},
                       {"validation_reconstructed", reconstructed},
                       {"seconds", 1.5}});
  }
  return {{"linears", {{{"sparsity", sparsity}, {"weights", 64}}}}, {"windows", windows}};
}

json table() {
  return sweep_table({"prune.method", "prune.targets"},
                     {{"ria_up", {"ria", "up"}, json::array({block(0.5, 2, 1), block(0.7, 6, 3)})},
                      {"wanda_all", {"wanda", "up,down"}, json::array({block(0.5, 0, 0)})}},
                     {{"metric", "next-token loss"}, {"dense", 3.0}, {"losses", {4.5, 4.25}}});
}

TEST(SweepTable, TheLossOfTheWholeModelDecides) {
  EXPECT_EQ(table().at("best"), "wanda_all");
  EXPECT_FALSE(table().at("rows")[0].at("best").get<bool>());
  EXPECT_TRUE(table().at("rows")[1].at("best").get<bool>());
}

TEST(SweepTable, RowsAddUpTheirBlocks) {
  const json row = table().at("rows")[0];
  EXPECT_DOUBLE_EQ(row.at("sparsity").get<double>(), 0.6);
  EXPECT_EQ(row.at("held_out_pruned"), 8.0);
  EXPECT_EQ(row.at("held_out_reconstructed"), 4.0);
  EXPECT_EQ(row.at("held_out_ratio"), 0.5);
  EXPECT_EQ(row.at("seconds"), 3.0);
  EXPECT_TRUE(table().at("rows")[1].at("held_out_ratio").is_null());
}

TEST(SweepTable, ARowKeepsNoBlocks) {
  const json few = json::array({block(0.5, 2, 1)});
  json many = json::array();
  for (int i = 0; i < 1000; ++i) many.push_back(block(0.5, 2, 1));
  EXPECT_EQ(SweepRow("many", {}, many).sums.size(), SweepRow("few", {}, few).sums.size());
}

TEST(SweepTable, CsvHasAColumnAKeyAndQuotesCommas) {
  EXPECT_EQ(sweep_csv(table()),
            "name,prune.method,prune.targets,sparsity,held_out_loss,held_out_pruned,"
            "held_out_reconstructed,held_out_ratio,seconds,best\n"
            "ria_up,ria,up,0.6,4.5,8,4,0.5,3,0\n"
            "wanda_all,wanda,\"up,down\",0.5,4.25,,,,0,1\n");
}

TEST(SweepTable, WhatOverflowsIsWorseThanAnything) {
  const json judged = {{"metric", "next-token loss"}, {"dense", 3.0}, {"losses", {nullptr, 9.5}}};
  const json overflown = sweep_table(
      {}, {{"first", {}, json::array({block(0.5, 2, 1)})}, {"second", {}, json::array()}}, judged);
  EXPECT_EQ(overflown.at("best"), "second");
  EXPECT_TRUE(overflown.at("rows")[0].at("held_out_loss").is_null());
  EXPECT_THAT(sweep_csv(overflown), HasSubstr("first,0.5,,2,1,0.5,1.5,0\n"));
  EXPECT_THAT(sweep_text(overflown), HasSubstr("overflow"));
  const json none =
      sweep_table({}, {{"first", {}, json::array()}},
                  {{"metric", "next-token loss"}, {"dense", 3.0}, {"losses", {nullptr}}});
  EXPECT_TRUE(none.at("best").is_null());
  EXPECT_FALSE(none.at("rows")[0].at("best").get<bool>());
}

TEST(SweepTable, AWindowThatOverflowedIsToldAsUnknown) {
  json blocks = json::array({block(0.5, 2, 1), block(0.5, 2, 1)});
  blocks[1]["windows"][0]["validation_pruned"] = nullptr;  // as the journal gives it back
  blocks[1]["windows"][0]["validation_reconstructed"] = nullptr;
  const SweepRow row("name", {}, blocks);
  EXPECT_TRUE(row.sums.at("held_out_pruned").is_null());
  EXPECT_TRUE(row.sums.at("held_out_ratio").is_null());
}

TEST(SweepTable, TextMarksTheBestAndTellsTheDenseModel) {
  const std::string text = sweep_text(table());
  EXPECT_THAT(text, HasSubstr("* wanda"));
  EXPECT_THAT(text, HasSubstr("4.2500"));
  EXPECT_THAT(text, HasSubstr("50.0 %"));
  EXPECT_THAT(text, HasSubstr("dense model: 3.0000"));
}

}  // namespace
}  // namespace coppice
