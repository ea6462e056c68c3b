// One seed of a run, many independent draws.
#pragma once

#include <cstdint>
#include <string>

namespace coppice {

/// The seed of one draw: by (seed, name, index) alone, the same on every machine.
uint64_t seed_of(uint64_t seed, const std::string& name, int index = 0);

}  // namespace coppice
