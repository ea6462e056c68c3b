// Windows of a block of two linears against loops; names, patterns, failures.
#include "stages/prune.h"

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
  std::unique_ptr<ActivationSource> inputs(HalfRange) override { return nullptr; }
  std::unique_ptr<ActivationSource> targets(HalfRange) override { return nullptr; }
  std::unique_ptr<ActivationSink> sink(Boundary) override { return nullptr; }
};

/// Block 3 with weights of one dtype and statistics of both inputs.
struct Block {
  explicit Block(at::ScalarType dtype = at::kBFloat16) {
    span.dense.linears["q"].weight = at::randn({kOut, kIn}, at::kFloat).to(dtype);
    span.dense.linears["up"].weight = at::randn({kOut, kIn}, at::kFloat).to(dtype);
    for (const char* input : {"model.layers.3.self_attn.input", "model.layers.3.mlp.input"}) {
      span.statistics[input] = {at::randn({kIn}, at::kDouble).square(), 10};
    }
  }
  Variant prune(const PruneOptions& options, HalfRange window = {6, 8}) {
    Variant variant;
    WindowJob job{span, window, &variant};
    Prune(options).run(job);
    return variant;
  }
  const at::Tensor& up() const { return span.dense.linears.at("up").weight; }
  at::Tensor& up() { return span.dense.linears.at("up").weight; }

  Architecture architecture = two_linears();
  RotaryTable rotary;
  NoBoundaries boundaries;
  SpanJob span{{6, 8}, architecture, {}, at::kFloat, rotary, boundaries, {}, {}};
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

bool targets(std::vector<std::string> patterns, const std::string& linear) {
  PruneOptions options;
  options.targets = std::move(patterns);
  return is_target(options, linear);
}

TEST(IsTarget, EverythingWithoutPatternsButWhatIsIgnored) {
  EXPECT_TRUE(targets({}, "model.layers.3.mlp.up_proj"));
  EXPECT_FALSE(targets({}, "lm_head"));
}

TEST(IsTarget, NamesMatchWholeLastComponents) {
  const std::string linear = "model.layers.3.mlp.up_proj";
  EXPECT_TRUE(targets({linear}, linear));
  EXPECT_TRUE(targets({"mlp.up_proj"}, linear));
  EXPECT_TRUE(targets({"down_proj", "up_proj"}, linear));
  EXPECT_FALSE(targets({"p_proj"}, linear));
  EXPECT_FALSE(targets({"model.layers.3"}, linear));
  EXPECT_FALSE(targets({".up_proj"}, linear));
}

TEST(IsTarget, ExpressionsAreSearchedFromTheStart) {
  const std::string linear = "model.layers.3.mlp.up_proj";
  EXPECT_TRUE(targets({"re:model\\.layers\\.[0-3]\\."}, linear));
  EXPECT_TRUE(targets({"re:.*up_proj"}, linear));
  EXPECT_FALSE(targets({"re:up_proj"}, linear));
  EXPECT_FALSE(targets({"re:.*up_proj$"}, linear + "2"));
}

TEST(IsTarget, IgnoreWinsOverTargets) {
  PruneOptions options;
  options.targets = {"up_proj"};
  options.ignore = {"re:.*\\.3\\."};
  EXPECT_FALSE(is_target(options, "model.layers.3.mlp.up_proj"));
  EXPECT_TRUE(is_target(options, "model.layers.4.mlp.up_proj"));
}

TEST(IsTarget, WrongExpressionIsNamedEvenWhereItDecidesNothing) {
  PruneOptions options;
  options.targets = {"up_proj", "re:(unclosed"};
  EXPECT_THAT(message_of<std::invalid_argument>([&] { is_target(options, "mlp.up_proj"); }),
              HasSubstr("re:(unclosed"));
}

}  // namespace
}  // namespace coppice
