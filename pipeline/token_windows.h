// Calibration and evaluation text as windows of token ids.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "configs/recipe.h"
#include "stages/model/architecture.h"

namespace coppice {

struct TokenWindows {
  std::vector<int32_t> ids;  // [windows, seqlen], rows end to end
  int64_t seqlen = 0;
  std::string dataset_sha256;
  std::string xxh3_128;  // of ids: part of the fingerprint

  int64_t count() const { return int64_t(ids.size()) / seqlen; }
  std::span<const int32_t> window(int64_t i) const {
    return std::span(ids).subspan(size_t(i * seqlen), size_t(seqlen));
  }
};

/// Where text comes from and where its tokens are kept.
struct TextSource {
  std::filesystem::path text;             // .txt, .jsonl or HDF5 with /input_ids
  std::filesystem::path model_directory;  // its tokenizer.json
  std::filesystem::path cache_directory;  // tokens are kept here, keyed by the hashes of both
};

/// Calibration: documents in file order joined by the first eos id; the first nsamples windows, or
/// nsamples drawn by seed. Text is tokenised by scripts/tokenize_text.py, run by $COPPICE_PYTHON,
/// else the Python known at configure time, else python3. Throws ConfigError (too little text: how
/// many tokens there are and are needed; ids beyond the vocabulary; no tokenizer), IoError.
TokenWindows calibration_windows(const TextSource& source, const CalibrationOptions& options,
                                 const Architecture& architecture);

/// Evaluation: one stream without special tokens, cut in windows of seqlen; at most `max_windows`
/// (0: all whole ones). At least one window must come out. Throws like calibration_windows.
TokenWindows evaluation_windows(const TextSource& source, int64_t seqlen, int64_t max_windows,
                                const Architecture& architecture);

}  // namespace coppice
