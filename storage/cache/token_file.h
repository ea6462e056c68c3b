// Token ids in HDF5: `/input_ids`, int32, [tokens] or [windows, seqlen]; `/lengths` where the
// tokens are sequences of their own lengths, end to end.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

namespace coppice {

struct TokenFile {
  std::vector<int32_t> ids;           // all of them, rows end to end
  int64_t seqlen = 0;                 // of a two-dimensional file; 0 for one stream
  std::vector<int32_t> lengths = {};  // of sequences; sums to the ids. Empty: none are told apart
};

/// Accepts any integer type whose values fit int32. Calls HDF5: the caller holds its serial place.
/// Throws IoError (absent), CorruptionError (not HDF5, no `/input_ids`, not integers, another rank,
/// an id that does not fit, lengths that are none or do not sum to the ids).
TokenFile read_token_file(const std::filesystem::path& path);

/// Written durably. `seqlen` 0 writes one stream. Calls HDF5: the caller holds its serial place.
/// Throws IoError, std::invalid_argument (ids that are no whole number of rows, or of sequences).
void write_token_file(const std::filesystem::path& path, const TokenFile& tokens);

}  // namespace coppice
