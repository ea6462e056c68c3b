// A model cut into the spans that stream through the graph: rows of the embedding, blocks, chunks
// of the head.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "pipeline/mask_source.h"
#include "pipeline/source_model.h"
#include "pipeline/token_windows.h"
#include "storage/io/read_plan.h"

namespace coppice {

enum class SpanKind { kEmbed, kBlock, kHead };

struct ModelSpan {
  SpanKind kind = SpanKind::kBlock;
  std::string name;  // "block 17", "blocks 4-5", "embedding of windows 0-11", "head rows 0-8191"
  int first_block = 0, last_block = 0;  // kBlock: [first, last)
  int64_t first = 0, last = 0;          // kEmbed: windows; kHead: vocabulary rows; [first, last)
};

/// What a span reads, and under which name each placement of the plan is found.
struct SpanReads {
  ReadPlan plan;
  std::map<std::string, size_t> placement_of;       // tensor name → index into plan.placements
  std::map<std::string, size_t> mask_placement_of;  // kBlock: name of the linear → index
  std::map<int32_t, size_t> placement_of_token;     // kEmbed: token id → index
};

/// Plans spans so that each fits a slot. Pure arithmetic on headers and token ids.
class ModelSpans {
 public:
  /// `slot_bytes` is what the largest span of blocks needs, or what the rows of any window of that
  /// length can need if that is more: known from headers, before there are tokens.
  /// `masks`, where given, travel with their blocks. All references outlive this.
  ModelSpans(const SourceModel& model, const TokenWindows& tokens, int blocks_per_span = 1,
             const MaskSource* masks = nullptr);

  /// What the reads of every span index: the model's shards, then those of the masks.
  std::span<const ReadFile* const> files() const { return files_; }

  uint64_t slot_bytes() const { return slot_bytes_; }
  int blocks_per_span() const { return blocks_per_span_; }
  std::vector<ModelSpan> embed_spans() const;
  /// All blocks in order; the last span may hold fewer.
  std::vector<ModelSpan> block_spans() const;
  ModelSpan span_of_block(int block) const;
  int64_t head_rows_per_span() const;
  std::vector<ModelSpan> head_spans(int64_t rows_per_span) const;

  SpanReads reads_of(const ModelSpan& span) const;

 private:
  SpanReads block_reads(int first_block, int last_block) const;
  SpanReads embed_reads(int64_t first, int64_t last) const;
  SpanReads head_reads(int64_t first, int64_t last) const;
  uint64_t row_bytes(const std::string& tensor) const;
  uint64_t largest_embed_read(int64_t seqlen) const;
  Extent stem_extent(const std::string& tensor) const;
  uint64_t stem_bytes() const;
  uint64_t final_bytes() const;

  const SourceModel& model_;
  const TokenWindows& tokens_;
  int blocks_per_span_;
  const MaskSource* masks_;
  std::vector<const ReadFile*> files_;
  std::vector<uint64_t> file_bytes_;
  uint64_t slot_bytes_ = 0;
};

}  // namespace coppice
