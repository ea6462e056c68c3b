// How well an encoder's sentence embeddings agree with people's judgement, and with a reference's.
#pragma once

#include <filesystem>
#include <optional>

#include "pipeline/forward_run.h"

namespace coppice {

struct SimilarityRunOptions : ForwardRunOptions {
  std::filesystem::path data;  // see read_sentence_pairs
  int64_t seqlen = 256;        // a sentence is cut there; no more than the model has positions
};

/// Cosines of a pair's embeddings beside the scores.
struct Agreement {
  double spearman = 0;
  double pearson = 0;
};

struct Fidelity {
  double mean = 0;  // of the cosines between both models' embeddings of a sentence
  double least = 0;
};

struct SimilarityResult {
  Agreement agreement;
  std::optional<Agreement> reference;
  std::optional<Fidelity> fidelity;  // where there is a reference
  int64_t pairs = 0;
  int64_t tokens = 0;
  ForwardRunTotals totals;
};

/// The embedding of a sentence is the mean of its last hidden states, special tokens included, as
/// Sentence-Transformers pools. Holds an embedding a sentence and model. Throws any of the
/// program's errors.
SimilarityResult similarity_run(const SimilarityRunOptions& options);

}  // namespace coppice
