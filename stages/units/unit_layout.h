// Where the units of a block lie: which rows make a neuron or a head, which columns read it.
#pragma once

#include <string>
#include <vector>

#include "stages/model/architecture.h"

namespace coppice {

/// The units that one linear reads: neurons of the MLP or of an expert, or heads. Unit u is rows
/// [u · size, (u + 1) · size) of every producer and the same columns of the consumer. Heads share:
/// unit u reads rows [v · size, (v + 1) · size) of the shared linears, v = u / per_shared.
struct UnitLayout {
  enum class Kind { kFfn, kHeads } kind = Kind::kFfn;
  const LinearSpec* consumer = nullptr;
  std::vector<const LinearSpec*> producers;
  std::vector<const LinearSpec*> shared;
  int64_t count = 0;
  int64_t size = 1;
  int64_t per_shared = 1;
};

/// Of one half; one layout an expert, where there are some. The result points into `architecture`.
/// Throws std::invalid_argument, naming linears and shapes, where units do not fit them.
std::vector<UnitLayout> unit_layouts(const Architecture& architecture, Half half);

/// Whether it reads the units of some kind.
bool reads_units(const Architecture& architecture, const LinearSpec& linear);

/// Gives producers, shared linears and consumers the shapes that the architecture's ffn, heads,
/// kv_heads and head_dim say.
void resize_units(Architecture& architecture);

/// "ffn", "heads": as in a recipe.
std::string name_of(UnitLayout::Kind kind);

}  // namespace coppice
