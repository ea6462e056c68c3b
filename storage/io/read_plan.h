// Turns the tensors wanted for one block into few large aligned reads.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "storage/io/extent.h"

namespace coppice {

/// Where a wanted extent lies once its reads have arrived.
struct Placement {
  uint64_t slot_offset = 0;
  uint64_t bytes = 0;
};

/// One aligned read into the slot. `required_bytes` < `bytes` only at the end of a file.
struct PlannedRead {
  uint32_t file = 0;
  uint64_t offset = 0;
  uint64_t bytes = 0;
  uint64_t required_bytes = 0;
  uint64_t slot_offset = 0;
};

struct ReadPlan {
  std::vector<PlannedRead> reads;     // ascending by slot_offset
  std::vector<Placement> placements;  // one per wanted extent, in the order wanted
  uint64_t slot_bytes = 0;            // memory the plan needs, a multiple of the alignment
};

struct ReadPlanOptions {
  uint32_t alignment = 4096;                    // of file offsets, lengths and slot offsets
  uint64_t max_read_bytes = uint64_t{4} << 20;  // longer runs are split here
  uint64_t max_gap_bytes = uint64_t{64} << 10;  // unwanted bytes read through rather than skipped
};

/// Merges extents that touch, overlap or lie within `max_gap_bytes` into runs, aligns each run and
/// splits it. Extents must lie inside their file. Empty extents get a placement and no read.
/// `file_bytes[i]` is the size of file i. Pure function.
/// Throws std::invalid_argument if an extent leaves its file.
ReadPlan plan_reads(std::span<const Extent> wanted, std::span<const uint64_t> file_bytes,
                    const ReadPlanOptions& options = {});

/// Splits reads of more than `max_bytes`, a multiple of the plan's alignment, into some of as many
/// and a rest.
void split_reads(ReadPlan& plan, uint64_t max_bytes);

/// Cuts the reads into consecutive groups of at most `slab_bytes` each (a single larger read stays
/// alone). Returns index ranges [first, last) into `plan.reads`.
struct SlabRange {
  uint32_t first = 0;
  uint32_t last = 0;
  uint64_t bytes = 0;
};
std::vector<SlabRange> cut_into_slabs(const ReadPlan& plan, uint64_t slab_bytes);

/// Bytes that lie at slot offset `from` where they are read, and at `to` where they are used.
struct Move {
  uint64_t from = 0;
  uint64_t to = 0;
  uint64_t bytes = 0;
};

/// For bytes that are copied on from where they are read: places the wanted extents one after the
/// other, each at a multiple of `alignment`, as a GPU wants its operands (a file may have them
/// anywhere). Placements and `slot_bytes` are then those of the packed slot; reads stay as they
/// are. Returns how the bytes get there, ascending by `from`.
std::vector<Move> pack(ReadPlan& plan, uint64_t alignment);

/// What of the moves starts from the reads of `range`: the parts that lie in them, with `from`
/// counted from where the first of them begins.
std::vector<Move> moves_of(const ReadPlan& plan, const SlabRange& range,
                           std::span<const Move> moves);

}  // namespace coppice
