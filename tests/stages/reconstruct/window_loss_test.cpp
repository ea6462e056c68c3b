#include "stages/reconstruct/window_loss.h"

#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include "stages/model/block_forward.h"
#include "tests/support/tiny_llama.h"
#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using testing::IsIdenticalTo;
using testing::TinySpan;

constexpr int kWindow = 1;
const HalfRange kMlp{1, 2};

/// A span whose pruned prefix makes other activations than the dense one.
class WindowDataTest : public ::testing::Test {
 protected:
  WindowDataTest() {
    for (const at::Tensor& x : span_.boundaries.held[1]) {
      span_.boundaries.propagated[1].push_back(x + 0.1);
    }
  }
  WindowData data(Propagation propagation) {
    ReconstructOptions options;
    options.propagation = propagation;
    return window_data(span_.job, kMlp, options);
  }
  at::Tensor dense(int half) { return span_.boundaries.held[half][kWindow]; }
  at::Tensor propagated() { return span_.boundaries.propagated[1][kWindow]; }
  static at::Tensor read(ActivationSource& source) { return source.read({&kWindow, 1}).hidden; }

  TinySpan span_{3, at::kFloat, at::kFloat};
};

TEST_F(WindowDataTest, DenseIsTheDenseModelThroughout) {
  const WindowData window = data(Propagation::kDense);
  EXPECT_THAT(read(*window.inputs), IsIdenticalTo(dense(1)));
  EXPECT_THAT(read(*window.targets), IsIdenticalTo(dense(2)));
}

TEST_F(WindowDataTest, SparseAimsAtTheDenseWindowOnThePrunedPrefix) {
  const WindowData window = data(Propagation::kSparse);
  EXPECT_THAT(read(*window.inputs), IsIdenticalTo(propagated()));
  EXPECT_THAT(read(*window.targets), IsIdenticalTo(mlp_half(span_.architecture, span_.job.dense[0],
                                                            {propagated(), {TinySpan::kSeqlen}})));
}

TEST_F(WindowDataTest, MixedAimsAtTheDenseModelFromThePrunedPrefix) {
  const WindowData window = data(Propagation::kMixed);
  EXPECT_THAT(read(*window.inputs), IsIdenticalTo(propagated()));
  EXPECT_THAT(read(*window.targets), IsIdenticalTo(dense(2)));
}

TEST(WindowOutput, BlocksFollowEachOtherWithTheirOwnWeights) {
  TinySpan span(2, at::kFloat, at::kFloat, /*seed=*/1, /*num_blocks=*/2);
  const WindowBlocks weights = {{0, span.job.dense[0]}, {1, span.job.dense[1]}};
  const MicroBatch x{span.boundaries.held[0][0], {TinySpan::kSeqlen}};
  EXPECT_THAT(window_output(span.job, {0, 4}, weights, x),
              IsIdenticalTo(span.boundaries.held[4][0]));
}

}  // namespace
}  // namespace coppice
