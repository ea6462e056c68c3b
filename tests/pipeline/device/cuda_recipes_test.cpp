// Every recipe's stages on a real GPU, as its device sets libtorch up: skipped where there is none.
#include <ATen/TensorOperators.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>

#include "configs/errors.h"  // ConfigError
#include "pipeline/device/device.h"
#include "tests/support/recipe_cases.h"
#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using testing::IsCloseTo;
using testing::IsIdenticalTo;
using testing::RecipeCase;
using testing::worked;

constexpr int kWindows = 8;

class CudaRecipes : public ::testing::Test {
 protected:
  void SetUp() override {
    try {
      device_ = make_device({.device = "cuda:0"});
    } catch (const ConfigError& error) {
      GTEST_SKIP() << error.what();
    }
  }
  std::map<std::string, at::Tensor> adapted(const RecipeCase& which, at::ScalarType dtype) {
    std::map<std::string, at::Tensor> tensors;
    device_->executor().run([&] {
      for (const auto& [name, tensor] :
           worked(which, device_->where(), kWindows, dtype)->variant().adapted) {
        tensors[name] = tensor.to(at::kCPU);
      }
    });
    return tensors;
  }

  std::unique_ptr<Device> device_;
};

TEST_F(CudaRecipes, AdaptAsTheCpuDoes) {
  for (const RecipeCase& which : testing::recipe_cases()) {
    if (which.is_chaotic) continue;
    const auto found = adapted(which, at::kFloat);
    for (const auto& [name, tensor] : worked(which, at::kCPU, kWindows)->variant().adapted) {
      EXPECT_THAT(found.at(name), IsCloseTo(tensor)) << which.name << ": " << name;
    }
  }
}

TEST_F(CudaRecipes, GiveTheSameBytesTwice) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const RecipeCase& which : testing::recipe_cases()) {
      const auto once = adapted(which, dtype), twice = adapted(which, dtype);
      for (const auto& [name, tensor] : once) {
        EXPECT_THAT(twice.at(name), IsIdenticalTo(tensor))
            << which.name << " in " << c10::toString(dtype) << ": " << name;
      }
    }
  }
}

}  // namespace
}  // namespace coppice
