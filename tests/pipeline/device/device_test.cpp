#include "pipeline/device/device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "configs/errors.h"  // ConfigError

#ifdef COPPICE_WITH_CUDA
#include <ATen/detail/CUDAHooksInterface.h>
#include <dlfcn.h>
#endif

namespace coppice {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

TEST(Device, CpuIsAlwaysThere) { EXPECT_EQ(make_device({.device = "cpu"})->name(), "cpu"); }

TEST(Device, AGpuThatIsNotThereIsRefusedWithWhatIs) {
  EXPECT_THAT([] { make_device({.device = "cuda:99"}); },
              ThrowsMessage<ConfigError>(HasSubstr("resources.device: cuda:99: ")));
}

TEST(Device, AnotherWordIsRefusedWithTheKnownOnes) {
  for (const char* word : {"gpu", "cuda", "cuda:", "cuda:x"}) {
    EXPECT_THAT([&] { make_device({.device = word}); },
                ThrowsMessage<ConfigError>(AllOf(HasSubstr(word), HasSubstr("cuda:N"))));
  }
}

TEST(Device, ACpuCountsAsOftenAsItIsNamed) {
  const auto devices = make_devices({.device = "cpu,cpu", .threads = 1});
  ASSERT_EQ(devices.size(), 2u);
  EXPECT_NE(&devices[0]->executor(), &devices[1]->executor());
  EXPECT_EQ(make_devices({.device = "cpu"}).size(), 1u);
}

TEST(Device, EveryNameOfAListIsOneOfADevice) {
  for (const char* list : {"cpu,gpu", "cpu,"}) {
    EXPECT_THAT([&] { make_devices({.device = list}); },
                ThrowsMessage<ConfigError>(HasSubstr("expected auto, cpu or cuda:N")))
        << list;
  }
}

TEST(Device, CpuViewsBytesWhereTheyLieAndCopiesWhereTheirAddressDoesNotSuit) {
  const auto cpu = make_device({.device = "cpu"});
  alignas(4) std::byte bytes[12] = {};
  const at::Tensor in_place = cpu->view(std::span(bytes).first(8), {2}, at::kFloat);
  EXPECT_EQ(in_place.data_ptr(), bytes);
  const at::Tensor copy = cpu->view(std::span(bytes).subspan(1, 8), {2}, at::kFloat);
  EXPECT_NE(copy.data_ptr(), bytes + 1);
}

TEST(Device, RequestedDtypeWinsOverTheProcessors) {
  EXPECT_EQ(make_device({.device = "cpu", .compute_dtype = "fp32"})->compute_dtype(at::kBFloat16),
            at::kFloat);
  EXPECT_EQ(make_device({.device = "cpu", .compute_dtype = "bf16"})->compute_dtype(at::kFloat),
            at::kBFloat16);
}

#ifdef COPPICE_WITH_CUDA
TEST(Device, LibtorchsCudaLibraryCanBeLoadedLate) {
  // As the CUDA device does where there is a GPU; without one the library loads all the same.
  ASSERT_NE(dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL), nullptr) << dlerror();
  EXPECT_TRUE(at::detail::getCUDAHooks().hasCuSOLVER());  // libtorch without it says no
}
#endif

}  // namespace
}  // namespace coppice
