#include "pipeline/telemetry/model_card.h"

#include <fmt/format.h>

#include <sstream>

#include "pipeline/telemetry/zeros.h"

namespace coppice {
namespace {

using nlohmann::json;

// Licence and language of a card's front matter, as they are: a key's line and what belongs to it
// (indented lines, items of a list).
std::string copied_front_matter(const std::string& base_card) {
  std::istringstream lines(base_card);
  std::string line, kept;
  if (!std::getline(lines, line) || line != "---") return kept;
  bool is_copied = false;
  while (std::getline(lines, line) && line != "---") {
    if (line.find_first_of(" -") != 0) {
      const std::string key = line.substr(0, line.find(':'));
      is_copied =
          key == "license" || key == "license_name" || key == "license_link" || key == "language";
    }
    if (is_copied) kept += line + "\n";
  }
  return kept;
}

std::string window_text(const json& window) {
  return window.is_number() ? window.dump() + " blocks at once" : window.get<std::string>();
}

std::string pattern_text(const json& prune) {
  const std::string method = prune.at("method");
  if (method == "similarity") return "whole layers";
  const bool has_units = method.ends_with("_sp") || method == "flap" || method == "snip";
  return has_units ? "whole neurons and heads" : prune.at("sparsity_type").get<std::string>();
}

Zeros zeros_of(const json& report) {
  Zeros zeros;
  for (const json& block : report.at("blocks")) zeros.add(block);
  return zeros;
}

bool is_sliced(const json& prune) { return prune.value("structured_output", "masked") == "sliced"; }

enum class Form { kDense, kSparse };

std::string front_matter(const std::string& base_card, const std::string& base, Form form) {
  return "---\n" + copied_front_matter(base_card) +
         fmt::format("base_model: {}\ntags:\n- pruned\n{}- coppice\n---\n\n", base,
                     form == Form::kSparse ? "- sparse\n" : "");
}

// The report tells of tensors as they were before the cut: what it counts as zeros is not there.
std::string removed_text(const json& prune, const Zeros& zeros) {
  const std::string how =
      fmt::format("{} {}", prune.at("method").get<std::string>(), pattern_text(prune));
  if (is_sliced(prune) && prune.at("method") == "similarity") {
    return fmt::format(
        "{} matrices went with the blocks that were removed ({}). Embeddings, the head and the "
        "other blocks are not pruned.",
        zeros.matrices, how);
  }
  return fmt::format(
      "{:.1f} % of the weights of the {} pruned matrices, averaged over them, are {} ({}). "
      "Embeddings, norms and the head are not pruned.",
      100 * zeros.share(), zeros.matrices, is_sliced(prune) ? "cut out" : "exactly zero", how);
}

constexpr const char* kStoredZeros =
    "The zeros are stored: this checkpoint is as large as the dense one and no faster in stock "
    "software. It loads like the dense one.\n\n";

constexpr const char* kCutOut =
    "Removed neurons and heads are cut out: matrices and checkpoint are smaller, `config.json` "
    "states the new sizes, and "
    "stock software loads it like the dense one.\n\n";

constexpr const char* kBlocksCutOut =
    "Removed blocks are cut out, norms and all: the checkpoint is smaller, the others are numbered "
    "anew, `config.json` states how many there are, and stock software loads it like the dense "
    "one.\n\n";

std::string form_text(const json& prune) {
  if (!is_sliced(prune)) return kStoredZeros;
  return prune.at("method") == "similarity" ? kBlocksCutOut : kCutOut;
}

std::string calibration_text(const json& calibration) {
  const auto samples = calibration.at("nsamples").get<int64_t>();
  const auto seqlen = calibration.at("seqlen").get<int64_t>();
  const auto tokens = calibration.at("tokens").get<int64_t>();
  if (tokens == samples * seqlen) {
    return fmt::format("Calibration: {} windows of {} tokens.\n\n", samples, seqlen);
  }
  return fmt::format("Calibration: {} sequences of at most {} tokens, {} tokens together.\n\n",
                     samples, seqlen, tokens);
}

std::string made_by(const json& report) {
  return fmt::format("Made by coppice {} with\n\n```\n{}\n```\n\n",
                     report.at("version").get<std::string>(),
                     report.at("command").get<std::string>());
}

double share_of_zeros(const json& retrain) {
  return retrain.at("zeros").get<double>() / retrain.at("weights").get<double>();
}

// What was cut out left no zeros, but some weights happen to be one.
Form form_of(const json& retrain) {
  return share_of_zeros(retrain) < 0.0005 ? Form::kDense : Form::kSparse;
}

std::string weights_text(const json& retrain) {
  const auto matrices = retrain.at("matrices").get<int64_t>();
  if (form_of(retrain) == Form::kDense) {
    return fmt::format("The {} linears of the blocks are dense,", matrices);
  }
  return fmt::format("{:.1f} % of the weights of the {} linears of the blocks are exactly zero,",
                     100 * share_of_zeros(retrain), matrices);
}

std::string training_text(const json& retrain, const json& recipe) {
  const bool is_sparse = form_of(retrain) == Form::kSparse;
  return fmt::format(
      "{} were retrained on {} tokens of text by low-rank adapters (rank {}, alpha {}), merged {}: "
      "held-out loss {:.4f} nats a token, {:.4f} before.\n\n",
      is_sparse ? "The others" : "They", retrain.at("tokens_seen").get<int64_t>(),
      recipe.at("rank").get<int>(), recipe.at("lora_alpha").get<double>(),
      is_sparse ? "under the mask of the zeros" : "into them",
      retrain.at("validation_retrained").get<double>(),
      retrain.at("validation_pruned").get<double>());
}

}  // namespace

std::string model_card(const json& report, const std::string& base_card) {
  const json& prune = report.at("recipe").at("prune");
  const json& reconstruct = report.at("recipe").at("reconstruct");
  const std::string base = report.at("model").at("path");
  std::string card = front_matter(base_card, base, is_sliced(prune) ? Form::kDense : Form::kSparse);
  card += fmt::format("# {}, pruned\n\n", base);
  card += fmt::format(
      "{} Reconstruction: {}.\n\n", removed_text(prune, zeros_of(report)),
      reconstruct.at("window") == "none"
          ? "none"
          : fmt::format(
                "kept weights adapted window by window ({}, {}) to the dense model's activations",
                window_text(reconstruct.at("window")),
                reconstruct.at("solver").get<std::string>()));
  card += form_text(prune);
  if (const json& model = report.at("model"); model.contains("note")) {
    card += fmt::format("Of {}: {}.\n\n", base, model.at("note").get<std::string>());
  }
  card += calibration_text(report.at("calibration"));
  card += made_by(report);
  card +=
      "`recipe.yaml` holds every setting and seed, `coppice_report.json` what was done to each "
      "block and how well each window was reconstructed.\n";
  return card;
}

std::string retrained_card(const json& report, const std::string& base_card) {
  const json& retrain = report.at("retrain");
  const std::string base = report.at("model").at("path");
  const Form form = form_of(retrain);
  std::string card = front_matter(base_card, base, form);
  card += fmt::format("# {}, retrained\n\n", base);
  card += fmt::format("{} as they were in {}, whose own card says how it was pruned. ",
                      weights_text(retrain), base);
  card += retrain.at("kept") == "pruned"
              ? fmt::format("Retraining brought nothing ({}): these are its weights.\n\n",
                            retrain.at("fallback").get<std::string>())
              : training_text(retrain, report.at("recipe").at("retrain"));
  card += form == Form::kSparse
              ? kStoredZeros
              : fmt::format("This checkpoint is as large as {} and loads like it.\n\n", base);
  card += made_by(report);
  card += "`coppice_report.json` holds every setting and seed, and the losses of every epoch.\n";
  return card;
}

}  // namespace coppice
