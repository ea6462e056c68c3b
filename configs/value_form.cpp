#include "configs/value_form.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>
#include <regex>
#include <system_error>

#include "configs/recipe.h"  // parse_bytes, nearest

namespace coppice {
namespace {

template <typename Number>
std::optional<Number> whole_text(const std::string& text) {
  Number number{};
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc() || stop != end) return std::nullopt;
  return number;
}

ConfigError wrong(const std::string& text, const std::string& right) {
  return ConfigError(fmt::format("{}: {}", text.empty() ? "nothing" : text, right));
}

std::string bytes_text(uint64_t bytes) {
  static const std::vector<std::pair<const char*, int>> kUnits = {
      {"TiB", 40}, {"GiB", 30}, {"MiB", 20}, {"KiB", 10}};
  for (const auto& [unit, shift] : kUnits) {
    const uint64_t size = uint64_t{1} << shift;
    if (bytes % size == 0) return fmt::format("{}{}", bytes / size, unit);
  }
  return fmt::format("{}", bytes);
}

std::string trimmed(const std::string& text) {
  static const char* kSpaces = " \t";
  const size_t first = text.find_first_not_of(kSpaces);
  if (first == std::string::npos) return "";
  return text.substr(first, text.find_last_not_of(kSpaces) - first + 1);
}

std::vector<std::string> read_names(const std::string& text) {
  std::vector<std::string> names = split_names(text);
  for (const std::string& name : names) {
    if (name.empty() || name.front() == ',') {
      throw wrong(text,
                  "names or re: patterns separated by single commas; within a pattern write ,, "
                  "for a comma");
    }
    if (std::any_of(name.begin(), name.end(), [](unsigned char c) { return c < 0x20; })) {
      throw wrong(text, "names without tabs, line breaks and other control characters");
    }
  }
  return names;
}

SparsityPattern read_pattern(const std::string& text) {
  if (text == "unstructured") return {};
  static const std::regex kForm("([0-9]{1,3}):([0-9]{1,3})");
  std::smatch match;
  if (std::regex_match(text, match, kForm)) {
    const SparsityPattern pattern{std::stoi(match[1]), std::stoi(match[2])};
    const bool is_right = pattern.num_kept >= 1 && pattern.num_kept < pattern.group_size;
    if (is_right && pattern.group_size <= 64) return pattern;
  }
  throw wrong(
      text, "\"unstructured\", or N:M with N kept of every M inputs, 1 <= N < M <= 64, as in 2:4");
}

double read_sparsity(const std::string& text) {
  const std::optional<double> number = whole_text<double>(text);
  if (!number || !(*number >= 0 && *number < 1)) {
    throw wrong(text, "must be a fraction of zeros, at least 0 and less than 1");
  }
  return *number;
}

SparsityRule read_rule(const std::string& text) {
  const size_t equals = text.rfind('=');
  if (equals == std::string::npos || trimmed(text.substr(0, equals)).empty()) {
    throw wrong(text, "must be a pattern, =, and a fraction of zeros, as in re:.*mlp.*=0.6");
  }
  return {trimmed(text.substr(0, equals)), read_sparsity(trimmed(text.substr(equals + 1)))};
}

}  // namespace

// A doubled comma cannot be mistaken for two separators: no entry is empty or begins with a comma.
std::vector<std::string> split_names(const std::string& text) {
  if (trimmed(text).empty()) return {};
  std::vector<std::string> names(1);
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != ',') {
      names.back() += text[i];
    } else if (i + 1 < text.size() && text[i + 1] == ',') {
      names.back() += text[i++];
    } else {
      names.emplace_back();
    }
  }
  for (std::string& name : names) name = trimmed(name);
  return names;
}

std::string join_names(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) {
    if (!text.empty()) text += ',';
    for (const char letter : name) text += letter == ',' ? ",," : std::string(1, letter);
  }
  return text;
}

ConfigError unknown_word(const std::string& text, const std::vector<std::string>& known,
                         const std::vector<std::string>& later) {
  if (std::find(later.begin(), later.end(), text) != later.end()) {
    return wrong(text, fmt::format("comes later; this version has {}", fmt::join(known, ", ")));
  }
  return wrong(text, fmt::format("unknown; one of {}", fmt::join(known, ", ")));
}

ValueForm<int> whole_number(int at_least) {
  auto read = [at_least](const std::string& text) {
    const std::optional<int> number = whole_text<int>(text);
    if (!number || *number < at_least) {
      throw wrong(text, fmt::format("must be a whole number, at least {}", at_least));
    }
    return *number;
  };
  return {read, [](int number) { return fmt::format("{}", number); }};
}

ValueForm<uint64_t> seed_number() {
  auto read = [](const std::string& text) {
    const std::optional<uint64_t> number = whole_text<uint64_t>(text);
    if (!number) throw wrong(text, "must be a whole number from 0 to 2^64 - 1");
    return *number;
  };
  return {read, [](uint64_t number) { return fmt::format("{}", number); }};
}

ValueForm<double> real_number(std::function<bool(double)> is_right, const std::string& range) {
  auto read = [is_right = std::move(is_right), range](const std::string& text) {
    const std::optional<double> number = whole_text<double>(text);
    if (!number || !std::isfinite(*number) || !is_right(*number)) {
      throw wrong(text, fmt::format("must be a number, {}", range));
    }
    return *number;
  };
  // The shortest text that reads back to the same bits.
  return {read, [](double number) { return fmt::format("{}", number); }};
}

ValueForm<double> positive_or_auto() {
  const ValueForm<double> number =
      real_number([](double x) { return x > 0; }, "greater than 0, or auto");
  return {[number](const std::string& text) { return text == "auto" ? 0 : number.read(text); },
          [number](double rate) { return rate == 0 ? "auto" : number.print(rate); }};
}

ValueForm<bool> true_or_false() { return one_of<bool>({{"true", true}, {"false", false}}); }

ValueForm<SparsityPattern> sparsity_pattern() {
  auto print = [](const SparsityPattern& pattern) {
    if (pattern.is_unstructured()) return std::string("unstructured");
    return fmt::format("{}:{}", pattern.num_kept, pattern.group_size);
  };
  return {read_pattern, print};
}

ValueForm<Window> window_form() {
  static const std::vector<std::pair<std::string, WindowKind>> kWords = {
      {"none", WindowKind::kNone},
      {"matrix", WindowKind::kMatrix},
      {"half-block", WindowKind::kHalfBlock},
      {"block", WindowKind::kBlock}};
  auto read = [](const std::string& text) {
    for (const auto& [word, kind] : kWords) {
      if (word == text) return Window{kind};
    }
    const std::optional<int> blocks = whole_text<int>(text);
    if (blocks && *blocks >= 1) return Window{WindowKind::kBlock, *blocks};
    throw wrong(text, "one of none, matrix, half-block, block, or a number of blocks, at least 1");
  };
  auto print = [](const Window& window) {
    if (window.blocks > 1) return fmt::format("{}", window.blocks);
    for (const auto& [word, kind] : kWords) {
      if (kind == window.kind) return word;
    }
    throw std::logic_error("a window without a word");
  };
  return {read, print};
}

ValueForm<std::string> device_name() {
  auto read = [](const std::string& text) {
    static const std::regex kForm("auto|cpu(,cpu)*|cuda:[0-9]{1,3}(,cuda:[0-9]{1,3})*");
    if (!std::regex_match(text, kForm))
      throw wrong(text, "one of auto, cpu, cuda:0, cuda:1, ..., or several: cuda:0,cuda:1");
    return text;
  };
  return {read, [](const std::string& name) { return name; }};
}

ValueForm<std::string> path_text() {
  const auto as_it_is = [](const std::string& text) { return text; };
  return {as_it_is, as_it_is};
}

ValueForm<uint64_t> byte_budget() {
  return {parse_bytes, [](uint64_t bytes) { return bytes == 0 ? "auto" : bytes_text(bytes); }};
}

ValueForm<uint64_t> byte_multiple(uint64_t unit) {
  auto read = [unit](const std::string& text) {
    const uint64_t bytes = parse_bytes(text);
    if (bytes == 0 || bytes % unit != 0) {
      throw wrong(text, fmt::format("must be a positive multiple of {} bytes, as in 64MiB", unit));
    }
    return bytes;
  };
  return {read, bytes_text};
}

ValueForm<std::vector<std::string>> name_list() { return {read_names, join_names}; }

ValueForm<std::vector<double>> sparsity_list() {
  auto read = [](const std::string& text) {
    std::vector<double> fractions;
    for (const std::string& entry : split_names(text)) fractions.push_back(read_sparsity(entry));
    return fractions;
  };
  return {read, [](const std::vector<double>& fractions) {
            return fmt::format("{}", fmt::join(fractions, ","));
          }};
}

ValueForm<std::vector<SparsityRule>> sparsity_rules() {
  auto read = [](const std::string& text) {
    std::vector<SparsityRule> rules;
    for (const std::string& entry : read_names(text)) rules.push_back(read_rule(entry));
    return rules;
  };
  auto print = [](const std::vector<SparsityRule>& rules) {
    std::vector<std::string> entries;
    entries.reserve(rules.size());
    for (const SparsityRule& rule : rules) {
      entries.push_back(fmt::format("{}={}", rule.pattern, rule.sparsity));
    }
    return join_names(entries);
  };
  return {read, print};
}

}  // namespace coppice
