#include "pipeline/telemetry/model_card.h"

#include <fmt/format.h>

#include <sstream>

namespace coppice {
namespace {

using nlohmann::json;

// Lines "license: …" and "language: …" of a card's front matter, as they are.
std::string copied_front_matter(const std::string& base_card) {
  std::istringstream lines(base_card);
  std::string line, kept;
  if (!std::getline(lines, line) || line != "---") return kept;
  while (std::getline(lines, line) && line != "---") {
    for (const char* key : {"license:", "license_name:", "license_link:", "language:"}) {
      if (line.starts_with(key) && line.size() > std::string(key).size()) kept += line + "\n";
    }
  }
  return kept;
}

double zeroed_share(const json& report) {
  double sum = 0;
  int count = 0;
  for (const json& block : report.at("blocks")) {
    for (const json& linear : block.at("linears")) {
      sum += linear.at("sparsity").get<double>();
      ++count;
    }
  }
  return count == 0 ? 0 : sum / count;
}

}  // namespace

std::string model_card(const json& report, const std::string& base_card) {
  const json& prune = report.at("recipe").at("prune");
  const json& reconstruct = report.at("recipe").at("reconstruct");
  const std::string base = report.at("model").at("path");
  std::string card = "---\n" + copied_front_matter(base_card);
  card += fmt::format("base_model: {}\ntags:\n- pruned\n- sparse\n- coppice\n---\n\n", base);
  card += fmt::format("# {}, pruned\n\n", base);
  card += fmt::format(
      "{:.1f} % of the weights of the blocks' linears are exactly zero ({} {}). Embeddings, norms "
      "and "
      "the head are not pruned. Reconstruction: {}.\n\n",
      100 * zeroed_share(report), prune.at("method").get<std::string>(),
      prune.at("sparsity_type").get<std::string>(),
      reconstruct.at("window") == "none"
          ? "none"
          : fmt::format(
                "kept weights adapted window by window ({}) to the dense model's activations",
                reconstruct.at("window").get<std::string>()));
  card +=
      "The zeros are stored: this checkpoint is as large as the dense one and no faster in stock "
      "software. It loads like the dense one.\n\n";
  card += fmt::format("Calibration: {} windows of {} tokens.\n\n",
                      report.at("calibration").at("nsamples").get<int>(),
                      report.at("calibration").at("seqlen").get<int>());
  card +=
      fmt::format("Made by coppice {} with\n\n```\n{}\n```\n\n",
                  report.at("version").get<std::string>(), report.at("command").get<std::string>());
  card +=
      "`recipe.yaml` holds every setting and seed, `coppice_report.json` what was done to each "
      "block "
      "and how well each window was reconstructed.\n";
  return card;
}

}  // namespace coppice
