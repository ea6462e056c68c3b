#include "configs/fp8_json.h"

#include <fmt/format.h>

namespace coppice {
namespace {

const char* const kUndoIt =
    "quantised weights of this kind cannot be pruned; load the model with transformers, dequantise "
    "it, and save it in bf16";

}  // namespace

ScaleBlock scale_block_of(const ConfigJson& config) {
  const std::optional<ConfigJson> quantization = config.object("quantization_config");
  if (!quantization) return {};
  if (quantization->text("quant_method") != "fp8")
    throw quantization->wrong("quant_method", kUndoIt);
  // Absent ones are what is wanted; "static" would mean scales of activations in the checkpoint.
  for (const auto& [key, wanted] : {std::pair("fmt", "e4m3"), {"activation_scheme", "dynamic"}}) {
    if (quantization->has(key) && quantization->text(key) != wanted) {
      throw quantization->wrong(key, fmt::format("not read by this version; only {} is", wanted));
    }
  }
  const std::vector<int64_t> size = quantization->whole_list("weight_block_size");
  if (size.size() == 2 && size[0] >= 1 && size[1] >= 1) return {size[0], size[1]};
  throw quantization->wrong("weight_block_size",
                            "must be two whole numbers, rows and columns that share a scale; FP8 "
                            "with a scale for a whole weight is not read by this version");
}

}  // namespace coppice
