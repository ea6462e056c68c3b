// coppice inspect: what is in this checkpoint? Reads headers only.
#include <fmt/format.h>

#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>

#include "pipeline/commands/arguments.h"
#include "pipeline/commands/command.h"
#include "pipeline/source_model.h"
#include "pipeline/telemetry/json_text.h"

namespace coppice {
namespace {

using nlohmann::json;

struct Census {
  uint64_t parameters = 0, bytes = 0, block_parameters = 0, prunable = 0;
  std::map<std::string, uint64_t> bytes_by_dtype;
};

Census count(const SourceModel& model) {
  Census census;
  census.parameters = count_parameters(model);
  for (const SafetensorsHeader& header : model.checkpoint.headers()) {
    for (const TensorInfo& tensor : header.tensors) {
      census.bytes += tensor.bytes;
      census.bytes_by_dtype[tensor.dtype] += tensor.bytes;
    }
  }
  for (const NamedShape& tensor : block_tensors(model.architecture, 0)) {
    census.block_parameters += uint64_t(model.checkpoint.tensor(tensor.name).num_elements());
  }
  for (const LinearSpec& linear : model.architecture.linears) {
    census.prunable += uint64_t(linear.out * linear.in * model.architecture.num_blocks);
  }
  return census;
}

json as_json(const SourceModel& model, const Census& census) {
  const Architecture& a = model.architecture;
  json shards = json::array();
  for (const auto& file : model.checkpoint.files()) {
    shards.push_back({{"name", file->path().filename().string()}, {"bytes", file->bytes()}});
  }
  return {{"architecture", a.family},
          {"dtype", a.dtype},
          {"blocks", a.num_blocks},
          {"hidden", a.hidden},
          {"ffn", a.ffn},
          {"heads", a.heads},
          {"kv_heads", a.kv_heads},
          {"head_dim", a.head_dim},
          {"fp8_scale_block", {a.scale_block.rows, a.scale_block.columns}},
          {"experts", a.experts.count},
          {"experts_per_token", a.experts.per_token},
          {"vocab", a.vocab},
          {"tied_embeddings", a.tied},
          {"parameters", census.parameters},
          {"parameters_per_block", census.block_parameters},
          {"prunable_parameters", census.prunable},
          {"bytes", census.bytes},
          {"bytes_by_dtype", census.bytes_by_dtype},
          {"shards", shards},
          {"unknown_tensors", model.unknown_tensors}};
}

void print(const SourceModel& model, const Census& census) {
  const Architecture& a = model.architecture;
  fmt::print("{}\n", model.checkpoint.directory().string());
  fmt::print("  family      {} ({} blocks, hidden {}, ffn {}, {} heads of {}, {} kv heads)\n",
             a.family, a.num_blocks, a.hidden, a.ffn, a.heads, a.head_dim, a.kv_heads);
  fmt::print("  vocabulary  {} tokens, {}\n", a.vocab,
             a.head.empty() ? "no head"
             : a.tied       ? "embeddings tied to the head"
                            : "embeddings and head apart");
  fmt::print("  parameters  {:.1f} M, of which prunable {:.1f} M; one block {:.2f} M\n",
             double(census.parameters) / 1e6, double(census.prunable) / 1e6,
             double(census.block_parameters) / 1e6);
  for (const auto& [dtype, bytes] : census.bytes_by_dtype) {
    fmt::print("  {:<10}  {}\n", dtype, human_bytes(double(bytes)));
  }
  fmt::print("  shards      {}, {} in all\n", model.checkpoint.files().size(),
             human_bytes(double(census.bytes)));
  if (a.scale_block.is_there()) {
    fmt::print("  FP8         with a scale for {} x {} weights; written as bf16\n",
               a.scale_block.rows, a.scale_block.columns);
  }
  if (a.experts.count > 0) {
    fmt::print("  experts     {}, of which {} a token; router {} (never pruned)\n", a.experts.count,
               a.experts.per_token, a.experts.router);
  }
  for (const LinearSpec& linear : a.linears) {
    if (linear.expert > 0) continue;  // they are alike
    fmt::print("    {:<6} {:<24} {} x {}{}\n", linear.role, linear.name, linear.out, linear.in,
               linear.has_bias ? " + bias" : "");
  }
  if (!model.unknown_tensors.empty()) {
    fmt::print("  {} tensors nobody knows; they would be copied through, e.g. {}\n",
               model.unknown_tensors.size(), model.unknown_tensors.front());
  }
}

}  // namespace

int inspect_command(const std::vector<std::string>& arguments, const std::string&) {
  CLI::App app("Says what is in a checkpoint; reads headers only.", "inspect");
  std::filesystem::path directory, architecture;
  bool wants_json = false;
  app.add_option("model", directory, "Directory of a Hugging Face checkpoint")->required();
  app.add_option("--architecture", architecture, "A model description beside the known ones");
  app.add_flag("--json", wants_json, "Print JSON to stdout");
  if (!parse_arguments(app, arguments)) return 0;
  const SourceModel model = open_model(directory, architecture);
  const Census census = count(model);
  if (wants_json) {
    fmt::print("{}\n", json_text(as_json(model, census), 2));
  } else {
    print(model, census);
  }
  return 0;
}

}  // namespace coppice
