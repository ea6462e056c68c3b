// Calibration and evaluation text as windows of token ids.
#pragma once

#include <cstdint>
#include <filesystem>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "configs/recipe.h"
#include "stages/model/architecture.h"

namespace coppice {

/// Rows of a fixed number of tokens. Each is one sequence that fills it, or holds some sequences
/// end to end: what an encoder reads, sentences mostly, is much shorter than a row that is worth a
/// pass.
struct TokenWindows {
  std::vector<int32_t> ids;  // [windows, seqlen], rows end to end; zeros where a row is not full
  int64_t seqlen = 0;
  std::vector<std::vector<int>> lengths = {};  // of a window's sequences; empty: each fills its row
  std::string dataset_sha256;
  std::string xxh3_128;  // of ids: part of the fingerprint

  int64_t count() const { return int64_t(ids.size()) / seqlen; }
  /// Its tokens, as many as there are.
  std::span<const int32_t> window(int64_t i) const {
    const std::vector<int> of_window = lengths_of(i);
    const int64_t tokens = std::accumulate(of_window.begin(), of_window.end(), int64_t{0});
    return std::span(ids).subspan(size_t(i * seqlen), size_t(tokens));
  }
  std::vector<int> lengths_of(int64_t i) const {
    return lengths.empty() ? std::vector<int>{int(seqlen)} : lengths[size_t(i)];
  }
  int64_t num_sequences() const;
  int64_t num_tokens() const;
};

/// Whether a model reads sequences of their own lengths, each whole, instead of one long text.
bool reads_sequences(const Architecture& architecture);

/// Where text comes from and where its tokens are kept.
struct TextSource {
  std::filesystem::path text;             // .txt, .jsonl or HDF5 with /input_ids
  std::filesystem::path model_directory;  // its tokenizer.json
  std::filesystem::path cache_directory;  // tokens are kept here, keyed by the hashes of both
};

/// Calibration: documents in file order joined by the first eos id; the first nsamples windows, or
/// nsamples drawn by seed. For a model that reads sequences: every line of a text, or record of a
/// .jsonl, is one, with the tokenizer's special tokens, cut at seqlen; nsamples of them in windows.
/// Text is tokenised by scripts/tokenize_text.py, run by $COPPICE_PYTHON, else the Python known at
/// configure time, else python3. Throws ConfigError (too little text: how many tokens there are and
/// are needed; ids beyond the vocabulary; no tokenizer), IoError.
TokenWindows calibration_windows(const TextSource& source, const CalibrationOptions& options,
                                 const Architecture& architecture);

/// Evaluation: one stream without special tokens, cut in windows of seqlen; at most `max_windows`
/// (0: all whole ones). At least one window must come out. Throws like calibration_windows.
TokenWindows evaluation_windows(const TextSource& source, int64_t seqlen, int64_t max_windows,
                                const Architecture& architecture);

/// Every line of a text as one sequence, in order, cut at seqlen, in windows of that many tokens.
/// Throws like calibration_windows.
TokenWindows sequence_windows(const TextSource& source, int64_t seqlen,
                              const Architecture& architecture);

}  // namespace coppice
