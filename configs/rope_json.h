// The rotary positions that a config.json asks for.
#pragma once

#include <cstdint>

#include "configs/config_json.h"
#include "stages/model/architecture.h"

namespace coppice {

/// Reads both spellings, rope_theta with rope_scaling and rope_parameters; where both are there,
/// rope_scaling wins, as in transformers 5. `max_positions` are the model's: what some kinds take
/// for the original ones. Throws ConfigError for an unknown kind, a parameter that is absent or
/// senseless, ropes that differ by kind of block, and rotation of a part of head_dim.
Rope rope_of(const ConfigJson& config, int64_t max_positions);

}  // namespace coppice
