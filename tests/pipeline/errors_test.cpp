#include "pipeline/errors.h"

#include <c10/util/Exception.h>
#include <gmock/gmock.h>

#include <filesystem>
#include <new>
#include <system_error>

#include "configs/errors.h"      // ConfigError
#include "pipeline/interrupt.h"  // Interrupted
#include "stages/errors.h"       // NumericalError
#include "storage/errors.h"      // IoError, CorruptionError

namespace coppice {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

// `cause` as it comes out of the graph: nested in a BlockError.
template <typename Cause, typename Check>
void in_block(const Cause& cause, Check check) {
  try {
    try {
      throw cause;
    } catch (...) {
      std::throw_with_nested(BlockError("block 17, adapt"));
    }
  } catch (const std::exception& error) {
    check(error);
  }
}

template <typename Cause>
int code_in_block(const Cause& cause) {
  int code = -1;
  in_block(cause, [&](const std::exception& error) { code = exit_code(error); });
  return code;
}

TEST(Errors, TheInnermostCauseDecidesTheExitCode) {
  EXPECT_EQ(code_in_block(ConfigError("key")), 2);
  EXPECT_EQ(code_in_block(IoError("cannot read", "file", 2)), 3);
  EXPECT_EQ(code_in_block(CorruptionError("file", 8, "this", "that")), 4);
  EXPECT_EQ(code_in_block(BudgetError("32 GiB")), 5);
  EXPECT_EQ(code_in_block(NumericalError("weight", 1, 2)), 6);
  EXPECT_EQ(code_in_block(Interrupted()), 130);
  EXPECT_EQ(code_in_block(std::logic_error("bug")), 1);
}

TEST(Errors, WhatTheFileSystemRefusesIsAFilesFault) {
  for (const std::errc why : {std::errc::permission_denied, std::errc::no_space_on_device,
                              std::errc::resource_unavailable_try_again}) {
    EXPECT_EQ(code_in_block(std::filesystem::filesystem_error("make", std::make_error_code(why))),
              3);
  }
}

TEST(Errors, RefusedMemoryIsFiveWhoeverRefusedIt) {
  EXPECT_EQ(code_in_block(std::bad_alloc()), 5);
  const c10::SourceLocation here{__func__, __FILE__, __LINE__};
  EXPECT_EQ(code_in_block(c10::OutOfMemoryError(here, "CUDA out of memory")), 5);
  EXPECT_EQ(code_in_block(c10::Error(here, "DefaultCPUAllocator: can't allocate memory: 8 bytes")),
            5);
  EXPECT_EQ(code_in_block(c10::Error(here, "shapes differ")), 1);
  const auto again = std::make_error_code(std::errc::resource_unavailable_try_again);
  EXPECT_EQ(code_in_block(std::system_error(again)), 5);
}

TEST(Errors, TheChainNamesThePlaceBeforeTheCause) {
  in_block(ConfigError("sparsity"), [](const std::exception& error) {
    EXPECT_EQ(error_chain(error), "block 17, adapt\n  sparsity");
  });
}

TEST(Errors, LibtorchsStackTraceIsNotForPeople) {
  const c10::SourceLocation here{__func__, __FILE__, __LINE__};
  const c10::Error error(here, "can't allocate memory: 8 bytes");
  ASSERT_THAT(error.what(), HasSubstr("Exception raised from"));
  EXPECT_THAT(error_chain(error), HasSubstr("out of memory: can't allocate memory: 8 bytes"));
  EXPECT_THAT(error_chain(error), Not(HasSubstr("Exception raised from")));
}

TEST(Errors, OfALostGpuTheChainSaysHowToGoOn) {
  const c10::SourceLocation here{__func__, __FILE__, __LINE__};
  const c10::AcceleratorError lost(here, 719, "CUDA error: unspecified launch failure");
  EXPECT_THAT(error_chain(lost), AllOf(HasSubstr("launch failure"), HasSubstr("--resume")));
  EXPECT_EQ(code_in_block(lost), 1);
  EXPECT_THAT(error_chain(c10::OutOfMemoryError(here, "CUDA out of memory")),
              Not(HasSubstr("--resume")));
}

}  // namespace
}  // namespace coppice
