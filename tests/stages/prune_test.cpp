// Windows of a block of two linears against loops; names, patterns, failures.
#include "stages/prune.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "stages/errors.h"
#include "stages/ops/mask_select.h"
#include "stages/scores/ria.h"
#include "stages/scores/sparsegpt.h"

namespace coppice {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Key;
using ::testing::UnorderedElementsAre;

constexpr int64_t kOut = 6, kIn = 20;
constexpr char kUp[] = "model.layers.3.mlp.up_proj.weight";
constexpr char kQuery[] = "model.layers.3.self_attn.q_proj.weight";

Architecture two_linears() {
  Architecture architecture;
  architecture.dtype = "BF16";
  architecture.block_prefix = "model.layers.{block}.";
  architecture.linears = {
      {"q", "self_attn.q_proj", "self_attn.input", Half::kAttention, kOut, kIn, false},
      {"up", "mlp.up_proj", "mlp.input", Half::kMlp, kOut, kIn, false}};
  return architecture;
}

/// Pruning asks for no activations.
class NoBoundaries final : public Boundaries {
 public:
  std::unique_ptr<ActivationSource> source(Boundary) override { return nullptr; }
  std::unique_ptr<ActivationSink> sink(Boundary) override { return nullptr; }
};

/// Block 3 with weights of one dtype and statistics of both inputs.
struct Block {
  explicit Block(at::ScalarType dtype = at::kBFloat16) {
    span.dense[0].linears["q"].weight = at::randn({kOut, kIn}, at::kFloat).to(dtype);
    span.dense[0].linears["up"].weight = at::randn({kOut, kIn}, at::kFloat).to(dtype);
    for (const char* input : {"model.layers.3.self_attn.input", "model.layers.3.mlp.input"}) {
      const at::Tensor x = at::randn({4 * kIn, kIn}, at::kFloat);
      const at::Tensor gram = x.t().mm(x);
      span.statistics[input] = {gram.diagonal().to(at::kDouble), 4 * kIn, gram};
    }
  }
  Variant prune(const PruneOptions& options, HalfRange window = {6, 8}) {
    Variant variant;
    WindowJob job{span, window, &variant};
    Prune(options).run(job);
    return variant;
  }
  const at::Tensor& up() const { return span.dense[0].linears.at("up").weight; }
  at::Tensor& up() { return span.dense[0].linears.at("up").weight; }

  Architecture architecture = two_linears();
  RotaryTable rotary;
  NoBoundaries boundaries;
  SpanJob span{{6, 8}, architecture, {BlockWeights{}}, at::kFloat, rotary, boundaries, {}, {}};
};

PruneOptions magnitude(double sparsity) {
  PruneOptions options;
  options.method = PruneMethod::kMagnitude;
  options.sparsity = sparsity;
  return options;
}

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() &&
         std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0;
}

template <typename Error, typename Function>
std::string message_of(Function function) {
  try {
    function();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing thrown";
}

TEST(Prune, WandaRowsEqualTheLoop) {
  Block block;
  const Variant variant = block.prune({});
  const at::Tensor squares = block.span.statistics.at("model.layers.3.mlp.input").sum_of_squares;
  at::Tensor scores = at::zeros({kOut, kIn});
  for (int64_t i = 0; i < kOut; ++i) {
    for (int64_t j = 0; j < kIn; ++j) {
      scores[i][j] = std::abs(block.up()[i][j].item<float>()) *
                     static_cast<float>(std::sqrt(squares[j].item<double>()));
    }
  }
  EXPECT_TRUE(variant.masks.at(kUp).equal(keep_mask_by_row(scores, 0.5)));
}

TEST(Prune, RiaComparesTheMatrixUnlessAskedForRows) {
  Block block;
  const at::Tensor norm = block.span.statistics.at("model.layers.3.mlp.input").column_norm();
  const at::Tensor scores = ria_score(block.up(), norm);
  PruneOptions options;
  options.method = PruneMethod::kRia;
  EXPECT_TRUE(block.prune(options).masks.at(kUp).equal(keep_mask_by_matrix(scores, 0.5)));
  options.comparison = Comparison::kRow;
  EXPECT_TRUE(block.prune(options).masks.at(kUp).equal(keep_mask_by_row(scores, 0.5)));
}

TEST(Prune, RandomMasksDifferByTensorAndSeed) {
  Block block;
  PruneOptions options;
  options.method = PruneMethod::kRandom;
  const auto masks = block.prune(options).masks;
  EXPECT_FALSE(masks.at(kUp).equal(masks.at(kQuery)));
  EXPECT_TRUE(masks.at(kUp).equal(block.prune(options).masks.at(kUp)));
  EXPECT_TRUE(masks.at(kUp).sum(1).eq(kIn / 2).all().item<bool>());
  options.seed = 1;
  EXPECT_FALSE(masks.at(kUp).equal(block.prune(options).masks.at(kUp)));
}

TEST(Prune, EveryMethodTakesEveryPattern) {
  for (const PruneMethod method :
       {PruneMethod::kRandom, PruneMethod::kMagnitude, PruneMethod::kWanda, PruneMethod::kRia,
        PruneMethod::kSparseGpt}) {
    for (const SparsityPattern pattern : {SparsityPattern{}, {2, 4}, {1, 5}, {3, 10}}) {
      Block block;
      PruneOptions options;
      options.method = method;
      options.pattern = pattern;
      if (!pattern.is_unstructured()) {
        options.sparsity = 1 - double(pattern.num_kept) / pattern.group_size;
      }
      const at::Tensor mask = block.prune(options).masks.at(kUp);
      EXPECT_EQ(mask.numel() - mask.count_nonzero().item<int64_t>(),
                num_pruned(options.sparsity, mask.numel()));
      if (pattern.is_unstructured()) continue;
      const at::Tensor kept = mask.reshape({-1, pattern.group_size}).sum(1);
      EXPECT_TRUE(kept.eq(pattern.num_kept).all().item<bool>());
    }
  }
}

// ---- SparseGPT ----

PruneOptions sparsegpt() {
  PruneOptions options;
  options.method = PruneMethod::kSparseGpt;
  return options;
}

TEST(Prune, SparseGptWritesTheSweptWeightsAndSaysThatTheyChanged) {
  Block block(at::kFloat);
  const at::Tensor& gram = block.span.statistics.at("model.layers.3.mlp.input").gram;
  const SweptWeight swept =
      sweep_columns(block.up(), gram.diagonal().eq(0), *inverse_factor(gram, 0.01), 0.5, {});
  const Variant variant = block.prune(sparsegpt());
  EXPECT_TRUE(variant.masks.at(kUp).equal(swept.mask));
  EXPECT_TRUE(variant.adapted.at(kUp).equal(swept.weight));
  EXPECT_THAT(variant.trained, UnorderedElementsAre(kQuery, kUp));
  EXPECT_EQ(variant.linears[0].method, "sparsegpt");
  EXPECT_THAT(variant.linears[0].fallback, IsEmpty());
}

TEST(Prune, SparseGptDampsWhatDoesNotFactorise) {
  Block block(at::kFloat);
  at::Tensor& gram = block.span.statistics.at("model.layers.3.mlp.input").gram;
  gram.zero_();
  gram.diagonal().fill_(1);
  gram[3][3] = -0.5;  // not positive definite until damped by 1
  ASSERT_FALSE(inverse_factor(gram, 0.1).has_value());
  ASSERT_TRUE(inverse_factor(gram, 1).has_value());
  ASSERT_FALSE(inverse_factor(gram, 0.01).has_value());
  const Variant variant = block.prune(sparsegpt());
  EXPECT_EQ(variant.linears[1].name, kUp);
  EXPECT_EQ(variant.linears[1].method, "sparsegpt");
}

TEST(Prune, SparseGptFallsBackToWandaMatrixByMatrixAndSaysSo) {
  Block block(at::kFloat);
  const Variant wanda = block.prune({});
  block.span.statistics.at("model.layers.3.mlp.input").gram.neg_();
  const Variant variant = block.prune(sparsegpt());
  EXPECT_TRUE(variant.masks.at(kUp).equal(wanda.masks.at(kUp)));
  EXPECT_TRUE(variant.adapted.at(kUp).equal(wanda.adapted.at(kUp)));
  EXPECT_EQ(variant.linears[0].method, "sparsegpt");
  EXPECT_EQ(variant.linears[1].method, "wanda");
  EXPECT_THAT(variant.linears[1].fallback, HasSubstr("not positive definite"));
  EXPECT_THAT(variant.trained, ElementsAre(kQuery));
}

// ---- masks and values ----

TEST(Prune, ComparisonChoosesRowOrMatrix) {
  Block block(at::kFloat);
  PruneOptions options = magnitude(0.5);
  EXPECT_TRUE(block.prune(options).masks.at(kUp).equal(keep_mask_by_row(block.up().abs(), 0.5)));
  options.comparison = Comparison::kMatrix;
  EXPECT_TRUE(block.prune(options).masks.at(kUp).equal(keep_mask_by_matrix(block.up().abs(), 0.5)));
}

TEST(Prune, WandaComparesRowsWhateverIsAsked) {
  Block block;
  PruneOptions options;
  options.comparison = Comparison::kMatrix;
  const at::Tensor kept = block.prune(options).masks.at(kUp).sum(1);
  EXPECT_TRUE(kept.eq(kIn / 2).all().item<bool>());
}

TEST(Prune, PatternKeepsNOfM) {
  Block block;
  PruneOptions options;
  options.pattern = {2, 4};
  const Variant variant = block.prune(options);
  const at::Tensor kept = variant.masks.at(kUp).reshape({-1, 4}).sum(1);
  EXPECT_TRUE(kept.eq(2).all().item<bool>());
  EXPECT_EQ(variant.linears.front().pattern, "2:4");
  EXPECT_EQ(variant.linears.front().sparsity, 0.5);
}

TEST(Prune, AdaptedIsDenseWherePositiveZeroElsewhereInEveryDtype) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    Block block(dtype);
    const at::Tensor before = block.up().clone();
    const Variant variant = block.prune(magnitude(0.7));
    const at::Tensor expected =
        at::where(variant.masks.at(kUp), block.up(), at::zeros({}, block.up().options()));
    EXPECT_TRUE(same_bits(variant.adapted.at(kUp), expected)) << dtype;
    EXPECT_TRUE(same_bits(block.up(), before)) << "the dense weight was written to";
  }
}

TEST(Prune, NoZeroIsNegative) {
  Block block;
  block.up().narrow(1, 0, 15).fill_(-0.0);  // more than are pruned: some are kept
  const at::Tensor adapted = block.prune(magnitude(0.5)).adapted.at(kUp);
  EXPECT_FALSE(adapted.eq(0).logical_and(adapted.signbit()).any().item<bool>());
}

TEST(Prune, SparsityIsCounted) {
  Block block;
  block.up().narrow(1, 0, 15).fill_(0);  // of 20 columns; 10 a row are pruned
  const Variant variant = block.prune(magnitude(0.5), {7, 8});
  ASSERT_EQ(variant.linears.size(), 1u);
  EXPECT_EQ(variant.linears[0].name, kUp);
  EXPECT_EQ(variant.linears[0].method, "magnitude");
  EXPECT_EQ(variant.linears[0].pattern, "unstructured");
  EXPECT_EQ(variant.linears[0].sparsity, 0.75);
}

TEST(Prune, WindowDecidesWhichLinears) {
  Block block;
  EXPECT_THAT(block.prune({}, {6, 7}).masks, ElementsAre(Key(std::string(kQuery))));
  EXPECT_THAT(block.prune({}, {7, 8}).masks, ElementsAre(Key(std::string(kUp))));
  EXPECT_THAT(block.prune({}, {6, 8}).adapted,
              UnorderedElementsAre(Key(std::string(kQuery)), Key(std::string(kUp))));
}

TEST(Prune, IgnoredLinearsAreLeftOut) {
  Block block;
  PruneOptions options;
  options.ignore = {"up_proj"};
  const Variant variant = block.prune(options);
  EXPECT_THAT(variant.masks, ElementsAre(Key(std::string(kQuery))));
  EXPECT_EQ(variant.linears.size(), 1u);
}

TEST(Prune, TrainsNothing) { EXPECT_THAT(Block().prune({}).trained, IsEmpty()); }

TEST(Prune, MissingStatisticIsNamed) {
  Block block;
  block.span.statistics.erase("model.layers.3.mlp.input");
  EXPECT_THAT(message_of<std::logic_error>([&] { block.prune({}); }),
              AllOf(HasSubstr(kUp), HasSubstr("model.layers.3.mlp.input")));
}

TEST(Prune, MagnitudeNeedsNoStatistics) {
  Block block;
  block.span.statistics.clear();
  EXPECT_EQ(block.prune(magnitude(0.5)).masks.size(), 2u);
  EXPECT_EQ(Prune(magnitude(0.5)).needs(), Products::kNone);
  EXPECT_EQ(Prune(PruneOptions{}).needs(), Products::kStatistics);
}

TEST(Prune, NotFiniteWeightOfASweepNamesTheTensor) {
  Block block;
  block.up()[1][2] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(message_of<NumericalError>([&] { block.prune(sparsegpt()); }),
              AllOf(HasSubstr(kUp), HasSubstr("1 of 120")));
}

TEST(Prune, NotFiniteScoreNamesTheTensorAndHowMany) {
  Block block;
  block.up()[1][2] = std::numeric_limits<float>::quiet_NaN();
  block.up()[5][0] = std::numeric_limits<float>::infinity();
  EXPECT_THAT(message_of<NumericalError>([&] { block.prune({}); }),
              AllOf(HasSubstr(kUp), HasSubstr("2 of 120")));
}

TEST(Prune, PatternThatDoesNotDivideNamesTheTensor) {
  Block block;
  PruneOptions options;
  options.pattern = {4, 8};
  options.targets = {"up_proj"};
  EXPECT_THAT(message_of<std::invalid_argument>([&] { block.prune(options); }),
              AllOf(HasSubstr(kUp), HasSubstr("in = 20"), HasSubstr("4:8")));
}

TEST(Prune, CostHoldsMasksAndTheLargestScore) {
  const Architecture architecture = two_linears();
  const int64_t n = kOut * kIn;
  PruneOptions options;
  const Cost block = Prune(options).cost({architecture, {6, 8}, 128, 512, 2});
  EXPECT_EQ(block.bytes_held, 2 * n + n * 5);
  EXPECT_EQ(block.flop(), 0);
  EXPECT_EQ(block.bytes_moved, 0);
  options.ignore = {"up_proj", "q_proj"};
  EXPECT_EQ(Prune(options).cost({architecture, {6, 8}, 128, 512, 2}).bytes_held, 0);
}

class PruneStarved : public ::testing::TestWithParam<PruneMethod> {};

TEST_P(PruneStarved, AnInputThatNoTokenReachedIsPrunedByMagnitudeAndReported) {
  Block block;
  InputStatistics& statistics = block.span.statistics.at("model.layers.3.mlp.input");
  statistics = {at::zeros({kIn}, at::kDouble), 0, at::zeros({kIn, kIn})};
  PruneOptions options;
  options.method = GetParam();
  const Variant variant = block.prune(options);
  const at::Tensor scores = block.up().to(at::kFloat).abs();
  EXPECT_TRUE(variant.masks.at(kUp).equal(keep_mask_by_row(scores, 0.5)));
  EXPECT_TRUE(variant.adapted.at(kUp).equal(
      block.up().masked_fill(variant.masks.at(kUp).logical_not(), 0)));
  ASSERT_EQ(variant.linears.size(), 2u);
  EXPECT_EQ(variant.linears[1].method, "magnitude");
  EXPECT_EQ(variant.linears[1].fallback, "no calibration token was routed to it");
  EXPECT_THAT(variant.linears[0].fallback, IsEmpty());
  EXPECT_THAT(variant.trained, ::testing::Not(::testing::Contains(kUp)));
}

INSTANTIATE_TEST_SUITE_P(Methods, PruneStarved,
                         ::testing::Values(PruneMethod::kWanda, PruneMethod::kRia,
                                           PruneMethod::kSparseGpt));

TEST(Prune, SparseGptFallsBackToWandaWhereOnlyHeldOutTokensWereSeen) {
  Block block;
  block.span.statistics.at("model.layers.3.mlp.input").gram.zero_();
  PruneOptions options;
  options.method = PruneMethod::kSparseGpt;
  const Variant variant = block.prune(options);
  EXPECT_EQ(variant.linears[1].method, "wanda");
  EXPECT_EQ(variant.linears[1].fallback, "only held-out calibration tokens were routed to it");
  EXPECT_TRUE(variant.masks.at(kUp).equal(block.prune({}).masks.at(kUp)));
}

}  // namespace
}  // namespace coppice
