#include "stages/seed.h"

namespace coppice {

// FNV-1a over the bytes of seed, name and index.
uint64_t seed_of(uint64_t seed, const std::string& name, int index) {
  uint64_t hash = 14695981039346656037ull;
  const auto mix_byte = [&](uint64_t byte) { hash = (hash ^ (byte & 0xff)) * 1099511628211ull; };
  for (int shift = 0; shift < 64; shift += 8) mix_byte(seed >> shift);
  for (const char character : name) mix_byte(static_cast<unsigned char>(character));
  for (int shift = 0; shift < 32; shift += 8) mix_byte(static_cast<uint64_t>(index) >> shift);
  return hash;
}

}  // namespace coppice
