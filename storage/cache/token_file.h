// Token ids in HDF5: `/input_ids`, int32, [tokens] or [windows, seqlen]; `/lengths` where the
// tokens are sequences of their own lengths, end to end.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <vector>

namespace coppice {

/// What a token file holds, but for the ids.
struct TokenShape {
  int64_t num_ids = 0;
  int64_t seqlen = 0;                 // of a two-dimensional file; 0 for one stream
  std::vector<int32_t> lengths = {};  // of sequences; sums to num_ids. Empty: none are told apart
};

/// Reads dimensions and lengths. Calls HDF5: the caller holds its serial place. Throws IoError
/// (absent), CorruptionError (not HDF5, no `/input_ids`, not integers, another rank, lengths that
/// are none or do not sum to the ids).
TokenShape read_token_shape(const std::filesystem::path& path);

/// `count` ids of a file from number `first` on, its rows end to end.
struct TokenRange {
  int64_t first = 0;
  int64_t count = 0;
};

/// Told of some ids, the first of which is number `first` of the file.
using TokenCheck = std::function<void(int64_t first, std::span<const int32_t> ids)>;

/// Passes once over all ids of a file, a few MiB at a time: `check`, where there is one, is told of
/// every id in the order of the file. Returns those of `ranges`, which may lie in any order and
/// overlap, in their order end to end. Accepts any integer type whose values fit int32. Calls HDF5:
/// the caller holds its serial place. Throws like read_token_shape, CorruptionError (an id that
/// does not fit; at the end: another checksum than was recorded), std::out_of_range (a range beyond
/// the ids), and what `check` throws.
std::vector<int32_t> read_token_ranges(const std::filesystem::path& path,
                                       std::span<const TokenRange> ranges,
                                       const TokenCheck& check = {});

/// A whole file, to be written.
struct TokenFile {
  std::vector<int32_t> ids;           // all of them, rows end to end
  int64_t seqlen = 0;                 // of a two-dimensional file; 0 for one stream
  std::vector<int32_t> lengths = {};  // of sequences; sums to the ids. Empty: none are told apart
};

/// Written durably. `seqlen` 0 writes one stream. Calls HDF5: the caller holds its serial place.
/// Throws IoError, std::invalid_argument (ids that are no whole number of rows, or of sequences).
void write_token_file(const std::filesystem::path& path, const TokenFile& tokens);

}  // namespace coppice
