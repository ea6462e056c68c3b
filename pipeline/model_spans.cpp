#include "pipeline/model_spans.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

namespace coppice {
namespace {

constexpr uint64_t kAlignment = 4096;
constexpr uint64_t kSmallestSlot = uint64_t{4} << 20;  // tiny blocks: still worth a read

// Bytes a run of `bytes` can take in a slot once aligned at both ends.
uint64_t aligned_bound(uint64_t bytes) { return bytes / kAlignment * kAlignment + 2 * kAlignment; }

// Rows of an embedding lie far apart: reading through gaps would read the whole table.
ReadPlanOptions row_options() {
  ReadPlanOptions options;
  options.max_gap_bytes = kAlignment;
  return options;
}

}  // namespace

ModelSpans::ModelSpans(const SourceModel& model, const TokenWindows& tokens, int blocks_per_span,
                       const MaskSource* masks)
    : model_(model),
      tokens_(tokens),
      blocks_per_span_(blocks_per_span),
      masks_(masks),
      file_bytes_(model.checkpoint.file_bytes()) {
  for (const auto& file : model.checkpoint.files()) files_.push_back(file.get());
  if (masks != nullptr) {
    const std::vector<uint64_t> more = masks->checkpoint().file_bytes();
    file_bytes_.insert(file_bytes_.end(), more.begin(), more.end());
    for (const auto& file : masks->checkpoint().files()) files_.push_back(file.get());
  }
  slot_bytes_ = kSmallestSlot;
  for (const ModelSpan& span : block_spans()) {
    slot_bytes_ = std::max(slot_bytes_, reads_of(span).plan.slot_bytes);
  }
  slot_bytes_ = std::max(slot_bytes_, stem_bytes() + largest_embed_read(tokens.seqlen));
  slot_bytes_ = std::max(slot_bytes_, 2 * final_bytes());
}

// Of a table of positions what windows of this length ask for.
Extent ModelSpans::stem_extent(const std::string& tensor) const {
  const Architecture& architecture = model_.architecture;
  Extent extent = model_.checkpoint.extent(tensor);
  if (tensor == architecture.positions) {
    const auto rows = uint64_t(architecture.first_position_row + tokens_.seqlen);
    extent.bytes = std::min(extent.bytes, rows * row_bytes(tensor));
  }
  return extent;
}

uint64_t ModelSpans::stem_bytes() const {
  uint64_t bytes = 0;
  for (const NamedShape& tensor : stem_tensors(model_.architecture)) {
    bytes += aligned_bound(stem_extent(tensor.name).bytes);
  }
  return bytes;
}

// With the slack of the rows that lie beside it.
uint64_t ModelSpans::final_bytes() const {
  uint64_t bytes = 3 * kAlignment;
  for (const NamedShape& tensor : final_tensors(model_.architecture)) {
    bytes += aligned_bound(model_.checkpoint.extent(tensor.name).bytes);
  }
  return bytes;
}

// Every token of a window a row of its own, far from the others; or the whole table.
uint64_t ModelSpans::largest_embed_read(int64_t seqlen) const {
  const TensorInfo& table = model_.checkpoint.tensor(model_.architecture.embedding);
  const auto rows = uint64_t(std::min(seqlen, table.shape[0]));
  return std::min(rows * aligned_bound(row_bytes(table.name)), aligned_bound(table.bytes));
}

uint64_t ModelSpans::row_bytes(const std::string& tensor) const {
  const TensorInfo& info = model_.checkpoint.tensor(tensor);
  return info.bytes / uint64_t(info.shape[0]);
}

std::vector<ModelSpan> ModelSpans::embed_spans() const {
  const uint64_t bytes_a_row = aligned_bound(row_bytes(model_.architecture.embedding));
  const uint64_t room = slot_bytes_ - stem_bytes();
  std::vector<ModelSpan> spans;
  for (int64_t first = 0; first < tokens_.count();) {
    std::set<int32_t> rows;
    int64_t last = first;
    while (last < tokens_.count()) {
      std::set<int32_t> more = rows;
      const auto window = tokens_.window(last);
      more.insert(window.begin(), window.end());
      if (last > first && more.size() * bytes_a_row > room) break;
      rows = std::move(more);
      ++last;
    }
    spans.push_back({SpanKind::kEmbed, fmt::format("embedding of windows {}-{}", first, last - 1),
                     0, 0, first, last});
    first = last;
  }
  return spans;
}

std::vector<ModelSpan> ModelSpans::block_spans() const {
  const auto num_blocks = int(model_.architecture.num_blocks);
  std::vector<ModelSpan> spans;
  for (int first = 0; first < num_blocks; first += blocks_per_span_) {
    spans.push_back(span_of_block(first));
  }
  return spans;
}

ModelSpan ModelSpans::span_of_block(int block) const {
  const int first = block / blocks_per_span_ * blocks_per_span_;
  const int last = std::min(first + blocks_per_span_, int(model_.architecture.num_blocks));
  const std::string name = last - first == 1 ? fmt::format("block {}", first)
                                             : fmt::format("blocks {}-{}", first, last - 1);
  return {SpanKind::kBlock, name, first, last};
}

int64_t ModelSpans::head_rows_per_span() const {
  const uint64_t room = slot_bytes_ - final_bytes();
  return std::max<int64_t>(1, int64_t(room / row_bytes(model_.architecture.head)));
}

std::vector<ModelSpan> ModelSpans::head_spans(int64_t rows_per_span) const {
  const int64_t vocab = model_.architecture.vocab;
  std::vector<ModelSpan> spans;
  for (int64_t first = 0; first < vocab; first += rows_per_span) {
    const int64_t last = std::min(first + rows_per_span, vocab);
    spans.push_back(
        {SpanKind::kHead, fmt::format("head rows {}-{}", first, last - 1), 0, 0, first, last});
  }
  return spans;
}

SpanReads ModelSpans::reads_of(const ModelSpan& span) const {
  switch (span.kind) {
    case SpanKind::kEmbed:
      return embed_reads(span.first, span.last);
    case SpanKind::kBlock:
      return block_reads(span.first_block, span.last_block);
    case SpanKind::kHead:
      return head_reads(span.first, span.last);
  }
  return {};
}

SpanReads ModelSpans::block_reads(int first_block, int last_block) const {
  SpanReads reads;
  std::vector<Extent> wanted;
  for (int block = first_block; block < last_block; ++block) {
    const auto want = [&](const std::string& name) {
      reads.placement_of[name] = wanted.size();
      wanted.push_back(model_.checkpoint.extent(name));
    };
    for (const NamedShape& tensor : block_tensors(model_.architecture, block)) {
      if (tensor.is_added) continue;
      want(tensor.name);
      if (model_.checkpoint.tensor(tensor.name).dtype == kFp8) want(scales_name(tensor.name));
    }
    if (masks_ == nullptr) continue;
    for (const LinearSpec& linear : model_.architecture.linears) {
      const std::string name = in_block(model_.architecture, block, linear.name);
      const std::string mask = masks_->tensor_for(name);
      if (mask.empty()) continue;
      Extent extent = masks_->checkpoint().extent(mask);
      extent.file += uint32_t(model_.checkpoint.files().size());
      reads.mask_placement_of[name] = wanted.size();
      wanted.push_back(extent);
    }
  }
  reads.plan = plan_reads(wanted, file_bytes_);
  return reads;
}

SpanReads ModelSpans::embed_reads(int64_t first, int64_t last) const {
  SpanReads reads;
  const Extent table = model_.checkpoint.extent(model_.architecture.embedding);
  const uint64_t bytes = row_bytes(model_.architecture.embedding);
  std::vector<Extent> wanted;
  for (int64_t window = first; window < last; ++window) {
    for (const int32_t token : tokens_.window(window)) {
      if (!reads.placement_of_token.emplace(token, wanted.size()).second) continue;
      wanted.push_back({table.file, table.offset + uint64_t(token) * bytes, bytes});
    }
  }
  for (const NamedShape& tensor : stem_tensors(model_.architecture)) {
    reads.placement_of[tensor.name] = wanted.size();
    wanted.push_back(stem_extent(tensor.name));
  }
  reads.plan = plan_reads(wanted, file_bytes_, row_options());
  return reads;
}

SpanReads ModelSpans::head_reads(int64_t first, int64_t last) const {
  SpanReads reads;
  const Architecture& architecture = model_.architecture;
  const uint64_t bytes = row_bytes(architecture.head);
  Extent rows = model_.checkpoint.extent(architecture.head);
  rows = {rows.file, rows.offset + uint64_t(first) * bytes, uint64_t(last - first) * bytes};
  reads.placement_of = {{architecture.head, 0}};
  std::vector<Extent> wanted = {rows};
  for (const NamedShape& tensor : final_tensors(architecture)) {
    reads.placement_of[tensor.name] = wanted.size();
    wanted.push_back(model_.checkpoint.extent(tensor.name));
  }
  reads.plan = plan_reads(wanted, file_bytes_, row_options());
  return reads;
}

}  // namespace coppice
