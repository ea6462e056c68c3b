#include "pipeline/sentence_pairs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "configs/errors.h"
#include "storage/errors.h"
#include "storage/io/file.h"
#include "tests/support/temp_dir.h"

namespace coppice {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

constexpr char kRow[] = "news\tMSRpar\t2012\t0001\t2.500\tOne.\tTwo.\n";

class SentencePairsTest : public ::testing::Test {
 protected:
  SentencePairs read(const std::string& text) {
    write_file(dir_ / "pairs.csv", text);
    return read_sentence_pairs(dir_ / "pairs.csv");
  }

  testing::TempDir dir_;
};

TEST_F(SentencePairsTest, FieldsLieBetweenTabsAndQuotationMarksAreText) {
  const SentencePairs pairs = read(
      std::string(kRow) + "a\tb\tc\td\t4\tHe said \"no, never.\t\"Yes\"\tsource\tsource\r\n\n");
  EXPECT_THAT(pairs.scores, ElementsAre(2.5, 4));
  EXPECT_THAT(pairs.sentences, ElementsAre("One.", "Two.", "He said \"no, never.", "\"Yes\""));
}

TEST_F(SentencePairsTest, BadRowsAreNamedByLine) {
  const auto refused = [&](const std::string& row, const char* what) {
    EXPECT_THAT([&] { read(std::string(kRow) + kRow + row); },
                ThrowsMessage<ConfigError>(AllOf(HasSubstr("pairs.csv, line 3"), HasSubstr(what))));
  };
  refused("a,b,c,d,1.0,One.,Two.\n", "1 fields between tabs");
  refused("a\tb\tc\td\tmuch\tOne.\tTwo.\n", "'much' is no score");
  refused("a\tb\tc\td\t1.0 \tOne.\tTwo.\n", "'1.0 ' is no score");
  refused("a\tb\tc\td\tnan\tOne.\tTwo.\n", "'nan' is no score");
  refused("a\tb\tc\td\t1\tOne.\t \n", "field 7 is empty");
}

TEST_F(SentencePairsTest, OnePairOrNoneCorrelatesWithNothing) {
  EXPECT_THAT([&] { read(kRow); }, ThrowsMessage<ConfigError>(HasSubstr("1 pairs")));
  EXPECT_THAT([&] { read(""); }, ThrowsMessage<ConfigError>(HasSubstr("0 pairs")));
  EXPECT_THROW(read_sentence_pairs(dir_ / "absent.csv"), IoError);
}

}  // namespace
}  // namespace coppice
