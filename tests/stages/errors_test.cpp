#include "stages/errors.h"

#include <gtest/gtest.h>

namespace coppice {
namespace {

TEST(NumericalError, NamesTheTensorAndHowManyOfItsElements) {
  EXPECT_STREQ(NumericalError("model.norm.weight", 3, 660).what(),
               "model.norm.weight: 3 of 660 elements are NaN or infinite, all must be finite");
}

}  // namespace
}  // namespace coppice
