// Removed units are zero in every tensor that belongs to them, and nothing else is touched.
#include "stages/prune_units.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/tensor.h>
#include <fmt/format.h>
#include <gmock/gmock.h>

#include <cmath>
#include <stdexcept>

#include "stages/calibrate.h"
#include "stages/units/unit_layout.h"
#include "stages/units/unit_scores.h"
#include "tests/support/tiny_moe.h"
#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using ::testing::ElementsAre;
using testing::IsIdenticalTo;
using testing::TinySpan;

constexpr HalfRange kAttention{0, 1}, kMlp{1, 2}, kBlock{0, 2};
constexpr char kPrefix[] = "model.layers.0.";

PruneOptions options_with(PruneMethod method, double ffn, double heads) {
  PruneOptions options;
  options.method = method;
  options.ffn_sparsity = ffn;
  options.head_sparsity = heads;
  return options;
}

/// A span with the statistics that any method wants, and nothing pruned yet.
struct Span : TinySpan {
  explicit Span(Architecture described = testing::tiny_llama())
      : TinySpan(std::move(described), 3, at::kFloat, at::kFloat) {
    calibrate();
    clear();
  }
  void calibrate() {
    job.statistics.clear();
    Calibrate::Options options;
    options.statistics = Calibrate::Statistics::kSquares;
    options.wants_sums = true;
    WindowJob window{job, kBlock, nullptr};
    Calibrate(options).run(window);
  }
  void clear() { variant() = {}; }
  Variant& prune(const PruneOptions& options, HalfRange halves = kBlock) {
    WindowJob window{job, halves, &variant()};
    PruneUnits(options).run(window);
    return variant();
  }
  const Linear& dense(const std::string& role) const { return job.dense[0].linears.at(role); }
  at::Tensor pruned(const std::string& name) { return variant().adapted.at(kPrefix + name); }
};

bool is_zero(const at::Tensor& tensor) { return tensor.count_nonzero().item<int64_t>() == 0; }

std::vector<std::string> names(const std::map<std::string, at::Tensor>& tensors) {
  std::vector<std::string> names;
  names.reserve(tensors.size());
  for (const auto& [name, tensor] : tensors) names.push_back(name.substr(sizeof kPrefix - 1));
  return names;
}

class PruneUnitsBy : public ::testing::TestWithParam<PruneMethod> {};

TEST_P(PruneUnitsBy, TheNeuronsWithTheSmallestScoresGo) {
  Span span;
  span.prune(options_with(GetParam(), 0.4, 0), kMlp);
  EXPECT_THAT(names(span.variant().adapted),
              ElementsAre("mlp.down_proj.weight", "mlp.gate_proj.bias", "mlp.gate_proj.weight",
                          "mlp.up_proj.bias", "mlp.up_proj.weight"));
  const at::Tensor down = span.pruned("mlp.down_proj.weight");
  const at::Tensor kept = down.abs().sum({0}).gt(0);  // [ffn]
  EXPECT_EQ(kept.sum().item<int64_t>(), 20);          // of 33, 13.2 go: 13
  for (const char* role : {"gate", "up"}) {
    const std::string linear = std::string("mlp.") + role + "_proj";
    const at::Tensor rows = kept.to(at::kFloat);
    EXPECT_THAT(span.pruned(linear + ".weight"),
                IsIdenticalTo(span.dense(role).weight * rows.unsqueeze(1) + 0));
    EXPECT_THAT(span.pruned(linear + ".bias"), IsIdenticalTo(span.dense(role).bias * rows + 0));
  }
  EXPECT_THAT(down, IsIdenticalTo(span.dense("down").weight * kept.to(at::kFloat) + 0));
  if (GetParam() == PruneMethod::kRandomSp) return;
  const UnitLayout units = unit_layouts(span.architecture, Half::kMlp).front();
  const at::Tensor scores = unit_scores(GetParam(), units, span.dense("down").weight,
                                        span.job.statistics.at("model.layers.0.mlp_units"), 0);
  EXPECT_GE(scores.masked_select(kept).min().item<float>(),
            scores.masked_select(kept.logical_not()).max().item<float>());
}

TEST_P(PruneUnitsBy, AHeadGoesWithItsQueriesAndTheColumnsThatReadIt) {
  Span span;
  span.prune(options_with(GetParam(), 0, 0.5), kAttention);
  const at::Tensor heads = span.pruned("self_attn.o_proj.weight").view({20, 4, 6});
  const at::Tensor kept = heads.abs().sum(at::IntArrayRef{0, 2}).gt(0);  // [heads]
  EXPECT_EQ(kept.sum().item<int64_t>(), 2);
  const at::Tensor queries = span.pruned("self_attn.q_proj.weight").view({4, 6, 20});
  EXPECT_THAT(queries.abs().sum(at::IntArrayRef{1, 2}).gt(0), IsIdenticalTo(kept));
  const at::Tensor shared = kept.view({2, 2}).any(1);  // [kv_heads]
  for (const char* linear : {"k_proj", "v_proj"}) {
    const at::Tensor rows =
        span.pruned(std::string("self_attn.") + linear + ".weight").view({2, 6, 20});
    EXPECT_THAT(rows.abs().sum(at::IntArrayRef{1, 2}).gt(0), IsIdenticalTo(shared)) << linear;
  }
}

INSTANTIATE_TEST_SUITE_P(Methods, PruneUnitsBy,
                         ::testing::Values(PruneMethod::kRandomSp, PruneMethod::kMagnitudeSp,
                                           PruneMethod::kWandaSp, PruneMethod::kFlap));

TEST(PruneUnits, WholeKeyValueHeadsGoWithAllThatShareThem) {
  Span span;
  PruneOptions options = options_with(PruneMethod::kWandaSp, 0, 0.5);
  options.head_units = HeadUnits::kGroup;
  span.prune(options);
  const at::Tensor heads = span.pruned("self_attn.o_proj.weight").view({20, 2, 12});
  const at::Tensor kept = heads.abs().sum(at::IntArrayRef{0, 2}).gt(0);  // [kv_heads]
  EXPECT_EQ(kept.sum().item<int64_t>(), 1);
  const at::Tensor values = span.pruned("self_attn.v_proj.weight").view({2, 6, 20});
  EXPECT_THAT(values.abs().sum(at::IntArrayRef{1, 2}).gt(0), IsIdenticalTo(kept));
}

TEST(PruneUnits, ReportsEveryTensorWithItsShareOfZeros) {
  Span span;
  span.prune(options_with(PruneMethod::kFlap, 0.5, 0.5));
  for (const LinearReport& report : span.variant().linears) {
    EXPECT_EQ(report.method, "flap");
    EXPECT_THAT(report.fallback, ::testing::IsEmpty());
    const at::Tensor& tensor = span.variant().adapted.at(report.name);
    const double zeros = 1 - double(tensor.count_nonzero().item<int64_t>()) / tensor.numel();
    EXPECT_NEAR(report.sparsity, zeros, 1e-9) << report.name;
    EXPECT_EQ(report.pattern, report.name.find("mlp") != std::string::npos ? "ffn" : "heads");
  }
  const size_t named = span.variant().linears.size() + span.variant().trained.size();
  EXPECT_EQ(named, span.variant().adapted.size());
}

TEST(PruneUnits, IgnoredConsumersKeepTheirUnitsAndRulesGoBeforeShares) {
  Span span;
  PruneOptions options = options_with(PruneMethod::kWandaSp, 0.5, 0.5);
  options.ignore = {"o_proj"};
  options.sparsity_map = {{"down_proj", 1.0 / 3}};
  span.prune(options);
  EXPECT_FALSE(span.variant().adapted.contains("model.layers.0.self_attn.q_proj.weight"));
  const at::Tensor down = span.pruned("mlp.down_proj.weight");
  EXPECT_EQ(down.abs().sum({0}).gt(0).sum().item<int64_t>(), 22);
}

TEST(PruneUnits, MasksSayWhatIsZeroOfWeightsAndBiases) {
  Span span;
  span.prune(options_with(PruneMethod::kMagnitudeSp, 0.5, 0.5));
  EXPECT_EQ(names(span.variant().masks), names(span.variant().adapted));
  for (const auto& [name, mask] : span.variant().masks) {
    const at::Tensor& tensor = span.variant().adapted.at(name);
    EXPECT_TRUE(is_zero(tensor.masked_select(mask.logical_not()))) << name;
    EXPECT_FALSE(is_zero(tensor.masked_select(mask))) << name;
  }
}

TEST(PruneUnits, AnExpertWithoutTokensIsPrunedByMagnitude) {
  Span span(testing::tiny_moe());
  starve_the_last_expert(span);
  span.calibrate();
  span.prune(options_with(PruneMethod::kWandaSp, 0.5, 0), kMlp);
  for (const LinearReport& report : span.variant().linears) {
    const bool is_starved = report.name.find("experts.4.") != std::string::npos;
    EXPECT_EQ(report.method, is_starved ? "magnitude_sp" : "wanda_sp") << report.name;
    EXPECT_EQ(report.fallback, is_starved ? kNoTokenRouted : "") << report.name;
  }
}

// ---- scores that were made before the run

TEST(PruneUnits, TheSmallestOfGivenScoresGo) {
  Span span;
  span.variant().unit_scores["model.layers.0.self_attn.o_proj"] =
      at::tensor({0.3F, 0.1F, 0.4F, 0.2F});
  span.variant().unit_scores["model.layers.0.mlp.down_proj"] = at::arange(33, at::kFloat);
  span.prune(options_with(PruneMethod::kSnip, 1.0 / 3, 0.5));
  EXPECT_THAT(span.variant().kept_units.at("model.layers.0.self_attn.o_proj"),
              IsIdenticalTo(at::tensor({1, 0, 1, 0}).to(at::kBool)));
  EXPECT_THAT(span.variant().kept_units.at("model.layers.0.mlp.down_proj"),
              IsIdenticalTo(at::arange(33).ge(11)));
  for (const LinearReport& report : span.variant().linears) EXPECT_EQ(report.method, "snip");
}

TEST(PruneUnits, GivenScoresAskForNoStatistics) {
  const PruneUnits stage(options_with(PruneMethod::kSnip, 0.5, 0.5));
  EXPECT_EQ(stage.needs(), Products::kNone);
}

TEST(PruneUnits, ScoresThatNobodyGaveAreAnError) {
  Span span;
  EXPECT_THROW(span.prune(options_with(PruneMethod::kSnip, 0.5, 0)), std::logic_error);
}

TEST(PruneUnits, AnExpertWhoseScoresAreAllZeroIsPrunedByMagnitude) {
  Span span(testing::tiny_moe());
  for (int expert = 0; expert < 5; ++expert) {
    const std::string name = fmt::format("model.layers.0.mlp.experts.{}.down_proj", expert);
    span.variant().unit_scores[name] = at::arange(11, at::kFloat) * (expert < 4);
  }
  span.prune(options_with(PruneMethod::kSnip, 0.5, 0), kMlp);
  for (const LinearReport& report : span.variant().linears) {
    const bool is_starved = report.name.find("experts.4.") != std::string::npos;
    EXPECT_EQ(report.method, is_starved ? "magnitude_sp" : "snip") << report.name;
    EXPECT_EQ(report.fallback, is_starved ? kNoTokenRouted : "") << report.name;
  }
}

TEST(PruneUnits, ASingleWeightMethodIsRefused) {
  EXPECT_THROW(PruneUnits(options_with(PruneMethod::kWanda, 0.5, 0)), std::invalid_argument);
}

}  // namespace
}  // namespace coppice
