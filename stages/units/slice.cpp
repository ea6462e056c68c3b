#include "stages/units/slice.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

#include "stages/layer_similarity.h"  // num_removed_layers
#include "stages/units/targeted_units.h"
#include "stages/units/unit_scores.h"

namespace coppice {
namespace {

using Kind = UnitLayout::Kind;

/// How many units of one kind the blocks, and experts, keep.
struct Widths {
  UnitLayout units;  // one of them: all have as many
  std::vector<int64_t> kept;
};

std::map<Kind, Widths> widths_of(const Architecture& architecture, const PruneOptions& options) {
  std::map<Kind, Widths> widths;
  for (int half = 0; half < 2 * architecture.num_blocks; ++half) {
    for (const auto& [units, sparsity] : targeted_units(architecture, half, options)) {
      Widths& of_kind = widths.try_emplace(units.kind, Widths{units, {}}).first->second;
      of_kind.kept.push_back(num_kept_units(sparsity, units, options.head_units));
    }
  }
  return widths;
}

/// The width that all have, or the refusal that names the nearest one they could have.
int64_t one_width(const Widths& widths, HeadUnits how) {
  const auto [least, most] = std::ranges::minmax(widths.kept);
  if (least == most) return most;
  const auto of_all = static_cast<double>(widths.units.count);
  const double mean = std::accumulate(widths.kept.begin(), widths.kept.end(), 0.0) /
                      static_cast<double>(widths.kept.size());
  const double sparsity = std::round(1e4 * (1 - mean / of_all)) / 1e4;  // as it is printed
  const std::string kind = name_of(widths.units.kind);
  throw std::invalid_argument(fmt::format(
      "blocks keep from {} to {} of {} {}, and one config.json has one number for all: the nearest "
      "uniform width is {}, by prune.{}: {} with nothing that tells blocks apart; or write the "
      "output masked",
      least, most, widths.units.count, kind == "ffn" ? "neurons" : kind,
      num_kept_units(sparsity, widths.units, how), kind == "ffn" ? "ffn_sparsity" : "head_sparsity",
      sparsity));
}

void require_key(const Architecture& architecture, const std::string& size) {
  if (architecture.size_keys.contains(size)) return;
  throw std::invalid_argument(
      fmt::format("config.json of a {} model has no key for {}; write the output masked",
                  architecture.family, size));
}

void slice_heads(int64_t kept, const PruneOptions& options, Architecture& architecture) {
  if (kept == architecture.heads) return;
  const int64_t sharing = architecture.heads / architecture.kv_heads;
  if (sharing > 1 && options.head_units == HeadUnits::kQuery) {
    throw std::invalid_argument(
        "query heads that go one by one leave key-value heads with different numbers of them; "
        "choose head_units balanced or group, or write the output masked");
  }
  for (const char* size : {"heads", "kv_heads", "head_dim"}) require_key(architecture, size);
  if (architecture.units.at("heads").divides_hidden && architecture.hidden % kept != 0) {
    throw std::invalid_argument(fmt::format(
        "{} heads would be left, and a {} model wants a number of them that divides its {} hidden "
        "units, whatever their width; choose another head_sparsity, or write the output masked",
        kept, architecture.family, architecture.hidden));
  }
  if (sharing == 1) architecture.kv_heads = kept;
  if (sharing > 1 && options.head_units == HeadUnits::kGroup) {
    architecture.kv_heads = kept / sharing;
  }
  architecture.heads = kept;
}

void slice_ffn(int64_t kept, Architecture& architecture) {
  if (kept == architecture.ffn) return;
  require_key(architecture, "ffn");
  architecture.ffn = kept;
}

/// Which of them go is found later: their number is known.
Architecture with_fewer_blocks(const Architecture& architecture, const PruneOptions& options) {
  require_key(architecture, "blocks");
  for (const NormSpec& norm : architecture.norms) {
    if (!norm.role.starts_with("after_")) continue;
    throw std::invalid_argument(fmt::format(
        "{} comes after its layer: it stays where that is zero, and would go with a block that is "
        "cut out; write the output masked",
        norm.name));
  }
  Architecture sliced = architecture;
  sliced.num_blocks -= num_removed_layers(options, static_cast<int>(architecture.num_blocks));
  return sliced;
}

}  // namespace

Architecture sliced_architecture(const Architecture& architecture, const PruneOptions& options) {
  if (options.method == PruneMethod::kSimilarity) return with_fewer_blocks(architecture, options);
  Architecture sliced = architecture;
  for (const auto& [kind, widths] : widths_of(architecture, options)) {
    const int64_t kept = one_width(widths, options.head_units);
    if (kind == Kind::kHeads) slice_heads(kept, options, sliced);
    if (kind == Kind::kFfn) slice_ffn(kept, sliced);
  }
  resize_units(sliced);
  return sliced;
}

std::map<std::string, int64_t> sliced_sizes(const Architecture& dense, const Architecture& sliced) {
  std::map<std::string, int64_t> sizes;
  if (sliced.num_blocks != dense.num_blocks) {
    sizes[dense.size_keys.at("blocks")] = sliced.num_blocks;
  }
  if (sliced.ffn != dense.ffn) sizes[dense.size_keys.at("ffn")] = sliced.ffn;
  if (sliced.heads != dense.heads) {  // what followed from their number no longer does
    sizes[dense.size_keys.at("heads")] = sliced.heads;
    sizes[dense.size_keys.at("kv_heads")] = sliced.kv_heads;
    sizes[dense.size_keys.at("head_dim")] = sliced.head_dim;
  }
  return sizes;
}

std::map<std::string, Slice> slices_of(const Architecture& dense, int block,
                                       const std::map<std::string, at::Tensor>& kept_units) {
  std::map<std::string, Slice> slices;
  for (const Half half : {Half::kAttention, Half::kMlp}) {
    for (const UnitLayout& units : unit_layouts(dense, half)) {
      const auto name = [&](const LinearSpec& spec) { return in_block(dense, block, spec.name); };
      const auto found = kept_units.find(name(*units.consumer));
      if (found == kept_units.end()) continue;
      const at::Tensor rows = kept_rows(found->second, units).nonzero().view(-1);
      const at::Tensor shared = kept_shared_rows(found->second, units).nonzero().view(-1);
      const auto cut_rows = [&](const LinearSpec& spec, const at::Tensor& index) {
        slices[name(spec) + ".weight"] = {0, index};
        if (spec.has_bias) slices[name(spec) + ".bias"] = {0, index};
      };
      for (const LinearSpec* producer : units.producers) cut_rows(*producer, rows);
      for (const LinearSpec* linear : units.shared) cut_rows(*linear, shared);
      slices[name(*units.consumer) + ".weight"] = {1, rows};
    }
  }
  return slices;
}

}  // namespace coppice
