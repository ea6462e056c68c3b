#include "configs/plain_yaml.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "configs/errors.h"

namespace coppice {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;
using ::testing::ThrowsMessage;

auto parsing(const std::string& text) {
  return [text] { parse_yaml("file.yaml", text); };
}

TEST(PlainYaml, ValuesKeepTheirKeysTextsAndLines) {
  const YamlNode root =
      parse_yaml("file.yaml", "# a comment\nfirst: 1.0e-4\nsecond:\n  - 'a: b'\n");
  ASSERT_EQ(root.kind, YamlNode::Kind::kMap);
  ASSERT_EQ(root.children.size(), 2u);
  EXPECT_EQ(root.children[0].key, "first");
  EXPECT_EQ(root.children[0].text, "1.0e-4");
  EXPECT_EQ(root.children[0].line, 2);
  EXPECT_EQ(root.children[1].kind, YamlNode::Kind::kList);
  EXPECT_EQ(root.children[1].line, 3);
  EXPECT_EQ(root.children[1].children[0].text, "a: b");
  EXPECT_EQ(root.children[1].children[0].line, 4);
}

TEST(PlainYaml, AnEmptyFileIsNothing) {
  EXPECT_EQ(parse_yaml("file.yaml", "").kind, YamlNode::Kind::kNothing);
  EXPECT_EQ(parse_yaml("file.yaml", "# only a comment\n").kind, YamlNode::Kind::kNothing);
}

TEST(PlainYaml, NullIsNothingAndQuotedNullIsAWord) {
  const YamlNode root = parse_yaml("file.yaml", "a: null\nb: ~\nc:\nd: 'null'\n");
  EXPECT_EQ(root.children[0].kind, YamlNode::Kind::kNothing);
  EXPECT_EQ(root.children[1].kind, YamlNode::Kind::kNothing);
  EXPECT_EQ(root.children[2].kind, YamlNode::Kind::kNothing);
  EXPECT_EQ(root.children[3].kind, YamlNode::Kind::kScalar);
}

TEST(PlainYaml, AKeyThatOccursTwiceIsRefusedWithBothLines) {
  EXPECT_THAT(parsing("a: 1\nb: 2\na: 3\n"),
              ThrowsMessage<ConfigError>(
                  AllOf(StartsWith("file.yaml:3: a: the key occurs twice"), HasSubstr("line 1"))));
}

TEST(PlainYaml, TheSameKeyInTwoMapsIsFine) { EXPECT_NO_THROW(parsing("a: {x: 1}\nb: {x: 2}\n")()); }

TEST(PlainYaml, TagsAreRefused) {
  EXPECT_THAT(parsing("a: !!int 3\n"), ThrowsMessage<ConfigError>(HasSubstr("file.yaml:1: a tag")));
  EXPECT_THAT(parsing("a:\n  !mine {b: 1}\n"),
              ThrowsMessage<ConfigError>(HasSubstr("file.yaml:2: a tag (!mine)")));
  EXPECT_THAT(parsing("a: !mine [1]\n"), ThrowsMessage<ConfigError>(HasSubstr("a tag")));
}

TEST(PlainYaml, AnchorsAreRefused) {
  for (const char* text : {"a: &x 1\n", "a: &x [1]\n", "a: &x {b: 1}\n", "a: &x\n"}) {
    EXPECT_THAT(parsing(text), ThrowsMessage<ConfigError>(HasSubstr("file.yaml:1: an anchor")))
        << text;
  }
}

TEST(PlainYaml, AliasesAreRefused) {
  EXPECT_THAT(parsing("a: *x\n"), ThrowsMessage<ConfigError>(HasSubstr("file.yaml:1:")));
}

TEST(PlainYaml, MergeKeysAreRefused) {
  EXPECT_THAT(parsing("a: 1\n<<: {b: 1}\n"),
              ThrowsMessage<ConfigError>(HasSubstr("file.yaml:2: a merge key")));
}

TEST(PlainYaml, KeysThatAreNoWordsAreRefused) {
  EXPECT_THAT(parsing("? [a, b]\n: 1\n"), ThrowsMessage<ConfigError>(HasSubstr("a key must be")));
  EXPECT_THAT(parsing("~: 1\n"), ThrowsMessage<ConfigError>(HasSubstr("a key must be")));
}

TEST(PlainYaml, ASecondDocumentIsRefused) {
  EXPECT_THAT(parsing("a: 1\n---\nb: 2\n"),
              ThrowsMessage<ConfigError>(HasSubstr("a second document")));
}

TEST(PlainYaml, BrokenTextIsRefusedWithItsLine) {
  EXPECT_THAT(parsing("a: 1\nb: [1, 2\n"),
              ThrowsMessage<ConfigError>(AllOf(StartsWith("file.yaml:"), HasSubstr("no YAML"))));
  EXPECT_THAT(parsing("a: 1\n b: 2\n"),
              ThrowsMessage<ConfigError>(StartsWith("file.yaml:2: no YAML")));
}

TEST(PlainYaml, DeepNestingIsRefused) {
  EXPECT_THROW(parsing(std::string(100'000, '['))(), ConfigError);
}

}  // namespace
}  // namespace coppice
