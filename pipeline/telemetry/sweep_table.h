// sweep.csv, sweep_report.json and the table of a sweep on a terminal: every recipe in a line.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace coppice {

/// One recipe of a sweep, as its report tells it.
struct SweepRow {
  /// `varied`: one a key. Of `blocks`, of its run_report(), the sums are kept: with many linears a
  /// report is large, and a sweep has one a recipe.
  SweepRow(std::string name, std::vector<std::string> varied, const nlohmann::json& blocks);

  std::string name;
  std::vector<std::string> varied;
  nlohmann::json sums;
};

/// `rows` by recipe: {name, varied, sparsity, held_out_loss, held_out_pruned,
/// held_out_reconstructed, held_out_ratio, seconds, best}. `judged` as PrunePass records it. The
/// loss is of the whole model on the held-out windows, and alone decides which is best (of equal
/// ones the first); null of a model that overflows on them, which is worse than any other, and
/// never the best. Pruned and reconstructed are sums of the windows' own held-out losses, null
/// where nothing was reconstructed or one overflowed, and comparable only between recipes of one
/// window and loss.
nlohmann::json sweep_table(const std::vector<std::string>& keys, const std::vector<SweepRow>& rows,
                           const nlohmann::json& judged);

/// name, a column a key, sparsity, held_out_loss, …, best (1 or 0). Text with commas is quoted.
std::string sweep_csv(const nlohmann::json& table);

/// For a person: the best marked with a star, the dense model's loss below.
std::string sweep_text(const nlohmann::json& table);

}  // namespace coppice
