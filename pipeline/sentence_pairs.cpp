#include "pipeline/sentence_pairs.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <string_view>

#include "configs/errors.h"   // ConfigError
#include "storage/io/file.h"  // read_file

namespace coppice {
namespace {

constexpr size_t kScore = 4, kFirst = 5, kSecond = 6;  // fields, from 0

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (size_t first = 0;;) {
    const size_t last = text.find(separator, first);
    parts.push_back(text.substr(first, last == std::string_view::npos ? last : last - first));
    if (last == std::string_view::npos) return parts;
    first = last + 1;
  }
}

}  // namespace

SentencePairs read_sentence_pairs(const std::filesystem::path& file) {
  const std::string text = read_file(file);
  SentencePairs pairs;
  size_t number = 0;
  for (std::string_view line : split(text, '\n')) {
    ++number;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty()) continue;
    const auto refuse = [&](const std::string& what) {
      throw ConfigError(fmt::format("{}, line {}: {}", file.string(), number, what));
    };
    const std::vector<std::string_view> fields = split(line, '\t');
    if (fields.size() <= kSecond) {
      refuse(
          fmt::format("{} fields between tabs; the fifth to seventh are score, sentence, sentence",
                      fields.size()));
    }
    const std::string_view field = fields[kScore];
    double score = 0;
    const auto [end, error] = std::from_chars(field.data(), field.data() + field.size(), score);
    if (error != std::errc() || end != field.data() + field.size() || !std::isfinite(score)) {
      refuse(fmt::format("'{}' is no score", field));
    }
    for (const size_t sentence : {kFirst, kSecond}) {
      if (fields[sentence].find_first_not_of(' ') == std::string_view::npos) {
        refuse(fmt::format("field {} is empty, a sentence is wanted", sentence + 1));
      }
      pairs.sentences.emplace_back(fields[sentence]);
    }
    pairs.scores.push_back(score);
  }
  if (pairs.scores.size() < 2) {
    throw ConfigError(fmt::format("{}: {} pairs of sentences, at least two are wanted",
                                  file.string(), pairs.scores.size()));
  }
  return pairs;
}

}  // namespace coppice
