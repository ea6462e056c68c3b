// Of a layer that goes every linear is zero and nothing else, and training does not bring it back.
#include "stages/remove_layers.h"

#include <ATen/TensorOperators.h>
#include <gmock/gmock.h>

#include <stdexcept>

#include "stages/bitmask.h"
#include "stages/propagate.h"  // adapted_half
#include "stages/reconstruct.h"
#include "tests/support/tiny_moe.h"
#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::IsIdenticalTo;
using ::testing::Not;
using testing::TinySpan;

constexpr int kWindows = 9;

PruneOptions without(std::vector<int> halves) {
  PruneOptions options;
  options.method = PruneMethod::kSimilarity;
  options.layer_sparsity = 0.5;
  options.removed_halves = std::move(halves);
  return options;
}

/// Two blocks with nothing removed yet.
struct Span : TinySpan {
  explicit Span(Architecture described = testing::tiny_llama(2))
      : TinySpan(std::move(described), kWindows, at::kFloat, at::kFloat) {
    variant() = {};
  }
  Variant& remove(const PruneOptions& options) {
    variant().prune = options;
    WindowJob window{job, job.halves, &variant()};
    RemoveLayers(options).run(window);
    return variant();
  }
  at::Tensor output(int half, const at::Tensor& hidden) {
    const MicroBatch x{hidden, {int(hidden.size(0))}};
    return forward_half(half, architecture, adapted_half(job, variant(), half), rotary, x);
  }
};

bool is_zero(const at::Tensor& tensor) { return tensor.count_nonzero().item<int64_t>() == 0; }

TEST(RemoveLayers, EveryLinearOfTheHalfIsZeroAndNothingElseIsTouched) {
  Span span;
  const Variant& variant = span.remove(without({1, 2}));
  size_t count = 0;
  for (int half = 0; half < 4; ++half) {
    for (const LinearSpec& spec : span.architecture.linears) {
      if (spec.half != half_of(half)) continue;
      const std::string name = in_block(span.architecture, half / 2, spec.name);
      for (const std::string& tensor : {name + ".weight", name + ".bias"}) {
        EXPECT_EQ(variant.adapted.contains(tensor), half == 1 || half == 2) << tensor;
        if (!variant.adapted.contains(tensor)) continue;
        ++count;
        EXPECT_TRUE(is_zero(variant.adapted.at(tensor))) << tensor;
        EXPECT_FALSE(variant.adapted.at(tensor).signbit().any().item<bool>()) << tensor;
        EXPECT_TRUE(is_zero(variant.masks.at(tensor))) << tensor;
      }
    }
  }
  EXPECT_EQ(variant.adapted.size(), count);
  EXPECT_EQ(variant.masks.size(), count);
}

TEST(RemoveLayers, TheHalfHandsItsInputOnExactly) {
  Span span;
  span.remove(without({1, 2}));
  for (const int half : {1, 2}) {
    const at::Tensor x = span.boundaries.held[half][0];
    EXPECT_THAT(span.output(half, x), IsIdenticalTo(x));
    EXPECT_THAT(span.output(3 * (2 - half), x), Not(IsIdenticalTo(x)));
  }
}

TEST(RemoveLayers, ReportsEveryWeightAndNamesBiasesAsTrained) {
  Span span;
  const Variant& variant = span.remove(without({2}));
  ASSERT_EQ(variant.linears.size(), 4);
  for (const LinearReport& report : variant.linears) {
    EXPECT_EQ(report.method, "similarity");
    EXPECT_EQ(report.pattern, "layer");
    EXPECT_EQ(report.sparsity, 1);
    EXPECT_EQ(report.weights, variant.adapted.at(report.name).numel());
    EXPECT_THAT(report.fallback, IsEmpty());
    EXPECT_THAT(report.name, HasSubstr("layers.1.self_attn"));
  }
  EXPECT_EQ(variant.trained.size(), 4);
}

TEST(RemoveLayers, AllExpertsGoAndTheRouterStays) {
  Span span(testing::tiny_moe());
  const Variant& variant = span.remove(without({1}));
  EXPECT_EQ(variant.linears.size(), 3 * 5);
  EXPECT_FALSE(variant.adapted.contains("model.layers.0.mlp.gate.weight"));
  const at::Tensor x = span.boundaries.held[1][0];
  EXPECT_THAT(span.output(1, x), IsIdenticalTo(x));
}

TEST(RemoveLayers, MasksAreKeptForStagesAndPackedForWhoAsks) {
  Span span;
  PruneOptions options = without({1});
  options.export_masks = true;
  WindowJob window{span.job, span.job.halves, &span.variant()};
  RemoveLayers(options, KeepMasks::kNo).run(window);
  EXPECT_THAT(span.variant().masks, IsEmpty());
  ASSERT_EQ(span.variant().bitmasks.size(), 3);
  for (const auto& [name, packed] : span.variant().bitmasks) {
    const at::Tensor& weight = span.variant().adapted.at(name);
    EXPECT_EQ(unpack_bitmask(packed, weight.size(1)).sizes(), weight.sizes());
    EXPECT_TRUE(is_zero(packed));
  }
}

TEST(RemoveLayers, AMethodOfWeightsIsRefused) {
  EXPECT_THROW(RemoveLayers(PruneOptions{}), std::invalid_argument);
}

// ---- what reconstruction makes of the rest ----

ReconstructOptions options_with(Propagation propagation) {
  ReconstructOptions options;
  options.lr = 1e-2;
  options.epochs = 3;
  options.validation_fraction = 0.25;
  options.propagation = propagation;
  return options;
}

void reconstruct(Span& span, HalfRange halves, const ReconstructOptions& options) {
  WindowJob window{span.job, halves, &span.variant()};
  Reconstruct(options).run(window);
}

/// What enters the windows when attention of the first block is gone.
void propagate_without_half_0(Span& span) {
  for (const at::Tensor& x : span.boundaries.held[0]) {
    at::Tensor hidden = x;
    for (int half = 1; half < 4; ++half) {
      span.boundaries.propagated[half].push_back(hidden);
      hidden = span.output(half, hidden);
    }
  }
}

TEST(ReconstructedLayers, KeptOnesBehindARemovedOneLearnUnderMixedPropagation) {
  Span span;
  span.remove(without({0}));
  propagate_without_half_0(span);
  reconstruct(span, {1, 2}, options_with(Propagation::kMixed));
  ASSERT_EQ(span.variant().windows.size(), 1);
  const WindowReport& report = span.variant().windows.front();
  EXPECT_EQ(report.kept, "adamw");
  EXPECT_LT(report.validation_reconstructed, 0.9 * report.validation_pruned);
}

TEST(ReconstructedLayers, TrainingDoesNotBringARemovedOneBack) {
  Span span;
  span.remove(without({0}));
  reconstruct(span, {0, 2}, options_with(Propagation::kDense));
  ASSERT_EQ(span.variant().windows.size(), 1);
  EXPECT_EQ(span.variant().windows.front().kept, "adamw");
  for (const LinearSpec& spec : span.architecture.linears) {
    if (spec.half != Half::kAttention) continue;
    const std::string name = in_block(span.architecture, 0, spec.name);
    EXPECT_TRUE(is_zero(span.variant().adapted.at(name + ".weight"))) << name;
    EXPECT_TRUE(is_zero(span.variant().adapted.at(name + ".bias"))) << name;
  }
  const at::Tensor x = span.boundaries.held[0][0];
  EXPECT_THAT(span.output(0, x), IsIdenticalTo(x));
}

TEST(ReconstructedLayers, WindowsWithNothingToWinAreLeftAlone) {
  const auto reports = [](std::vector<int> gone, HalfRange window, Propagation propagation) {
    Span span;
    span.remove(without(std::move(gone)));
    const size_t adapted = span.variant().adapted.size();
    span.boundaries.propagated = span.boundaries.held;
    reconstruct(span, window, options_with(propagation));
    if (span.variant().windows.empty()) {
      EXPECT_EQ(span.variant().adapted.size(), adapted);
    }
    return span.variant().windows.size();
  };
  for (const Propagation any : {Propagation::kDense, Propagation::kSparse, Propagation::kMixed}) {
    EXPECT_EQ(reports({0, 1}, {0, 2}, any), 0) << "nothing is left";
    EXPECT_EQ(reports({2}, {0, 2}, any), 0) << "nothing is lost so far";
    EXPECT_EQ(reports({2}, {2, 4}, any), 1) << "a part is lost";
  }
  EXPECT_EQ(reports({0}, {2, 4}, Propagation::kDense), 0);
  EXPECT_EQ(reports({0}, {2, 4}, Propagation::kSparse), 0);
  EXPECT_EQ(reports({0}, {2, 4}, Propagation::kMixed), 1) << "it reads otherwise";
}

TEST(ReconstructedLayers, ANormBehindARemovedOneLearns) {
  Architecture after = testing::tiny_llama(2);
  after.norms = {{"after_attention", "input_layernorm", Half::kAttention, after.hidden},
                 {"after_mlp", "post_attention_layernorm", Half::kMlp, after.hidden}};
  Span span(after);
  span.remove(without({0}));
  ReconstructOptions options = options_with(Propagation::kDense);
  reconstruct(span, {0, 1}, options);
  ASSERT_EQ(span.variant().windows.size(), 1);
  EXPECT_EQ(span.variant().windows.front().kept, "adamw");
  options.train_norms = false;
  reconstruct(span, {0, 1}, options);
  EXPECT_EQ(span.variant().windows.size(), 1);
}

}  // namespace
}  // namespace coppice
