#include "configs/config_json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "storage/errors.h"
#include "tests/support/temp_dir.h"

namespace coppice {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::ThrowsMessage;

ConfigJson config_of(const std::string& text) {
  const testing::TempDir directory;
  std::ofstream(directory / "config.json") << text;
  return ConfigJson(directory / "config.json");
}

TEST(ConfigJson, NullIsToldFromAbsent) {
  const ConfigJson config = config_of(R"({"n": null, "one": 1})");
  EXPECT_TRUE(config.is_null("n"));
  EXPECT_FALSE(config.is_null("one"));
  EXPECT_FALSE(config.is_null("two"));
}

TEST(ConfigJson, TextIsAStringItselfOrTheJsonOfAnythingElse) {
  const ConfigJson config = config_of(R"({"w": "absolute", "t": true, "n": 2})");
  EXPECT_EQ(config.text("w"), "absolute");
  EXPECT_EQ(config.text("t"), "true");
  EXPECT_EQ(config.text("n"), "2");
  EXPECT_EQ(config.text("gone"), "");
}

TEST(ConfigJson, ValuesAreReadByType) {
  const ConfigJson config = config_of(
      R"({"n": 7, "x": 0.5, "t": true, "w": "silu", "o": {"k": 1}, "l": [1, 2], "s": ["a"]})");
  EXPECT_EQ(config.whole("n"), 7);
  EXPECT_EQ(config.number("x"), 0.5);
  EXPECT_EQ(config.number("n"), 7.0);
  EXPECT_EQ(config.fact("t"), true);
  EXPECT_EQ(config.word("w"), "silu");
  EXPECT_EQ(config.object("o")->whole("k"), 1);
  EXPECT_THAT(config.whole_list("l"), ElementsAre(1, 2));
  EXPECT_THAT(config.whole_list("n"), ElementsAre(7));
  EXPECT_THAT(config.word_list("s"), ElementsAre("a"));
}

TEST(ConfigJson, AbsentAndNullAreNothing) {
  const ConfigJson config = config_of(R"({"null": null})");
  for (const char* key : {"null", "absent"}) {
    EXPECT_FALSE(config.has(key));
    EXPECT_FALSE(config.whole(key).has_value());
    EXPECT_FALSE(config.number(key).has_value());
    EXPECT_FALSE(config.fact(key).has_value());
    EXPECT_FALSE(config.word(key).has_value());
    EXPECT_FALSE(config.object(key).has_value());
    EXPECT_THAT(config.whole_list(key), IsEmpty());
    EXPECT_THAT(config.word_list(key), IsEmpty());
  }
}

TEST(ConfigJson, WrongTypesNameFileKeyPathAndValue) {
  const ConfigJson config = config_of(R"({"s": "x", "n": 1.5, "o": {"k": []}, "l": [1, "a"]})");
  EXPECT_THAT([&] { config.whole("n"); },
              ThrowsMessage<ConfigError>(EndsWith("config.json: n: 1.5: must be a whole number")));
  EXPECT_THAT([&] { config.number("s"); },
              ThrowsMessage<ConfigError>(EndsWith("config.json: s: \"x\": must be a number")));
  EXPECT_THAT([&] { config.fact("s"); }, ThrowsMessage<ConfigError>(HasSubstr("true or false")));
  EXPECT_THAT([&] { config.word("n"); }, ThrowsMessage<ConfigError>(HasSubstr("must be a string")));
  EXPECT_THAT([&] { config.object("l"); }, ThrowsMessage<ConfigError>(HasSubstr("an object")));
  EXPECT_THAT([&] { config.object("o")->whole("k"); },
              ThrowsMessage<ConfigError>(HasSubstr("config.json: o.k: []: ")));
  EXPECT_THAT([&] { config.whole_list("l"); }, ThrowsMessage<ConfigError>(HasSubstr("a list")));
  EXPECT_THAT([&] { config.word_list("l"); }, ThrowsMessage<ConfigError>(HasSubstr("a list")));
  EXPECT_THAT([&] { config.word_list("s"); }, ThrowsMessage<ConfigError>(HasSubstr("a list")));
}

TEST(ConfigJson, AbsentValueIsCalledAbsent) {
  EXPECT_THAT(config_of("{}").wrong("hidden_size", "is wanted").what(),
              EndsWith("config.json: hidden_size: absent: is wanted"));
}

TEST(ConfigJson, LongValuesAreCutInMessages) {
  const ConfigJson config = config_of("{\"s\": \"" + std::string(10'000, 'x') + "\"}");
  EXPECT_LT(std::string(config.wrong("s", "is wanted").what()).size(), 1'000u);
}

TEST(ConfigJson, TextThatIsNoJsonNamesTheByte) {
  EXPECT_THAT([] { config_of("{\"a\": 1,}"); },
              ThrowsMessage<ConfigError>(AllOf(HasSubstr("config.json: no JSON at byte 9"))));
  EXPECT_THAT([] { config_of("[1]"); },
              ThrowsMessage<ConfigError>(HasSubstr("a JSON object is wanted, found array")));
}

TEST(ConfigJson, AbsentFileIsAnIoError) {
  EXPECT_THROW(ConfigJson("no/such/config.json"), IoError);
}

}  // namespace
}  // namespace coppice
