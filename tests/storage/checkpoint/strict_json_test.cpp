#include "storage/checkpoint/strict_json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "storage/errors.h"

namespace coppice {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::string complaint(std::string_view text, uint64_t offset = 0) {
  try {
    parse_strict_json("a/file", text, offset);
  } catch (const CorruptionError& error) {
    return error.what();
  }
  return "";
}

TEST(StrictJson, PlainDocumentsParse) {
  EXPECT_EQ(parse_strict_json("a/file", R"({"a":[1,{"b":null}]})")["a"][0], 1);
}

TEST(StrictJson, SyntaxErrorsNameFileAndByte) {
  EXPECT_THAT(complaint("{\"a\":1,}", 8), AllOf(HasSubstr("a/file"), HasSubstr("byte 16")));
  EXPECT_NE(complaint(""), "");
  EXPECT_NE(complaint("{\"a\":\"\xff\"}"), "");  // not UTF-8
  EXPECT_NE(complaint("{} {}"), "");
}

TEST(StrictJson, AKeyTwiceInOneObjectIsRefused) {
  EXPECT_THAT(complaint(R"({"a":1,"b":2,"a":3})"), HasSubstr("'a' twice"));
  EXPECT_THAT(complaint(R"({"x":{"a":1,"a":1}})"), HasSubstr("'a' twice"));
  EXPECT_THAT(complaint(R"({"a":{"a":1},"a":1})"), HasSubstr("'a' twice"));
}

TEST(StrictJson, AKeyInSeveralObjectsIsFine) {
  EXPECT_EQ(complaint(R"({"a":{"a":1,"b":{"a":1}},"b":[{"a":1},{"a":1}]})"), "");
}

TEST(StrictJson, DepthIsLimitedAndNeverOverflowsTheStack) {
  EXPECT_EQ(complaint(std::string(16, '[') + std::string(16, ']')), "");
  EXPECT_THAT(complaint(std::string(17, '[') + std::string(17, ']')), HasSubstr("deeper"));
  EXPECT_THAT(complaint(std::string(10'000'000, '[')), HasSubstr("deeper"));
}

}  // namespace
}  // namespace coppice
