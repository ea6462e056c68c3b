// Which tokens become windows, and what is said where there are too few or wrong ones. The
// tokenizer is a stand-in that hands out prepared tokens.
#include "pipeline/token_windows.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <numeric>
#include <set>

#include "configs/errors.h"
#include "storage/cache/token_file.h"
#include "storage/errors.h"
#include "storage/io/file.h"
#include "tests/support/temp_dir.h"

namespace coppice {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::ThrowsMessage;

constexpr int64_t kSeqlen = 4;

std::vector<int32_t> counting(int32_t count) {
  std::vector<int32_t> ids(static_cast<size_t>(count));
  std::iota(ids.begin(), ids.end(), 0);
  return ids;
}

class TokenWindowsTest : public ::testing::Test {
 protected:
  TokenWindowsTest() {
    architecture_.vocab = 1000;
    architecture_.eos_token_ids = {2, 7};
    options_.nsamples = 2;
    options_.seqlen = kSeqlen;
  }

  TextSource tokens(const std::vector<int32_t>& ids, int64_t seqlen = 0) {
    write_token_file(dir_ / "tokens.h5", {ids, seqlen});
    return {dir_ / "tokens.h5", dir_ / "model", dir_ / "work"};
  }
  TokenWindows calibration(const TextSource& source) {
    return calibration_windows(source, options_, architecture_);
  }
  TokenWindows evaluation(const TextSource& source, int64_t max_windows = 0) {
    return evaluation_windows(source, kSeqlen, max_windows, architecture_);
  }

  testing::TempDir dir_;
  Architecture architecture_;
  CalibrationOptions options_;
};

// ---- calibration ----

TEST_F(TokenWindowsTest, StreamIsCutFromItsStart) {
  const TokenWindows windows = calibration(tokens(counting(11)));
  EXPECT_EQ(windows.count(), 2);
  EXPECT_THAT(windows.window(0), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(windows.window(1), ElementsAre(4, 5, 6, 7));
}

TEST_F(TokenWindowsTest, WindowsOfTheFileAreTakenInOrder) {
  const TokenWindows windows = calibration(tokens(counting(12), kSeqlen));
  EXPECT_EQ(windows.count(), 2);
  EXPECT_THAT(windows.window(1), ElementsAre(4, 5, 6, 7));
}

TEST_F(TokenWindowsTest, WindowsOfAnotherLengthAreRefusedWithBothLengths) {
  const TextSource source = tokens(counting(12), 6);
  EXPECT_THAT([&] { calibration(source); },
              ThrowsMessage<ConfigError>(AllOf(HasSubstr("calibration.seqlen: 4"),
                                               HasSubstr("tokens.h5 holds windows of 6 tokens"))));
}

TEST_F(TokenWindowsTest, TooLittleTextSaysHowMuchThereIsAndIsNeeded) {
  const TextSource source = tokens(counting(11));
  options_.nsamples = 3;
  EXPECT_THAT([&] { calibration(source); },
              ThrowsMessage<ConfigError>(AllOf(HasSubstr("tokens.h5"),
                                               HasSubstr("11 tokens make 2 windows of 4"),
                                               HasSubstr("asks for 3 (12 tokens)"))));
}

TEST_F(TokenWindowsTest, LastIdOfTheVocabularyIsAToken) {
  EXPECT_THAT(calibration(tokens({0, 1, 2, 999, 4, 5, 6, 7})).window(0), ElementsAre(0, 1, 2, 999));
}

TEST_F(TokenWindowsTest, AnIdBeyondTheVocabularyIsNamedWithItsPlace) {
  // Not in a window that is used: tokens of another tokenizer are wrong as a whole.
  const TextSource source = tokens({0, 1, 2, 3, 4, 5, 6, 7, 8, 1000});
  const auto names_it = ThrowsMessage<ConfigError>(
      AllOf(HasSubstr("token 9 is 1000"), HasSubstr("vocabulary has 1000")));
  EXPECT_THAT([&] { calibration(source); }, names_it);
  EXPECT_THAT([&] { evaluation(source); }, names_it);
}

TEST_F(TokenWindowsTest, NegativeIdIsNoToken) {
  const TextSource source = tokens({0, 1, -2, 3, 4, 5, 6, 7});
  EXPECT_THAT([&] { calibration(source); }, ThrowsMessage<ConfigError>(HasSubstr("token 2 is -2")));
}

TEST_F(TokenWindowsTest, AbsentTextIsAnIoError) {
  const TextSource source{dir_ / "absent.h5", dir_ / "model", dir_ / "work"};
  EXPECT_THROW(calibration(source), IoError);
}

// ---- drawn windows ----

TEST_F(TokenWindowsTest, DrawnWindowsAreWholeAndDifferent) {
  options_.sample_windows = true;
  options_.nsamples = 20;  // of 20: every one
  const TokenWindows windows = calibration(tokens(counting(20 * kSeqlen)));
  std::set<int32_t> starts;
  for (int64_t i = 0; i < windows.count(); ++i) {
    const int32_t first = windows.window(i)[0];
    EXPECT_THAT(windows.window(i), ElementsAre(first, first + 1, first + 2, first + 3));
    EXPECT_EQ(first % kSeqlen, 0);
    starts.insert(first);
  }
  EXPECT_EQ(starts.size(), 20u);
}

TEST_F(TokenWindowsTest, DrawFollowsTheSeed) {
  const TextSource source = tokens(counting(100 * kSeqlen));
  options_.sample_windows = true;
  const TokenWindows windows = calibration(source);
  EXPECT_EQ(calibration(source).ids, windows.ids);
  options_.seed = 1;
  EXPECT_NE(calibration(source).ids, windows.ids);
}

// Pinned, because standard libraries shuffle differently.
TEST_F(TokenWindowsTest, DrawIsTheSameOnEveryMachine) {
  options_.sample_windows = true;
  options_.seed = 5;
  const TokenWindows windows = calibration(tokens(counting(100 * kSeqlen)));
  EXPECT_THAT((std::vector{windows.window(0)[0], windows.window(1)[0]}), ElementsAre(168, 308));
}

TEST_F(TokenWindowsTest, SeedAloneDrawsNothing) {
  options_.seed = 1;
  EXPECT_THAT(calibration(tokens(counting(100))).window(0), ElementsAre(0, 1, 2, 3));
}

// ---- sequences of an encoder ----

class TokenSequencesTest : public TokenWindowsTest {
 protected:
  TokenSequencesTest() { architecture_.mask = AttentionMask::kBidirectional; }

  TextSource sequences(const std::vector<int32_t>& lengths) {
    const int32_t sum = std::accumulate(lengths.begin(), lengths.end(), 0);
    write_token_file(dir_ / "tokens.h5", {counting(sum), 0, lengths});
    return {dir_ / "tokens.h5", dir_ / "model", dir_ / "work"};
  }
};

TEST_F(TokenSequencesTest, LieEndToEndUntilTheNextDoesNotFit) {
  options_.nsamples = 5;
  const TokenWindows windows = calibration(sequences({1, 2, 2, 1, 4, 3}));
  ASSERT_EQ(windows.count(), 3);
  EXPECT_THAT(windows.ids, ElementsAre(0, 1, 2, 0, 3, 4, 5, 0, 6, 7, 8, 9));
  EXPECT_THAT(windows.lengths_of(0), ElementsAre(1, 2));
  EXPECT_THAT(windows.lengths_of(2), ElementsAre(4));
  EXPECT_THAT(windows.window(1), ElementsAre(3, 4, 5));
  EXPECT_EQ(windows.num_sequences(), 5);
  EXPECT_EQ(windows.num_tokens(), 10);
}

TEST_F(TokenSequencesTest, AreCutWhereAWindowEnds) {
  const TokenWindows windows = calibration(sequences({7, 2}));
  EXPECT_THAT(windows.window(0), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(windows.window(1), ElementsAre(7, 8));
}

TEST_F(TokenSequencesTest, AreDrawnOneByOne) {
  const TextSource source = sequences({1, 1, 1, 1, 1, 1, 1, 1, 1});
  options_.nsamples = 9;  // of 9: every one
  const TokenWindows in_order = calibration(source);
  options_.sample_windows = true;
  const TokenWindows windows = calibration(source);
  EXPECT_NE(windows.ids, in_order.ids);
  std::set<int32_t> drawn;
  for (int64_t i = 0; i < windows.count(); ++i) {
    drawn.insert(windows.window(i).begin(), windows.window(i).end());
  }
  EXPECT_EQ(drawn.size(), 9u);
}

TEST_F(TokenSequencesTest, TooFewAreCounted) {
  options_.nsamples = 4;
  const TextSource source = sequences({1, 2, 2});
  EXPECT_THAT([&] { calibration(source); },
              ThrowsMessage<ConfigError>(
                  AllOf(HasSubstr("tokens.h5"), HasSubstr("3 sequences, one a line, nsamples asks "
                                                          "for 4"))));
}

TEST_F(TokenSequencesTest, OtherBordersAreAnotherFingerprint) {
  EXPECT_NE(calibration(sequences({1, 3})).xxh3_128, calibration(sequences({2, 2})).xxh3_128);
}

TEST_F(TokenSequencesTest, AStreamIsCutAsADecodersIs) {
  const TokenWindows windows = calibration(tokens(counting(11)));
  EXPECT_EQ(windows.count(), 2);
  EXPECT_THAT(windows.lengths_of(1), ElementsAre(4));
}

TEST_F(TokenSequencesTest, AreNothingForADecoder) {
  const TextSource source = sequences({4, 4});
  architecture_.mask = AttentionMask::kCausal;
  architecture_.family = "llama";
  EXPECT_THAT([&] { calibration(source); },
              ThrowsMessage<ConfigError>(
                  AllOf(HasSubstr("holds /lengths"), HasSubstr("a llama model reads one stream"))));
}

// ---- hashes ----

TEST_F(TokenWindowsTest, FingerprintIsOfTheTokensAlone) {
  const TokenWindows stream = calibration(tokens(counting(8)));
  const TokenWindows rows = calibration(tokens(counting(8), kSeqlen));
  EXPECT_EQ(stream.xxh3_128, rows.xxh3_128);
  EXPECT_NE(stream.dataset_sha256, rows.dataset_sha256);
}

TEST_F(TokenWindowsTest, OneOtherTokenIsAnotherFingerprint) {
  const TokenWindows windows = calibration(tokens({0, 1, 2, 3, 4, 5, 6, 7}));
  EXPECT_NE(calibration(tokens({0, 1, 2, 3, 4, 5, 6, 8})).xxh3_128, windows.xxh3_128);
}

TEST_F(TokenWindowsTest, DatasetHashIsOfTheFileGiven) {
  const TokenWindows windows = calibration(tokens(counting(8)));
  EXPECT_EQ(windows.dataset_sha256, sha256_file(dir_ / "tokens.h5"));
}

// ---- evaluation ----

TEST_F(TokenWindowsTest, EvaluationTakesAllWholeWindows) {
  EXPECT_EQ(evaluation(tokens(counting(11))).ids, counting(8));
}

TEST_F(TokenWindowsTest, EvaluationStopsAtTheWindowsAskedFor) {
  EXPECT_EQ(evaluation(tokens(counting(11)), 1).ids, counting(4));
}

TEST_F(TokenWindowsTest, EvaluationMayAskForMoreWindowsThanThereAre) {
  EXPECT_EQ(evaluation(tokens(counting(11)), 100).ids, counting(8));
}

TEST_F(TokenWindowsTest, EvaluationDoesNotCutAcrossTheBordersOfWindows) {
  const TextSource source = tokens(counting(12), 6);
  EXPECT_THAT([&] { evaluation(source); },
              ThrowsMessage<ConfigError>(AllOf(HasSubstr("--seqlen: 4"),
                                               HasSubstr("tokens.h5 holds windows of 6 tokens"))));
}

TEST_F(TokenWindowsTest, EvaluationOfLessThanAWindowSaysWhatOneNeeds) {
  const TextSource source = tokens(counting(3));
  EXPECT_THAT([&] { evaluation(source); },
              ThrowsMessage<ConfigError>(HasSubstr("3 tokens, one window needs 4")));
}

// ---- text ----

class TokenWindowsOfText : public TokenWindowsTest {
 protected:
  TokenWindowsOfText() {
    std::filesystem::create_directories(dir_ / "model");
    std::ofstream(dir_ / "model/tokenizer.json") << "{}";
    write_text("some text");
    write_token_file(dir_ / "prepared.h5", {counting(8), 0});
    // What runs the tokenizer's script: notes its arguments, then copies to what --output names.
    std::ofstream(dir_ / "python") << "#!/bin/sh\n"
                                   << "echo \"$@\" >> '" << (dir_ / "calls").string() << "'\n"
                                   << "while [ \"$1\" != --output ]; do shift; done\n"
                                   << "cp '" << (dir_ / "prepared.h5").string() << "' \"$2\"\n";
    std::filesystem::permissions(dir_ / "python", std::filesystem::perms::owner_all);
    setenv("COPPICE_PYTHON", (dir_ / "python").c_str(), 1);
  }
  void TearDown() override { unsetenv("COPPICE_PYTHON"); }

  void write_text(const std::string& text) { std::ofstream(dir_ / "text.txt") << text; }
  TextSource text() { return {dir_ / "text.txt", dir_ / "model", dir_ / "work"}; }
  std::vector<std::string> calls() {
    std::vector<std::string> lines;
    std::ifstream file(dir_ / "calls");
    for (std::string line; std::getline(file, line);) lines.push_back(line);
    return lines;
  }
};

TEST_F(TokenWindowsOfText, AnEncodersLinesAreSequencesOfAtMostAWindow) {
  architecture_.mask = AttentionMask::kBidirectional;
  write_token_file(dir_ / "prepared.h5", {counting(8), 0, {3, 1, 4}});
  EXPECT_EQ(calibration(text()).num_sequences(), 2);
  EXPECT_THAT(calls().back(), HasSubstr("--sequences 4"));
  const TokenWindows all =
      sequence_windows(text(), 5, architecture_);  // another length, tokens anew
  EXPECT_EQ(all.num_sequences(), 3);
  EXPECT_THAT(calls().back(), HasSubstr("--sequences 5"));
}

TEST_F(TokenWindowsOfText, WindowsAreOfWhatTheTokenizerMade) {
  EXPECT_EQ(calibration(text()).ids, counting(8));
}

TEST_F(TokenWindowsOfText, CalibrationJoinsDocumentsByTheFirstEosId) {
  calibration(text());
  EXPECT_THAT(calls(), ElementsAre(HasSubstr("--join-token 2")));
}

TEST_F(TokenWindowsOfText, WithoutAnEosIdNothingIsPutBetweenDocuments) {
  architecture_.eos_token_ids.clear();
  calibration(text());
  EXPECT_THAT(calls(), ElementsAre(Not(HasSubstr("--join-token"))));
}

TEST_F(TokenWindowsOfText, EvaluationAsksForOneStreamWithoutSpecialTokens) {
  evaluation(text());
  EXPECT_THAT(calls(), ElementsAre(AllOf(HasSubstr("--raw-stream"), Not(HasSubstr("--join")))));
}

TEST_F(TokenWindowsOfText, SameTextIsTokenisedOnce) {
  calibration(text());
  calibration(text());
  EXPECT_EQ(calls().size(), 1u);
}

TEST_F(TokenWindowsOfText, AnotherTextIsTokenisedAnew) {
  calibration(text());
  write_text("another text");
  calibration(text());
  EXPECT_EQ(calls().size(), 2u);
}

TEST_F(TokenWindowsOfText, AnotherTokenizerTokenisesAnew) {
  calibration(text());
  std::ofstream(dir_ / "model/tokenizer.json") << "{\"version\": 1}";
  calibration(text());
  EXPECT_EQ(calls().size(), 2u);
}

TEST_F(TokenWindowsOfText, EvaluationDoesNotTakeTheTokensOfCalibration) {
  calibration(text());
  evaluation(text());
  EXPECT_EQ(calls().size(), 2u);
}

TEST_F(TokenWindowsOfText, FailedTokenizerIsNamedWithItsCommand) {
  std::filesystem::remove(dir_ / "prepared.h5");
  EXPECT_THAT([&] { calibration(text()); },
              ThrowsMessage<ConfigError>(AllOf(HasSubstr("text.txt"), HasSubstr("ended with 1"),
                                               HasSubstr("tokenize_text.py --tokenizer"))));
}

TEST_F(TokenWindowsOfText, PythonThatCannotBeStartedIsAnIoError) {
  setenv("COPPICE_PYTHON", (dir_ / "absent").c_str(), 1);
  EXPECT_THAT([&] { calibration(text()); },
              ThrowsMessage<IoError>(HasSubstr("start the tokenizer")));
}

TEST_F(TokenWindowsOfText, ModelWithoutATokenizerSaysWhatToDo) {
  std::filesystem::remove(dir_ / "model/tokenizer.json");
  EXPECT_THAT([&] { calibration(text()); },
              ThrowsMessage<ConfigError>(
                  AllOf(HasSubstr("no tokenizer.json"), HasSubstr("HDF5 with /input_ids"))));
}

}  // namespace
}  // namespace coppice
