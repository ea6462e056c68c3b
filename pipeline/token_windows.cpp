#include "pipeline/token_windows.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <spawn.h>
#include <sys/wait.h>
#include <xxhash.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <random>

#include "configs/errors.h"            // ConfigError
#include "storage/cache/token_file.h"  // read_token_file
#include "storage/errors.h"            // IoError
#include "storage/io/file.h"           // sha256_file, hash_file

extern char** environ;

namespace coppice {
namespace {

namespace fs = std::filesystem;

std::string python() {
  if (const char* chosen = std::getenv("COPPICE_PYTHON")) return chosen;
  return fs::exists(COPPICE_PYTHON) ? COPPICE_PYTHON : "python3";
}

int run_program(const std::vector<std::string>& arguments) {
  std::vector<char*> argv;
  argv.reserve(arguments.size() + 1);
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  pid_t child = 0;
  const int error = posix_spawnp(&child, argv[0], nullptr, nullptr, argv.data(), environ);
  if (error != 0) throw IoError("start the tokenizer", arguments[0], error);
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

fs::path tokenize(const TextSource& source, const std::vector<std::string>& mode,
                  const std::string& mode_name) {
  const fs::path tokenizer = source.model_directory / "tokenizer.json";
  if (!fs::exists(tokenizer)) {
    throw ConfigError(
        fmt::format("{}: no tokenizer.json, so the text {} cannot be tokenised; put one "
                    "there, or give tokens as HDF5 with /input_ids",
                    source.model_directory.string(), source.text.string()));
  }
  make_directories(source.cache_directory);
  const fs::path tokens = source.cache_directory /
                          fmt::format("tokens-{:.12}-{:.12}-{}.h5", hash_file(source.text).xxh3_128,
                                      hash_file(tokenizer).xxh3_128, mode_name);
  if (fs::exists(tokens)) return tokens;
  const fs::path script = fs::path(COPPICE_SCRIPTS_DIR) / "tokenize_text.py";
  if (!fs::exists(script)) {
    throw ConfigError(fmt::format("no tokenizer script at {}; give tokens as HDF5 with /input_ids",
                                  script.string()));
  }
  std::vector<std::string> command = {python(),           script.string(), "--tokenizer",
                                      tokenizer.string(), "--input",       source.text.string(),
                                      "--output",         tokens.string()};
  command.insert(command.end(), mode.begin(), mode.end());
  const int exit = run_program(command);
  if (exit == 0) return tokens;
  const std::string message =
      fmt::format("{}: the tokenizer ended with {} (its message is above); command: {}",
                  source.text.string(), exit, fmt::join(command, " "));
  throw ConfigError(message);
}

bool is_token_file(const fs::path& path) {
  const std::string extension = path.extension();
  return extension == ".h5" || extension == ".hdf5";
}

TokenFile load(const TextSource& source, const std::vector<std::string>& mode,
               const std::string& mode_name) {
  std::error_code error;
  if (!fs::is_regular_file(source.text, error)) {
    throw IoError("read the text", source.text.string(), error ? error.value() : ENOENT);
  }
  return read_token_file(is_token_file(source.text) ? source.text
                                                    : tokenize(source, mode, mode_name));
}

void check_ids(const TokenFile& tokens, const Architecture& architecture, const fs::path& path) {
  for (size_t i = 0; i < tokens.ids.size(); ++i) {
    if (tokens.ids[i] < 0 || tokens.ids[i] >= architecture.vocab) {
      throw ConfigError(
          fmt::format("{}: token {} is {}, the model's vocabulary has {}: tokens of "
                      "another tokenizer?",
                      path.string(), i, tokens.ids[i], architecture.vocab));
    }
  }
}

// Windows that somebody cut are taken as they are: other lengths would run across their borders.
void check_seqlen(const TokenFile& tokens, int64_t seqlen, const char* key, const fs::path& path) {
  if (tokens.seqlen == 0 || tokens.seqlen == seqlen) return;
  throw ConfigError(fmt::format("{}: {}: {} holds windows of {} tokens", key, seqlen, path.string(),
                                tokens.seqlen));
}

TokenWindows finished(TokenWindows windows, const TextSource& source) {
  windows.dataset_sha256 = sha256_file(source.text);
  std::vector<int32_t> all = windows.ids;
  for (const std::vector<int>& of_window : windows.lengths) {
    all.insert(all.end(), of_window.begin(), of_window.end());
  }
  const XXH128_hash_t hash = XXH3_128bits(all.data(), all.size() * sizeof(all[0]));
  windows.xxh3_128 = fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
  return windows;
}

// `count` of `available` window numbers: the first, or drawn without replacement. Fisher-Yates
// spelt out, because the result of std::shuffle is the implementation's own.
std::vector<int64_t> chosen_windows(int64_t available, const CalibrationOptions& options) {
  std::vector<int64_t> order(static_cast<size_t>(available));
  std::iota(order.begin(), order.end(), 0);
  if (options.sample_windows) {
    std::mt19937_64 random(options.seed);
    for (int i = 0; i < options.nsamples; ++i) {
      std::swap(order[i], order[i + random() % (available - i)]);
    }
  }
  order.resize(options.nsamples);
  return order;
}

// ---- sequences of their own lengths -----------------------------------------------------------

TokenFile load_sequences(const TextSource& source, int64_t seqlen) {
  return load(source, {"--sequences", std::to_string(seqlen)}, fmt::format("sequences-{}", seqlen));
}

// In their order; a window is closed when the next one does not fit.
TokenWindows packed(const TokenFile& tokens, std::span<const int64_t> chosen, int64_t seqlen) {
  std::vector<size_t> first(tokens.lengths.size() + 1, 0);
  std::partial_sum(tokens.lengths.begin(), tokens.lengths.end(), first.begin() + 1);
  TokenWindows windows;
  windows.seqlen = seqlen;
  int64_t room = 0;
  for (const int64_t sequence : chosen) {
    const int64_t length = std::min<int64_t>(tokens.lengths[size_t(sequence)], seqlen);
    if (length > room) {
      windows.lengths.emplace_back();
      windows.ids.resize(windows.lengths.size() * size_t(seqlen));
      room = seqlen;
    }
    windows.lengths.back().push_back(int(length));
    std::copy_n(tokens.ids.begin() + int64_t(first[size_t(sequence)]), length,
                windows.ids.end() - room);
    room -= length;
  }
  return windows;
}

TokenWindows calibration_sequences(const TextSource& source, const CalibrationOptions& options,
                                   const TokenFile& tokens) {
  const auto available = int64_t(tokens.lengths.size());
  if (available < options.nsamples) {
    throw ConfigError(fmt::format(
        "{}: too little calibration text: {} sequences, one a line, nsamples asks for {}; give "
        "more text or fewer samples",
        source.text.string(), available, options.nsamples));
  }
  return packed(tokens, chosen_windows(available, options), options.seqlen);
}

}  // namespace

int64_t TokenWindows::num_sequences() const {
  if (lengths.empty()) return count();
  return std::accumulate(
      lengths.begin(), lengths.end(), int64_t{0},
      [](int64_t sum, const auto& of_window) { return sum + std::ssize(of_window); });
}

int64_t TokenWindows::num_tokens() const {
  int64_t sum = 0;
  for (int64_t i = 0; i < count(); ++i) sum += std::ssize(window(i));
  return sum;
}

bool reads_sequences(const Architecture& architecture) {
  return architecture.mask == AttentionMask::kBidirectional;
}

TokenWindows sequence_windows(const TextSource& source, int64_t seqlen,
                              const Architecture& architecture) {
  const TokenFile tokens = load_sequences(source, seqlen);
  check_ids(tokens, architecture, source.text);
  std::vector<int64_t> all(tokens.lengths.size());
  std::iota(all.begin(), all.end(), 0);
  return finished(packed(tokens, all, seqlen), source);
}

TokenWindows calibration_windows(const TextSource& source, const CalibrationOptions& options,
                                 const Architecture& architecture) {
  const bool are_sequences = reads_sequences(architecture);
  const int64_t eos = architecture.eos_token_ids.empty() ? -1 : architecture.eos_token_ids[0];
  std::vector<std::string> mode;
  if (eos >= 0) mode = {"--join-token", std::to_string(eos)};
  const TokenFile tokens = are_sequences ? load_sequences(source, options.seqlen)
                                         : load(source, mode, fmt::format("joined-{}", eos));
  check_ids(tokens, architecture, source.text);
  if (!tokens.lengths.empty()) {
    if (are_sequences) return finished(calibration_sequences(source, options, tokens), source);
    throw ConfigError(fmt::format(
        "{}: holds /lengths, sequences for an encoder; a {} model reads one stream, without them",
        source.text.string(), architecture.family));
  }
  check_seqlen(tokens, options.seqlen, "calibration.seqlen", source.text);
  const int64_t available = int64_t(tokens.ids.size()) / options.seqlen;
  if (available < options.nsamples) {
    throw ConfigError(
        fmt::format("{}: too little calibration text: {} tokens make {} windows of {}, nsamples "
                    "asks for {} ({} "
                    "tokens); give more text or fewer samples",
                    source.text.string(), tokens.ids.size(), available, options.seqlen,
                    options.nsamples, int64_t(options.nsamples) * options.seqlen));
  }
  TokenWindows windows;
  windows.seqlen = options.seqlen;
  for (const int64_t window : chosen_windows(available, options)) {
    const auto first = tokens.ids.begin() + window * options.seqlen;
    windows.ids.insert(windows.ids.end(), first, first + options.seqlen);
  }
  return finished(std::move(windows), source);
}

TokenWindows evaluation_windows(const TextSource& source, int64_t seqlen, int64_t max_windows,
                                const Architecture& architecture) {
  TokenFile tokens = load(source, {"--raw-stream"}, "stream");
  check_ids(tokens, architecture, source.text);
  check_seqlen(tokens, seqlen, "--seqlen", source.text);
  int64_t count = int64_t(tokens.ids.size()) / seqlen;
  if (count == 0) {
    throw ConfigError(
        fmt::format("{}: too little text: {} tokens, one window needs {}; use a smaller "
                    "--seqlen or more text",
                    source.text.string(), tokens.ids.size(), seqlen));
  }
  if (max_windows > 0) count = std::min(count, max_windows);
  TokenWindows windows;
  windows.seqlen = seqlen;
  tokens.ids.resize(static_cast<size_t>(count * seqlen));
  windows.ids = std::move(tokens.ids);
  return finished(std::move(windows), source);
}

}  // namespace coppice
