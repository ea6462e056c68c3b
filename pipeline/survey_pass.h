// The pass before the run: outliers, scores and similarities of every block, rates tried on some.
#pragma once

#include <nlohmann/json.hpp>
#include <vector>

#include "pipeline/block_pass.h"
#include "pipeline/output_directory.h"
#include "pipeline/survey.h"

namespace coppice {

/// Adapts the windows of the trial blocks once a rate and forgets the result; everywhere else only
/// the dense forward runs. Sparsities of trials are the recipe's own, owl or not. Records a
/// `survey` of every span under its first block:
/// {"outlier_ratios": by recipe, by block of the span (null: nothing is targeted there),
/// "unit_scores": by recipe, {consumer: step_scores()} of the span, "similarities": by block of the
/// span, {attention, mlp, block}, where they are wanted, "trials": [{recipe, lr, log_errors}], one
/// a window. The dense model's activations are read, whatever the recipes' propagation.
class SurveyPass final : public BlockPass {
 public:
  /// One trial: which of the run's recipes, with which rate.
  struct Trial {
    size_t recipe = 0;
    double lr = 0;
  };

  /// `layout` tells where a block's tensors lie in an output buffer; nothing is written to it.
  SurveyPass(PassContext& context, const std::vector<Recipe>& recipes,
             const OutputDirectory& layout);

 protected:
  bool is_recorded(const ModelSpan& span) const override;
  bool is_to_adapt(const ModelSpan& span) const override;
  int num_steps(const ModelSpan& span) const override;
  const Stage* dense_stage(const ModelSpan& span) const override;
  std::vector<Variant> variants_of(GraphSpan& span) override;
  bool is_wanted(HalfRange window) const override;
  void begin(GraphSpan& span, size_t recipe, Variant& variant) override;
  void end(GraphSpan& span, size_t recipe, Variant& variant) override;
  void leave(GraphSpan& span, SpanJob& job) override;
  void write(GraphSpan&) override {}
  void record(GraphSpan& span) override;

 private:
  bool has_trials(int first_block, int last_block) const;
  nlohmann::json unit_scores(const SpanJob& job) const;

  const std::vector<Recipe> open_recipes_;
  std::vector<Trial> trials_;  // by index of the pass's recipes
  const OutputDirectory& layout_;
  std::unique_ptr<Stage> score_statistics_;  // null: nobody asks
  nlohmann::json tried_ = nlohmann::json::array();
  std::map<int, nlohmann::json> found_;  // by first block; the device's thread puts
  std::mutex found_mutex_;
};

}  // namespace coppice
