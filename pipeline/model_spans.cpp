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

ModelSpans::ModelSpans(const SourceModel& model, const TokenWindows& tokens)
    : model_(model), tokens_(tokens), file_bytes_(model.checkpoint.file_bytes()) {
  slot_bytes_ = kSmallestSlot;
  for (int block = 0; block < model.architecture.num_blocks; ++block) {
    slot_bytes_ = std::max(slot_bytes_, block_reads(block).plan.slot_bytes);
  }
  slot_bytes_ = std::max(slot_bytes_, largest_embed_read(tokens.seqlen));
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
  std::vector<ModelSpan> spans;
  for (int64_t first = 0; first < tokens_.count();) {
    std::set<int32_t> rows;
    int64_t last = first;
    while (last < tokens_.count()) {
      std::set<int32_t> more = rows;
      const auto window = tokens_.window(last);
      more.insert(window.begin(), window.end());
      if (last > first && more.size() * bytes_a_row > slot_bytes_) break;
      rows = std::move(more);
      ++last;
    }
    spans.push_back({SpanKind::kEmbed, fmt::format("embedding of windows {}-{}", first, last - 1),
                     0, first, last});
    first = last;
  }
  return spans;
}

ModelSpan ModelSpans::block_span(int block) const {
  return {SpanKind::kBlock, fmt::format("block {}", block), block, 0, 0};
}

int64_t ModelSpans::head_rows_per_span() const {
  const Architecture& architecture = model_.architecture;
  const uint64_t norm_bytes =
      aligned_bound(model_.checkpoint.tensor(architecture.final_norm).bytes);
  const uint64_t room = slot_bytes_ - std::min(slot_bytes_ / 2, norm_bytes + 3 * kAlignment);
  return std::max<int64_t>(1, int64_t(room / row_bytes(architecture.head)));
}

std::vector<ModelSpan> ModelSpans::head_spans(int64_t rows_per_span) const {
  const int64_t vocab = model_.architecture.vocab;
  std::vector<ModelSpan> spans;
  for (int64_t first = 0; first < vocab; first += rows_per_span) {
    const int64_t last = std::min(first + rows_per_span, vocab);
    spans.push_back(
        {SpanKind::kHead, fmt::format("head rows {}-{}", first, last - 1), 0, first, last});
  }
  return spans;
}

SpanReads ModelSpans::reads_of(const ModelSpan& span) const {
  switch (span.kind) {
    case SpanKind::kEmbed:
      return embed_reads(span.first, span.last);
    case SpanKind::kBlock:
      return block_reads(span.block);
    case SpanKind::kHead:
      return head_reads(span.first, span.last);
  }
  return {};
}

SpanReads ModelSpans::block_reads(int block) const {
  SpanReads reads;
  std::vector<Extent> wanted;
  for (const NamedShape& tensor : block_tensors(model_.architecture, block)) {
    reads.placement_of[tensor.name] = wanted.size();
    wanted.push_back(model_.checkpoint.extent(tensor.name));
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
  reads.plan = plan_reads(wanted, file_bytes_, row_options());
  return reads;
}

SpanReads ModelSpans::head_reads(int64_t first, int64_t last) const {
  SpanReads reads;
  const Architecture& architecture = model_.architecture;
  const uint64_t bytes = row_bytes(architecture.head);
  Extent rows = model_.checkpoint.extent(architecture.head);
  rows = {rows.file, rows.offset + uint64_t(first) * bytes, uint64_t(last - first) * bytes};
  reads.placement_of = {{architecture.head, 0}, {architecture.final_norm, 1}};
  const std::vector<Extent> wanted = {rows, model_.checkpoint.extent(architecture.final_norm)};
  reads.plan = plan_reads(wanted, file_bytes_, row_options());
  return reads;
}

}  // namespace coppice
