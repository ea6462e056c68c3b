#include "stages/recomputed_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "stages/calibrate.h"
#include "tests/support/tiny_llama.h"
#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using ::testing::ElementsAre;
using testing::IsIdenticalTo;
using testing::TinySpan;

constexpr int kWindows = 5;
constexpr HalfRange kAttention{0, 1};

struct Case {
  const char* name;
  at::ScalarType stored, compute;
};

class RecomputedSourceTest : public ::testing::TestWithParam<Case> {
 protected:
  RecomputedSourceTest() {
    span_.boundaries.held.erase(1);
    span_.boundaries.wanted = {1};
    WindowJob job{span_.job, {0, 2}, nullptr};
    Calibrate({}).run(job);
  }
  RecomputedSource source() {
    return RecomputedSource(span_.job, kAttention, span_.boundaries.source({Stream::kDense, 0}));
  }
  at::Tensor cached(int window) {
    return span_.boundaries.held.at(1)[size_t(window)].to(GetParam().stored).to(GetParam().compute);
  }

  TinySpan span_{kWindows, GetParam().stored, GetParam().compute};
};

TEST_P(RecomputedSourceTest, GivesTheBitsThatTheForwardCached) {
  RecomputedSource recomputed = source();
  EXPECT_EQ(recomputed.num_windows(), kWindows);
  for (const int window : {3, 0, 4, 1, 2}) {
    EXPECT_THAT(recomputed.read({&window, 1}).hidden, IsIdenticalTo(cached(window))) << window;
  }
}

TEST_P(RecomputedSourceTest, ABatchHoldsTheBitsOfItsWindowsAlone) {
  const std::vector<int> windows = {4, 1};
  const MicroBatch batch = source().read(windows);
  EXPECT_THAT(batch.lengths, ElementsAre(TinySpan::kSeqlen, TinySpan::kSeqlen));
  EXPECT_THAT(batch.hidden.narrow(0, 0, TinySpan::kSeqlen), IsIdenticalTo(cached(4)));
  EXPECT_THAT(batch.hidden.narrow(0, TinySpan::kSeqlen, TinySpan::kSeqlen),
              IsIdenticalTo(cached(1)));
}

TEST_P(RecomputedSourceTest, CollectsNoGraph) {
  const int window = 0;
  EXPECT_FALSE(source().read({&window, 1}).hidden.requires_grad());
}

INSTANTIATE_TEST_SUITE_P(Dtypes, RecomputedSourceTest,
                         ::testing::Values(Case{"fp32", at::kFloat, at::kFloat},
                                           Case{"bf16_stored", at::kBFloat16, at::kFloat},
                                           Case{"bf16", at::kBFloat16, at::kBFloat16}),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace coppice
