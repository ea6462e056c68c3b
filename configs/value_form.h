// How values are written as text (in a recipe, as a flag), and read back.
#pragma once

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "configs/errors.h"
#include "stages/prune_options.h"
#include "stages/reconstruct_options.h"

namespace coppice {

/// `read` throws ConfigError "<text>: <what would be right>", without a location.
/// `print` gives text that `read` reads back to exactly the same value.
template <typename T>
struct ValueForm {
  std::function<T(const std::string& text)> read;
  std::function<std::string(const T& value)> print;
};

ValueForm<int> whole_number(int at_least);
ValueForm<uint64_t> seed_number();
/// `range` is how a message says what `is_right` accepts. NaN and infinities are never right.
ValueForm<double> real_number(std::function<bool(double)> is_right, const std::string& range);
/// "auto", which is 0, or a number greater than 0.
ValueForm<double> positive_or_auto();
ValueForm<bool> true_or_false();
/// "unstructured", or "N:M" with 1 ≤ N < M ≤ 64.
ValueForm<SparsityPattern> sparsity_pattern();
/// "none", "matrix", "half-block", "block" (also "1"), or how many blocks.
ValueForm<Window> window_form();
/// "auto", "cpu", or a kind and its number.
ValueForm<std::string> device_name();
/// A path, or nothing.
ValueForm<std::string> path_text();
/// As parse_bytes; 0 is written "auto".
ValueForm<uint64_t> byte_budget();
/// As parse_bytes, without "auto": a positive multiple of `unit`.
ValueForm<uint64_t> byte_multiple(uint64_t unit);
/// Names and patterns separated by commas; a doubled comma is a comma within a pattern. No entry is
/// empty, begins or ends with a space, begins with a comma or holds a control character.
ValueForm<std::vector<std::string>> name_list();
/// Fractions of zeros, separated by commas.
ValueForm<std::vector<double>> sparsity_list();
/// "PATTERN=FRACTION", separated by commas, patterns as in name_list().
ValueForm<std::vector<SparsityRule>> sparsity_rules();
/// The two halves of that form, unchecked; joining wants entries that name_list() would accept.
std::vector<std::string> split_names(const std::string& text);
std::string join_names(const std::vector<std::string>& names);

/// "wandaa: unknown; one of magnitude, wanda", or that `text` (one of `later`) is still to come.
ConfigError unknown_word(const std::string& text, const std::vector<std::string>& known,
                         const std::vector<std::string>& later = {});

/// One of a few words. `later` are words that the method knows and this version does not compute.
template <typename T>
ValueForm<T> one_of(std::vector<std::pair<std::string, T>> words,
                    std::vector<std::string> later = {}) {
  auto read = [words, later](const std::string& text) {
    std::vector<std::string> known;
    for (const auto& [word, value] : words) {
      if (word == text) return value;
      known.push_back(word);
    }
    throw unknown_word(text, known, later);
  };
  auto print = [words](const T& value) {
    for (const auto& [word, known] : words) {
      if (known == value) return word;
    }
    throw std::logic_error("a value without a word: " + words.front().first + " has siblings");
  };
  return {read, print};
}

}  // namespace coppice
