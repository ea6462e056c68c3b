#include "stages/reconstruct/window_cost.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "stages/reconstruct.h"
#include "tests/support/tiny_window.h"

namespace coppice {
namespace {

using ::testing::IsEmpty;
using testing::kAttention;
using testing::kBlock;
using testing::kMlp;
using testing::kWindows;
using testing::options_with;
using testing::run;
using testing::TinySpan;

SpanShape shape_of(const Architecture& architecture, HalfRange halves, int64_t num_windows) {
  return {architecture, halves, num_windows, TinySpan::kSeqlen, 4};
}

double forward_flop(const LinearSpec& linear, double tokens) {
  return 2 * tokens * static_cast<double>(linear.in) * static_cast<double>(linear.out);
}

/// What a run reads: every window announced, by inputs and targets each.
struct WindowsRead {
  double trained = 0, evaluated = 0;
};
WindowsRead windows_read(const TinySpan& span, size_t num_training) {
  WindowsRead read;
  for (const std::vector<int>& order : span.boundaries.announced) {
    (order.size() == num_training ? read.trained : read.evaluated) += double(order.size()) / 2;
  }
  return read;
}

class WindowCostOf : public ::testing::TestWithParam<HalfRange> {};

// Forward, gradient of the weight, gradient of the input: one product each.
TEST_P(WindowCostOf, CountsTheProductsOfARun) {
  TinySpan span(kWindows, at::kFloat, at::kFloat);
  const ReconstructOptions options = options_with(1e-2, 3);
  ASSERT_THAT(run(span, GetParam(), options).fallback, IsEmpty());
  const WindowsRead read = windows_read(span, 6);
  const double trained = read.trained * TinySpan::kSeqlen;
  const double evaluated = read.evaluated * TinySpan::kSeqlen;
  double flop = 0;
  for (int half = GetParam().first; half < GetParam().last; ++half) {
    for (const LinearSpec& linear : span.architecture.linears) {
      if (linear.half != half_of(half)) continue;
      const bool reads_the_cache = half == GetParam().first && linear.input.ends_with("_in");
      flop += forward_flop(linear, trained + evaluated) + forward_flop(linear, trained) +
              (reads_the_cache ? 0 : forward_flop(linear, trained));
    }
    if (half_of(half) != Half::kAttention) continue;
    // Scores and their weighted sum over half of the square; backward two and a half times as much.
    const double width = double(span.architecture.heads * span.architecture.head_dim);
    flop += 2 * TinySpan::kSeqlen * width * (3.5 * trained + evaluated);
  }
  EXPECT_DOUBLE_EQ(
      Reconstruct(options).cost(shape_of(span.architecture, GetParam(), kWindows)).flop(), flop);
}

TEST_P(WindowCostOf, MovesTheWindowsThatARunReads) {
  TinySpan span(kWindows, at::kFloat, at::kFloat);
  const ReconstructOptions options = options_with(1e-2, 3);
  ASSERT_THAT(run(span, GetParam(), options).fallback, IsEmpty());
  const WindowsRead read = windows_read(span, 6);
  const double window_bytes = TinySpan::kSeqlen * double(span.architecture.hidden) * 4;
  EXPECT_EQ(
      Reconstruct(options).cost(shape_of(span.architecture, GetParam(), kWindows)).bytes_moved,
      2 * (read.trained + read.evaluated) * window_bytes);
}

INSTANTIATE_TEST_SUITE_P(Windows, WindowCostOf, ::testing::Values(kAttention, kMlp, kBlock));

TEST(WindowCost, OfABlockAddsTheWayBackThroughItsMlp) {
  const Architecture architecture = testing::tiny_llama();
  const Reconstruct stage(options_with(1e-2, 3));
  const auto flop = [&](HalfRange halves) {
    return stage.cost(shape_of(architecture, halves, kWindows)).flop();
  };
  const double trained = 3 * 6 * TinySpan::kSeqlen;
  EXPECT_DOUBLE_EQ(flop(kBlock) - flop(kAttention) - flop(kMlp),
                   forward_flop(architecture.linear("gate"), trained) +
                       forward_flop(architecture.linear("up"), trained));
}

TEST(WindowCost, HoldsStatesOfParametersAndOneBatchHoweverManyWindows) {
  const Architecture architecture = testing::tiny_llama();
  int64_t parameters = 0;
  for (const NamedShape& tensor : block_tensors(architecture, 0)) {
    parameters += tensor.shape[0] * (tensor.shape.size() == 2 ? tensor.shape[1] : 1);
  }
  const auto held = [&](int batch_size, int64_t num_windows) {
    ReconstructOptions options = options_with(1e-2);
    options.batch_size = batch_size;
    return Reconstruct(options).cost(shape_of(architecture, kBlock, num_windows)).bytes_held;
  };
  // Master, two moments, gradient and the best so far in fp32, the mask; what the gain's gradient
  // is summed from.
  const double largest = double(architecture.ffn * architecture.hidden) * 4;
  EXPECT_EQ(2 * held(500, 4000) - held(1000, 4000), double(parameters) * (5 * 4 + 1) + largest);
  EXPECT_EQ(held(2, kWindows), held(2, 1000));
}

TEST(WindowCost, HoldsNoMoreWindowsThanThereAre) {
  const Architecture architecture = testing::tiny_llama();
  SpanShape shape = shape_of(architecture, kBlock, kWindows);
  shape.seqlen = 1000;  // activations are most of what is held
  for (const Solver solver : {Solver::kAdamW, Solver::kLeastSquares}) {
    for (const WindowKind kind : {WindowKind::kBlock, WindowKind::kMatrix}) {
      ReconstructOptions options = options_with(1e-2);
      options.solver = solver;
      options.window.kind = kind;
      const auto held = [&](int batch_size) {
        options.batch_size = batch_size;
        return Reconstruct(options).cost(shape).bytes_held;
      };
      const int most = solver == Solver::kAdamW ? 6 : 3;  // trained on, or judged by
      EXPECT_LT(held(most - 1), held(most)) << int(solver) << int(kind);
      EXPECT_EQ(held(most), held(1000)) << int(solver) << int(kind);
    }
  }
}

TEST(WindowCost, ActivationsComputedAgainCostOneMoreForwardOfAllHalvesButTheLast) {
  const Architecture architecture = testing::tiny_llama(2);
  const Reconstruct stage(options_with(1e-2, 3));
  SpanShape shape = shape_of(architecture, {0, 4}, kWindows);
  const Cost all = stage.cost(shape);
  shape.kept_activations = KeptActivations::kOfOneHalf;
  const Cost of_one = stage.cost(shape);
  const double trained = 3 * 6 * TinySpan::kSeqlen;
  double again = 2 * 2 * TinySpan::kSeqlen * double(architecture.heads * architecture.head_dim) *
                 trained;  // attention, of both blocks
  for (const LinearSpec& linear : architecture.linears) {
    again += (linear.half == Half::kAttention ? 2 : 1) * forward_flop(linear, trained);
  }
  EXPECT_DOUBLE_EQ(of_one.flop() - all.flop(), again);
  EXPECT_LT(of_one.bytes_held, all.bytes_held);
  shape.halves = kMlp;
  EXPECT_EQ(stage.cost(shape).bytes_held,
            stage.cost(shape_of(architecture, kMlp, kWindows)).bytes_held);
}

TEST(WindowCost, OfNoWindowsIsNone) {
  const Architecture architecture = testing::tiny_llama();
  const Cost cost = Reconstruct(options_with(1e-2)).cost(shape_of(architecture, kBlock, 0));
  EXPECT_EQ(cost.flop(), 0);
  EXPECT_EQ(cost.bytes_moved, 0);
}

}  // namespace
}  // namespace coppice
