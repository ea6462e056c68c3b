// How config.json says that weights are stored as FP8.
#pragma once

#include "configs/config_json.h"
#include "stages/model/architecture.h"

namespace coppice {

/// Reads `quantization_config`; none of it: no block. Throws ConfigError, with the key path, for
/// every other kind of quantisation, which would have to be undone before, and for block sizes that
/// are no two whole numbers of at least 1.
ScaleBlock scale_block_of(const ConfigJson& config);

}  // namespace coppice
