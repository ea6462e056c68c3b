// Plans reads in three steps: sort what is wanted, merge neighbours into runs, cut runs into reads.
#include "storage/io/read_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <stdexcept>

namespace coppice {
namespace {

/// Wanted extents that one stretch of a file covers; `begin` and `end` are aligned.
struct Run {
  uint32_t file = 0;
  uint64_t begin = 0;
  uint64_t end = 0;
  uint64_t wanted_end = 0;
};

uint64_t align_down(uint64_t value, uint64_t alignment) { return value - value % alignment; }
uint64_t align_up(uint64_t value, uint64_t alignment) {
  return align_down(value + alignment - 1, alignment);
}

void check_options(const ReadPlanOptions& options) {
  if (options.alignment == 0 || options.max_read_bytes < options.alignment) {
    throw std::invalid_argument(
        fmt::format("read plan: expected alignment > 0 and max_read_bytes >= alignment, found "
                    "alignment {} and max_read_bytes {}",
                    options.alignment, options.max_read_bytes));
  }
}

void check_inside_file(const Extent& extent, std::span<const uint64_t> file_bytes) {
  if (extent.file >= file_bytes.size()) {
    throw std::invalid_argument(fmt::format("read plan: extent of file {}, but there are {} files",
                                            extent.file, file_bytes.size()));
  }
  const uint64_t size = file_bytes[extent.file];
  if (extent.offset > size || extent.bytes > size - extent.offset) {
    throw std::invalid_argument(
        fmt::format("read plan: extent of {} bytes at offset {} leaves file {} of {} bytes",
                    extent.bytes, extent.offset, extent.file, size));
  }
}

/// Indices of the extents that want bytes, by file and offset.
std::vector<size_t> in_file_order(std::span<const Extent> wanted) {
  std::vector<size_t> order(wanted.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::erase_if(order, [&](size_t i) { return wanted[i].bytes == 0; });
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return std::pair(wanted[a].file, wanted[a].offset) <
           std::pair(wanted[b].file, wanted[b].offset);
  });
  return order;
}

/// Whether the run should read on to `next` rather than end. Runs that would share a block merge
/// whatever the gap allowed, else the block would be read twice.
bool joins(const Run& run, const Extent& next, const ReadPlanOptions& options) {
  if (run.file != next.file) return false;
  if (align_down(next.offset, options.alignment) <= run.end) return true;
  return next.offset - run.wanted_end <= options.max_gap_bytes;
}

void append_reads(const Run& run, uint64_t file_bytes, const ReadPlanOptions& options,
                  ReadPlan& plan) {
  const uint64_t piece = align_down(options.max_read_bytes, options.alignment);
  for (uint64_t offset = run.begin; offset < run.end; offset += piece) {
    const uint64_t bytes = std::min(piece, run.end - offset);
    plan.reads.push_back({.file = run.file,
                          .offset = offset,
                          .bytes = bytes,
                          .required_bytes = std::min(bytes, file_bytes - offset),
                          .slot_offset = plan.slot_bytes});
    plan.slot_bytes += bytes;
  }
}

}  // namespace

ReadPlan plan_reads(std::span<const Extent> wanted, std::span<const uint64_t> file_bytes,
                    const ReadPlanOptions& options) {
  check_options(options);
  for (const Extent& extent : wanted) check_inside_file(extent, file_bytes);

  ReadPlan plan;
  plan.placements.resize(wanted.size());
  const std::vector<size_t> order = in_file_order(wanted);
  for (size_t first = 0; first < order.size();) {
    const Extent& head = wanted[order[first]];
    Run run{.file = head.file, .begin = align_down(head.offset, options.alignment)};
    run.end = run.begin;
    size_t last = first;
    for (; last < order.size() && (last == first || joins(run, wanted[order[last]], options));
         ++last) {
      const Extent& extent = wanted[order[last]];
      run.wanted_end = std::max(run.wanted_end, extent.offset + extent.bytes);
      run.end = align_up(run.wanted_end, options.alignment);
      // The run starts where the slot ends so far, so every byte keeps its distance from the start.
      plan.placements[order[last]] = {plan.slot_bytes + (extent.offset - run.begin), extent.bytes};
    }
    append_reads(run, file_bytes[run.file], options, plan);
    first = last;
  }
  return plan;
}

void split_reads(ReadPlan& plan, uint64_t max_bytes) {
  if (max_bytes == 0) throw std::invalid_argument("split_reads: into reads of 0 bytes");
  std::vector<PlannedRead> pieces;
  for (const PlannedRead& read : plan.reads) {
    for (uint64_t at = 0; at < read.bytes; at += max_bytes) {
      PlannedRead piece = read;
      piece.offset += at;
      piece.slot_offset += at;
      piece.bytes = std::min(max_bytes, read.bytes - at);
      piece.required_bytes = std::min(piece.bytes, read.required_bytes - at);
      pieces.push_back(piece);
    }
  }
  plan.reads = std::move(pieces);
}

std::vector<Move> pack(ReadPlan& plan, uint64_t alignment) {
  if (alignment == 0) throw std::invalid_argument("pack: to multiples of 0");
  std::vector<Move> moves;
  plan.slot_bytes = 0;
  for (Placement& placement : plan.placements) {
    const uint64_t to = align_up(plan.slot_bytes, alignment);
    if (placement.bytes > 0) moves.push_back({placement.slot_offset, to, placement.bytes});
    placement.slot_offset = to;
    plan.slot_bytes = to + placement.bytes;
  }
  std::sort(moves.begin(), moves.end(),
            [](const Move& a, const Move& b) { return a.from < b.from; });
  return moves;
}

std::vector<Move> moves_of(const ReadPlan& plan, const SlabRange& range,
                           std::span<const Move> moves) {
  const PlannedRead& last_read = plan.reads[range.last - 1];
  const uint64_t begin = plan.reads[range.first].slot_offset;
  const uint64_t end = last_read.slot_offset + last_read.bytes;
  std::vector<Move> parts;
  for (const Move& move : moves) {
    const uint64_t first = std::max(begin, move.from);
    const uint64_t last = std::min(end, move.from + move.bytes);
    if (first >= last) continue;
    parts.push_back({first - begin, move.to + (first - move.from), last - first});
  }
  return parts;
}

std::vector<SlabRange> cut_into_slabs(const ReadPlan& plan, uint64_t slab_bytes) {
  std::vector<SlabRange> slabs;
  for (uint32_t i = 0; i < plan.reads.size(); ++i) {
    const uint64_t bytes = plan.reads[i].bytes;
    const bool fits = !slabs.empty() && slabs.back().bytes <= slab_bytes &&
                      bytes <= slab_bytes - slabs.back().bytes;
    if (!fits) slabs.push_back({.first = i, .last = i, .bytes = 0});
    slabs.back().last = i + 1;
    slabs.back().bytes += bytes;
  }
  return slabs;
}

}  // namespace coppice
