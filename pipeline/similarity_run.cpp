#include "pipeline/similarity_run.h"

#include <ATen/ops/cosine_similarity.h>
#include <ATen/ops/stack.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <numeric>

#include "configs/errors.h"  // ConfigError
#include "pipeline/correlation.h"
#include "pipeline/sentence_pairs.h"
#include "stages/finite.h"
#include "storage/io/file.h"  // write_file

namespace coppice {
namespace {

namespace fs = std::filesystem;

void require_encoder(const fs::path& directory, const Architecture& architecture) {
  if (reads_sequences(architecture) && architecture.final_norm.empty()) return;
  throw ConfigError(fmt::format(
      "--task stsb: {}: a {} model; the mean of the last hidden states is compared, of an encoder "
      "without a norm behind its blocks",
      directory.string(), architecture.family));
}

TokenWindows tokens_of(const SentencePairs& pairs, const SimilarityRunOptions& options,
                       int64_t seqlen, const fs::path& cache, const Architecture& architecture) {
  make_directories(cache);
  const fs::path lines = cache / "sentences.txt";
  write_file(lines, fmt::format("{}\n", fmt::join(pairs.sentences, "\n")));
  TokenWindows tokens = sequence_windows({lines, options.model, cache}, seqlen, architecture);
  if (tokens.num_sequences() == std::ssize(pairs.sentences)) return tokens;
  throw ConfigError(fmt::format(
      "{}: {} sentences, the tokenizer saw {}: one of them has a line end inside, or no token",
      options.data.string(), pairs.sentences.size(), tokens.num_sequences()));
}

/// [sentences, hidden] fp32 on the CPU. On the device's thread.
at::Tensor embeddings(ForwardPass& pass, const TokenWindows& tokens) {
  ActivationSource& hidden = pass.last_hidden();
  std::vector<int> order(size_t(tokens.count()));
  std::iota(order.begin(), order.end(), 0);
  hidden.announce(order);
  std::vector<at::Tensor> means;
  for (const int window : order) {
    const MicroBatch batch = hidden.read({&window, 1});
    int64_t first = 0;
    for (const int length : batch.lengths) {
      means.push_back(
          batch.hidden.narrow(0, first, length).mean({0}, /*keepdim=*/false, at::kFloat).cpu());
      first += length;
    }
  }
  at::Tensor all = at::stack(means);
  require_finite("embeddings of the sentences", all);
  return all;
}

/// Of rows, in double precision.
std::vector<double> cosines(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor values = at::cosine_similarity(a.to(at::kDouble), b.to(at::kDouble), 1);
  const double* const first = values.const_data_ptr<double>();
  return {first, first + values.size(0)};
}

Agreement agreement(const at::Tensor& embedded, const std::vector<double>& scores) {
  const at::Tensor pairs = embedded.view({-1, 2, embedded.size(1)});
  const std::vector<double> likeness = cosines(pairs.select(1, 0), pairs.select(1, 1));
  return {spearman(likeness, scores), pearson(likeness, scores)};
}

}  // namespace

SimilarityResult similarity_run(const SimilarityRunOptions& options) {
  const SentencePairs pairs = read_sentence_pairs(options.data);
  int64_t seqlen = options.seqlen;
  ForwardRun run(
      options,
      [&](const fs::path& directory, const Architecture& architecture) {
        require_encoder(directory, architecture);
        seqlen = std::min(seqlen, architecture.max_positions);
      },
      [&](const fs::path& cache, const Architecture& architecture) {
        return tokens_of(pairs, options, seqlen, cache, architecture);
      });
  run.stream({}, {});
  SimilarityResult result;
  run.on_device([&] {
    const at::Tensor own = embeddings(run.model(), run.tokens());
    result.agreement = agreement(own, pairs.scores);
    if (run.reference() == nullptr) return;
    const at::Tensor reference = embeddings(*run.reference(), run.tokens());
    result.reference = agreement(reference, pairs.scores);
    const std::vector<double> fidelity = cosines(own, reference);
    result.fidelity = {
        std::accumulate(fidelity.begin(), fidelity.end(), 0.0) / double(fidelity.size()),
        *std::min_element(fidelity.begin(), fidelity.end())};
  });
  result.pairs = std::ssize(pairs.scores);
  result.tokens = run.tokens().num_tokens();
  result.totals = run.totals();
  return result;
}

}  // namespace coppice
