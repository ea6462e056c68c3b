#include "pipeline/token_windows.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <spawn.h>
#include <sys/wait.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <optional>
#include <random>
#include <utility>

#include "configs/errors.h"            // ConfigError
#include "storage/cache/token_file.h"  // read_token_shape, read_token_ranges
#include "storage/errors.h"            // IoError
#include "storage/io/content_hash.h"
#include "storage/io/file.h"  // sha256_file, hash_file

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
  // We ignore SIGPIPE (see main.cpp); what we start shall not.
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t defaults;
  sigemptyset(&defaults);
  sigaddset(&defaults, SIGPIPE);
  posix_spawnattr_setsigdefault(&attributes, &defaults);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF);
  pid_t child = 0;
  const int error = posix_spawnp(&child, argv[0], nullptr, &attributes, argv.data(), environ);
  posix_spawnattr_destroy(&attributes);
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

/// Tokens on disk, and whose they are.
struct Tokens {
  fs::path text;  // as it was given: what complaints name
  fs::path file;
  TokenShape shape;
};

Tokens find_tokens(const TextSource& source, const std::vector<std::string>& mode,
                   const std::string& mode_name) {
  std::error_code error;
  if (!fs::is_regular_file(source.text, error)) {
    throw IoError("read the text", source.text.string(), error ? error.value() : ENOENT);
  }
  fs::path file = is_token_file(source.text) ? source.text : tokenize(source, mode, mode_name);
  TokenShape shape = read_token_shape(file);
  return {source.text, std::move(file), std::move(shape)};
}

/// Reads the ids of `ranges`. Every id of the file must be one of the vocabulary, used or not:
/// tokens of another tokenizer are wrong as a whole. A damaged file is told before that.
std::vector<int32_t> read_ids(const Tokens& tokens, std::span<const TokenRange> ranges,
                              const Architecture& architecture) {
  std::optional<std::pair<int64_t, int32_t>> unknown;  // number, id
  const auto check = [&](int64_t first, std::span<const int32_t> ids) {
    if (unknown) return;
    const auto found =
        std::ranges::find_if(ids, [&](int32_t id) { return id < 0 || id >= architecture.vocab; });
    if (found != ids.end()) unknown = {first + (found - ids.begin()), *found};
  };
  std::vector<int32_t> ids = read_token_ranges(tokens.file, ranges, check);
  if (!unknown) return ids;
  throw ConfigError(
      fmt::format("{}: token {} is {}, the model's vocabulary has {}: tokens of "
                  "another tokenizer?",
                  tokens.text.string(), unknown->first, unknown->second, architecture.vocab));
}

// Windows that somebody cut are taken as they are: other lengths would run across their borders.
void check_seqlen(const Tokens& tokens, int64_t seqlen, const char* key) {
  if (tokens.shape.seqlen == 0 || tokens.shape.seqlen == seqlen) return;
  throw ConfigError(fmt::format("{}: {}: {} holds windows of {} tokens", key, seqlen,
                                tokens.text.string(), tokens.shape.seqlen));
}

TokenWindows finished(TokenWindows windows, const TextSource& source) {
  windows.dataset_sha256 = sha256_file(source.text);
  ContentHash hash;
  hash.add(std::as_bytes(std::span(windows.ids)));
  for (const std::vector<int>& of_window : windows.lengths) {
    hash.add(std::as_bytes(std::span(of_window)));
  }
  windows.xxh3_128 = hash.hex();
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

Tokens find_sequences(const TextSource& source, int64_t seqlen) {
  return find_tokens(source, {"--sequences", std::to_string(seqlen)},
                     fmt::format("sequences-{}", seqlen));
}

// Each cut at seqlen.
std::vector<TokenRange> ranges_of(const Tokens& tokens, std::span<const int64_t> chosen,
                                  int64_t seqlen) {
  const std::vector<int32_t>& lengths = tokens.shape.lengths;
  std::vector<int64_t> first(lengths.size() + 1, 0);
  std::partial_sum(lengths.begin(), lengths.end(), first.begin() + 1, std::plus<int64_t>());
  std::vector<TokenRange> ranges;
  ranges.reserve(chosen.size());
  for (const int64_t sequence : chosen) {
    const auto i = size_t(sequence);
    ranges.push_back({first[i], std::min<int64_t>(lengths[i], seqlen)});
  }
  return ranges;
}

// In their order; a window is closed when the next one does not fit.
TokenWindows packed(const Tokens& tokens, std::span<const int64_t> chosen, int64_t seqlen,
                    const Architecture& architecture) {
  const std::vector<TokenRange> ranges = ranges_of(tokens, chosen, seqlen);
  TokenWindows windows;
  windows.seqlen = seqlen;
  int64_t room = 0;
  for (const TokenRange& sequence : ranges) {
    if (sequence.count > room) {
      windows.lengths.emplace_back();
      room = seqlen;
    }
    windows.lengths.back().push_back(int(sequence.count));
    room -= sequence.count;
  }
  const std::vector<int32_t> ids = read_ids(tokens, ranges, architecture);
  windows.ids.resize(windows.lengths.size() * size_t(seqlen));
  auto next = ids.begin();
  for (int64_t window = 0; window < windows.count(); ++window) {
    const int64_t tokens_of_window = std::ssize(windows.window(window));
    std::copy_n(next, tokens_of_window, windows.ids.begin() + window * seqlen);
    next += tokens_of_window;
  }
  return windows;
}

TokenWindows calibration_sequences(const Tokens& tokens, const CalibrationOptions& options,
                                   const Architecture& architecture) {
  const auto available = int64_t(tokens.shape.lengths.size());
  if (available < options.nsamples) {
    throw ConfigError(fmt::format(
        "{}: too little calibration text: {} sequences, one a line, nsamples asks for {}; give "
        "more text or fewer samples",
        tokens.text.string(), available, options.nsamples));
  }
  return packed(tokens, chosen_windows(available, options), options.seqlen, architecture);
}

// ---- one stream -------------------------------------------------------------------------------

TokenWindows calibration_stream(const Tokens& tokens, const CalibrationOptions& options,
                                const Architecture& architecture) {
  check_seqlen(tokens, options.seqlen, "calibration.seqlen");
  const int64_t available = tokens.shape.num_ids / options.seqlen;
  if (available < options.nsamples) {
    throw ConfigError(
        fmt::format("{}: too little calibration text: {} tokens make {} windows of {}, nsamples "
                    "asks for {} ({} "
                    "tokens); give more text or fewer samples",
                    tokens.text.string(), tokens.shape.num_ids, available, options.seqlen,
                    options.nsamples, int64_t(options.nsamples) * options.seqlen));
  }
  std::vector<TokenRange> ranges;
  for (const int64_t window : chosen_windows(available, options)) {
    ranges.push_back({window * options.seqlen, options.seqlen});
  }
  TokenWindows windows;
  windows.seqlen = options.seqlen;
  windows.ids = read_ids(tokens, ranges, architecture);
  return windows;
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
  const Tokens tokens = find_sequences(source, seqlen);
  std::vector<int64_t> all(tokens.shape.lengths.size());
  std::iota(all.begin(), all.end(), 0);
  return finished(packed(tokens, all, seqlen, architecture), source);
}

TokenWindows calibration_windows(const TextSource& source, const CalibrationOptions& options,
                                 const Architecture& architecture) {
  const bool are_sequences = reads_sequences(architecture);
  const int64_t eos = architecture.eos_token_ids.empty() ? -1 : architecture.eos_token_ids[0];
  std::vector<std::string> mode;
  if (eos >= 0) mode = {"--join-token", std::to_string(eos)};
  const Tokens tokens = are_sequences ? find_sequences(source, options.seqlen)
                                      : find_tokens(source, mode, fmt::format("joined-{}", eos));
  if (tokens.shape.lengths.empty()) {
    return finished(calibration_stream(tokens, options, architecture), source);
  }
  if (are_sequences) return finished(calibration_sequences(tokens, options, architecture), source);
  throw ConfigError(fmt::format(
      "{}: holds /lengths, sequences for an encoder; a {} model reads one stream, without them",
      source.text.string(), architecture.family));
}

TokenWindows evaluation_windows(const TextSource& source, int64_t seqlen, int64_t max_windows,
                                const Architecture& architecture) {
  const Tokens tokens = find_tokens(source, {"--raw-stream"}, "stream");
  check_seqlen(tokens, seqlen, "--seqlen");
  int64_t count = tokens.shape.num_ids / seqlen;
  if (count == 0) {
    throw ConfigError(
        fmt::format("{}: too little text: {} tokens, one window needs {}; use a smaller "
                    "--seqlen or more text",
                    source.text.string(), tokens.shape.num_ids, seqlen));
  }
  if (max_windows > 0) count = std::min(count, max_windows);
  const TokenRange used{0, count * seqlen};
  TokenWindows windows;
  windows.seqlen = seqlen;
  windows.ids = read_ids(tokens, {&used, 1}, architecture);
  return finished(std::move(windows), source);
}

}  // namespace coppice
