#include "stages/propagation.h"

#include <gtest/gtest.h>

namespace coppice {
namespace {

Stream statistics(StatisticsOf of, Propagation propagation) {
  PruneOptions prune;
  prune.statistics = of;
  ReconstructOptions reconstruct;
  reconstruct.propagation = propagation;
  return statistics_stream(prune, reconstruct);
}

TEST(Propagation, WindowsReadTheDenseModelUnderDensePropagationOnly) {
  ReconstructOptions options;
  EXPECT_EQ(input_stream(options), Stream::kDense);
  options.propagation = Propagation::kSparse;
  EXPECT_EQ(input_stream(options), Stream::kPropagated);
  options.propagation = Propagation::kMixed;
  EXPECT_EQ(input_stream(options), Stream::kPropagated);
}

TEST(Propagation, StatisticsFollowThePropagationUnlessToldOtherwise) {
  EXPECT_EQ(statistics(StatisticsOf::kAuto, Propagation::kDense), Stream::kDense);
  EXPECT_EQ(statistics(StatisticsOf::kAuto, Propagation::kSparse), Stream::kPropagated);
  EXPECT_EQ(statistics(StatisticsOf::kAuto, Propagation::kMixed), Stream::kPropagated);
  EXPECT_EQ(statistics(StatisticsOf::kDense, Propagation::kSparse), Stream::kDense);
  EXPECT_EQ(statistics(StatisticsOf::kPropagated, Propagation::kMixed), Stream::kPropagated);
}

TEST(Propagation, BothStreamsStartFromTheSameEmbeddings) {
  EXPECT_EQ(entering(Stream::kPropagated, 0), (Boundary{Stream::kDense, 0}));
  EXPECT_EQ(entering(Stream::kPropagated, 1), (Boundary{Stream::kPropagated, 1}));
}

}  // namespace
}  // namespace coppice
