// Pairs of sentences with a score of their likeness, as the STS benchmark lists them.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace coppice {

struct SentencePairs {
  std::vector<double> scores;
  std::vector<std::string> sentences;  // two a pair, one behind the other
};

/// Rows of fields between tabs, the fifth to seventh of which are score, sentence and sentence;
/// quotation marks are text. Source: the files of the STS benchmark, Cer et al. 2017. Throws
/// IoError (absent), ConfigError (a row of too few fields, no number, an empty sentence: which
/// line).
SentencePairs read_sentence_pairs(const std::filesystem::path& file);

}  // namespace coppice
