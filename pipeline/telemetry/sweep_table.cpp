#include "pipeline/telemetry/sweep_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "pipeline/telemetry/json_text.h"
#include "pipeline/telemetry/progress.h"  // human_seconds
#include "pipeline/telemetry/zeros.h"

namespace coppice {
namespace {

using nlohmann::json;

/// What the blocks of a report add up to.
json sums_of(const json& blocks) {
  Zeros zeros;
  double pruned = 0, reconstructed = 0, seconds = 0;
  size_t windows = 0;
  for (const json& block : blocks) {
    zeros.add(block);
    for (const json& window : block.at("windows")) {
      pruned += number_or_nan(window.at("validation_pruned"));
      reconstructed += number_or_nan(window.at("validation_reconstructed"));
      seconds += window.at("seconds").get<double>();
      ++windows;
    }
  }
  const auto known = [&](double value) { return windows > 0 ? finite_or_null(value) : json(); };
  return {{"sparsity", zeros.share()},
          {"held_out_pruned", known(pruned)},
          {"held_out_reconstructed", known(reconstructed)},
          {"held_out_ratio", pruned > 0 ? known(reconstructed / pruned) : json()},
          {"seconds", seconds}};
}

std::string csv_field(const std::string& text) {
  if (text.find_first_of(",\"\n") == std::string::npos) return text;
  std::string quoted = "\"";
  for (const char letter : text) quoted += letter == '"' ? "\"\"" : std::string(1, letter);
  return quoted + "\"";
}

std::string number(const json& value) {
  return value.is_null() ? "" : fmt::format("{:.6g}", value.get<double>());
}

std::string loss_text(const json& loss) {
  return loss.is_null() ? "overflow" : fmt::format("{:.4f}", loss.get<double>());
}

/// Columns of text, each as wide as its widest.
std::string aligned(const std::vector<std::vector<std::string>>& lines) {
  std::vector<size_t> widths(lines.front().size());
  for (const auto& line : lines) {
    for (size_t i = 0; i < line.size(); ++i) widths[i] = std::max(widths[i], line[i].size());
  }
  std::string text;
  for (const auto& line : lines) {
    text += " ";
    for (size_t i = 0; i < line.size(); ++i) text += fmt::format(" {:<{}}", line[i], widths[i]);
    text.erase(text.find_last_not_of(' ') + 1);
    text += "\n";
  }
  return text;
}

const char* const kColumns[] = {"sparsity",        "held_out_loss",
                                "held_out_pruned", "held_out_reconstructed",
                                "held_out_ratio",  "seconds"};

}  // namespace

SweepRow::SweepRow(std::string name_in, std::vector<std::string> varied_in, const json& blocks)
    : name(std::move(name_in)), varied(std::move(varied_in)), sums(sums_of(blocks)) {}

json sweep_table(const std::vector<std::string>& keys, const std::vector<SweepRow>& rows,
                 const json& judged) {
  const json& losses = judged.at("losses");
  const auto is_better = [](const json& loss, const json& other) {
    return !loss.is_null() && (other.is_null() || loss.get<double>() < other.get<double>());
  };
  const auto best =
      size_t(std::min_element(losses.begin(), losses.end(), is_better) - losses.begin());
  json table = {{"metric", judged.at("metric")},
                {"dense", judged.at("dense")},
                {"keys", keys},
                {"best", losses[best].is_null() ? json() : json(rows[best].name)},
                {"rows", json::array()}};
  for (size_t i = 0; i < rows.size(); ++i) {
    json row = rows[i].sums;
    row["name"] = rows[i].name;
    row["varied"] = rows[i].varied;
    row["held_out_loss"] = losses[i];
    row["best"] = i == best && !losses[i].is_null();
    table["rows"].push_back(std::move(row));
  }
  return table;
}

std::string sweep_csv(const json& table) {
  std::string csv = "name";
  for (const json& key : table.at("keys")) csv += "," + csv_field(key);
  for (const char* column : kColumns) csv += fmt::format(",{}", column);
  csv += ",best\n";
  for (const json& row : table.at("rows")) {
    csv += csv_field(row.at("name"));
    for (const json& value : row.at("varied")) csv += "," + csv_field(value);
    for (const char* column : kColumns) csv += "," + number(row.at(column));
    csv += row.at("best").get<bool>() ? ",1\n" : ",0\n";
  }
  return csv;
}

std::string sweep_text(const json& table) {
  std::vector<std::vector<std::string>> lines = {{""}};
  for (const json& key : table.at("keys")) {
    const std::string path = key;
    lines.front().push_back(path.substr(path.find('.') + 1));
  }
  for (const char* column : {"zeros", "held-out loss", "of pruned windows", "time"}) {
    lines.front().emplace_back(column);
  }
  for (const json& row : table.at("rows")) {
    std::vector<std::string>& line = lines.emplace_back();
    line.emplace_back(row.at("best").get<bool>() ? "*" : "");
    for (const json& value : row.at("varied")) line.push_back(value);
    const json& ratio = row.at("held_out_ratio");
    line.push_back(fmt::format("{:.1f} %", 100 * row.at("sparsity").get<double>()));
    line.push_back(loss_text(row.at("held_out_loss")));
    line.push_back(ratio.is_null() ? "-" : fmt::format("{:.1f} %", 100 * ratio.get<double>()));
    line.push_back(human_seconds(row.at("seconds").get<double>()));
  }
  return aligned(lines) + fmt::format("  dense model: {} ({}, held-out calibration text)\n",
                                      loss_text(table.at("dense")),
                                      table.at("metric").get<std::string>());
}

}  // namespace coppice
