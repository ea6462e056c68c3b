// Recipes of every kind, and the whole work of a job with a tiny span by one of them, on any
// device.
#pragma once

#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "stages/stage_table.h"
#include "tests/support/move_to.h"
#include "tests/support/tiny_moe.h"

namespace coppice::testing {

struct RecipeCase {
  std::string name;
  std::function<void(PruneOptions&, ReconstructOptions&)> change;
  bool has_experts = false;
  bool is_chaotic = false;  // one bit decides which weight goes, and that all others of its row
};

inline void PrintTo(const RecipeCase& which, std::ostream* out) { *out << which.name; }

/// The whole of what a job does with a span: dense forward, then every window by every stage.
inline void work(TinySpan& span, const PruneOptions& prune, const ReconstructOptions& reconstruct) {
  Variant& variant = span.variant();
  variant.prune = prune;
  variant.reconstruct = reconstruct;
  variant.masks.clear();
  variant.adapted.clear();
  span.boundaries.wanted = {1, 2};
  span.boundaries.propagated[0] = span.boundaries.held[0];
  if (const auto forward = forward_stage(prune, reconstruct)) {
    WindowJob job{span.job, span.job.halves, nullptr};
    forward->run(job);
  }
  const auto stages = adapt_stages(prune, reconstruct);
  for (const HalfRange& halves : windows_of(span.job.halves, reconstruct.window)) {
    WindowJob job{span.job, halves, &variant};
    for (const auto& stage : stages) stage->run(job);
  }
}

inline std::unique_ptr<TinySpan> span_for(const RecipeCase& which, at::Device device, int windows,
                                          at::ScalarType dtype = at::kFloat) {
  auto span = std::make_unique<TinySpan>(which.has_experts ? tiny_moe() : tiny_llama(), windows,
                                         dtype, dtype);
  move(*span, device);
  return span;
}

inline void work(TinySpan& span, const RecipeCase& which) {
  PruneOptions prune;
  ReconstructOptions reconstruct;
  reconstruct.lr = 1e-3;
  reconstruct.validation_fraction = 0.25;
  which.change(prune, reconstruct);
  work(span, prune, reconstruct);
}

inline std::unique_ptr<TinySpan> worked(const RecipeCase& which, at::Device device, int windows,
                                        at::ScalarType dtype = at::kFloat) {
  auto span = span_for(which, device, windows, dtype);
  work(*span, which);
  return span;
}

inline RecipeCase of_method(std::string name, PruneMethod method) {
  return {std::move(name), [method](PruneOptions& prune, ReconstructOptions&) {
            prune.method = method;
            prune.ffn_sparsity = prune.head_sparsity = 0.5;
          }};
}

inline RecipeCase of_solver(std::string name, PruneMethod method, Solver solver) {
  return {std::move(name), [=](PruneOptions& prune, ReconstructOptions& reconstruct) {
            prune.method = method;
            prune.ffn_sparsity = prune.head_sparsity = 0.5;
            reconstruct.solver = solver;
          }};
}

inline RecipeCase of_window(std::string name, WindowKind window, Propagation propagation,
                            Loss loss) {
  return {std::move(name), [=](PruneOptions&, ReconstructOptions& reconstruct) {
            reconstruct.window = {window};
            reconstruct.propagation = propagation;
            reconstruct.loss = loss;
          }};
}

inline std::vector<RecipeCase> recipe_cases() {
  return {of_method("magnitude", PruneMethod::kMagnitude),
          of_method("random", PruneMethod::kRandom),
          of_method("wanda", PruneMethod::kWanda),
          of_method("ria", PruneMethod::kRia),
          RecipeCase{.name = "sparsegpt",
                     .change = of_method("", PruneMethod::kSparseGpt).change,
                     .is_chaotic = true},
          of_method("random_sp", PruneMethod::kRandomSp),
          of_method("magnitude_sp", PruneMethod::kMagnitudeSp),
          of_method("wanda_sp", PruneMethod::kWandaSp),
          of_method("flap", PruneMethod::kFlap),
          RecipeCase{"two_of_four",
                     [](PruneOptions& prune, ReconstructOptions&) {
                       prune.pattern = {2, 4};
                       prune.ignore.emplace_back("re:.*down_proj.*");  // 33 columns
                     }},
          of_solver("least_squares", PruneMethod::kWanda, Solver::kLeastSquares),
          of_solver("least_squares_adamw", PruneMethod::kWanda, Solver::kLeastSquaresAdamW),
          of_solver("bias", PruneMethod::kWandaSp, Solver::kBias),
          of_solver("liar", PruneMethod::kWandaSp, Solver::kLiar),
          of_solver("liar_adamw", PruneMethod::kFlap, Solver::kLiarAdamW),
          of_window("only_pruned", WindowKind::kNone, Propagation::kDense, Loss::kMse),
          of_window("matrices", WindowKind::kMatrix, Propagation::kDense, Loss::kMse),
          of_window("blocks", WindowKind::kBlock, Propagation::kDense, Loss::kMseNormalized),
          of_window("sparse", WindowKind::kHalfBlock, Propagation::kSparse, Loss::kCosine),
          of_window("mixed", WindowKind::kBlock, Propagation::kMixed, Loss::kMse),
          RecipeCase{"experts", [](PruneOptions&, ReconstructOptions&) {}, true},
          RecipeCase{"similarity", [](PruneOptions& prune, ReconstructOptions& reconstruct) {
                       prune.method = PruneMethod::kSimilarity;
                       prune.removed_halves = {1};
                       reconstruct.propagation = Propagation::kMixed;
                     }}};
}

}  // namespace coppice::testing
