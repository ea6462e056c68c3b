// Every byte a span wants lies where its plan says, every part of the model is in one span, and
// every plan fits a slot.
#include "pipeline/model_spans.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "tests/support/small_checkpoint.h"
#include "tests/support/temp_dir.h"

namespace coppice {
namespace {

using ::testing::ElementsAre;
using testing::golden_directory;
using testing::small_config;
using testing::write_checkpoint;

constexpr uint64_t kSmallestSlot = uint64_t{4} << 20;
constexpr char kGoldenFolders[][32] = {"llama_fp32", "llama_bf16", "llama_bias_llama3_fp32"};

// `count` windows of `seqlen` tokens; `stride` from each token to the next, modulo `vocab`.
TokenWindows tokens_with_stride(int64_t count, int64_t seqlen, int64_t stride, int64_t vocab) {
  TokenWindows tokens;
  tokens.seqlen = seqlen;
  for (int64_t i = 0; i < count * seqlen; ++i) {
    tokens.ids.push_back(int32_t(i * stride % vocab));
  }
  return tokens;
}

class Subject {
 public:
  Subject(const std::filesystem::path& directory, TokenWindows tokens_in)
      : model(open_model(directory, {})), tokens(std::move(tokens_in)), spans(model, tokens) {}
  Subject(const Subject&) = delete;

  std::vector<ModelSpan> embed_spans() const { return spans.embed_spans(); }
  std::vector<ModelSpan> head_spans() const { return spans.head_spans(spans.head_rows_per_span()); }
  std::vector<ModelSpan> block_spans() const { return spans.block_spans(); }
  int64_t num_blocks() const { return model.architecture.num_blocks; }

  const SourceModel model;
  const TokenWindows tokens;
  const ModelSpans spans;
};

Subject golden(const std::string& folder) {
  return Subject(golden_directory(folder), tokens_with_stride(3, 23, 7, 61));
}

// Rows of 4 KiB, two and a half times as many as a slot holds. Tokens four rows apart are read
// alone.
class LargeVocabulary {
 public:
  static constexpr int64_t kVocab = 2560;
  explicit LargeVocabulary(TokenWindows tokens) : subject(written(), std::move(tokens)) {}

 private:
  const std::filesystem::path& written() {
    write_checkpoint(directory_.path(), small_config(1, 1024, 8, kVocab));
    return directory_.path();
  }
  testing::TempDir directory_;

 public:
  const Subject subject;
};

class Slot {
 public:
  Slot(const Subject& subject, const ModelSpan& span)
      : reads_(subject.spans.reads_of(span)),
        memory_(testing::filled_slot(reads_.plan, subject.model.checkpoint)) {}

  std::string tensor(const std::string& name) const { return placed(reads_.placement_of.at(name)); }
  std::string row(int32_t token) const { return placed(reads_.placement_of_token.at(token)); }
  const SpanReads& reads() const { return reads_; }

 private:
  std::string placed(size_t index) const {
    const Placement& placement = reads_.plan.placements.at(index);
    const char* first = reinterpret_cast<const char*>(memory_.span().data());
    return std::string(first + placement.slot_offset, placement.bytes);
  }
  SpanReads reads_;
  AlignedBuffer memory_;
};

std::string rows_of(const Subject& subject, const std::string& table, int64_t first, int64_t last) {
  const TensorInfo& info = subject.model.checkpoint.tensor(table);
  const uint64_t bytes = info.bytes / uint64_t(info.shape[0]);
  return testing::stored_bytes(subject.model.checkpoint, table)
      .substr(uint64_t(first) * bytes, uint64_t(last - first) * bytes);
}

void expect_consecutive(const std::vector<ModelSpan>& spans, int64_t end) {
  int64_t next = 0;
  for (const ModelSpan& span : spans) {
    EXPECT_EQ(span.first, next) << span.name;
    EXPECT_GT(span.last, span.first) << span.name;
    next = span.last;
  }
  EXPECT_EQ(next, end);
}

void expect_every_plan_fits(const Subject& subject) {
  for (const auto& spans : {subject.embed_spans(), subject.block_spans(), subject.head_spans()}) {
    for (const ModelSpan& span : spans) {
      EXPECT_LE(subject.spans.reads_of(span).plan.slot_bytes, subject.spans.slot_bytes())
          << span.name;
    }
  }
}

TEST(ModelSpans, EveryPlanFitsASlot) {
  for (const char* folder : kGoldenFolders) expect_every_plan_fits(golden(folder));
}

TEST(ModelSpans, EveryPlanFitsASlotThatTheVocabularyDoesNot) {
  const LargeVocabulary model(tokens_with_stride(20, 100, 4, LargeVocabulary::kVocab));
  ASSERT_GT(model.subject.head_spans().size(), 1u);
  ASSERT_GT(model.subject.embed_spans().size(), 1u);
  expect_every_plan_fits(model.subject);
}

TEST(ModelSpans, SlotGrowsToTheLargestBlock) {
  const testing::TempDir directory;
  write_checkpoint(directory.path(), small_config(2, 48, 9000, 61));
  const Subject subject(directory.path(), tokens_with_stride(1, 8, 1, 61));
  EXPECT_GT(subject.spans.slot_bytes(), kSmallestSlot);
  expect_every_plan_fits(subject);
}

TEST(ModelSpans, SlotGrowsToTheRowsOfOneWindow) {
  const LargeVocabulary model(tokens_with_stride(1, 640, 4, LargeVocabulary::kVocab));
  EXPECT_GT(model.subject.spans.slot_bytes(), kSmallestSlot);
  expect_every_plan_fits(model.subject);
}

TEST(ModelSpans, SeveralBlocksMayTravelTogether) {
  const Subject one = golden("llama_fp32");
  const ModelSpans two(one.model, one.tokens, 2);
  const std::vector<ModelSpan> spans = two.block_spans();
  ASSERT_EQ(spans.size(), 2u);  // of three blocks
  EXPECT_EQ(spans[0].name, "blocks 0-1");
  EXPECT_EQ(spans[1].name, "block 2");
  EXPECT_EQ(two.span_of_block(1).first_block, 0);
  EXPECT_EQ(two.span_of_block(2).last_block, 3);
  const SpanReads reads = two.reads_of(spans[0]);
  EXPECT_EQ(reads.placement_of.size(),
            one.spans.reads_of(one.spans.span_of_block(0)).placement_of.size() +
                one.spans.reads_of(one.spans.span_of_block(1)).placement_of.size());
  EXPECT_LE(reads.plan.slot_bytes, two.slot_bytes());
}

TEST(ModelSpans, EveryTensorOfABlockLiesWhereItsPlanSays) {
  for (const char* folder : kGoldenFolders) {
    const Subject subject = golden(folder);
    for (int block = 0; block < subject.num_blocks(); ++block) {
      const Slot slot(subject, subject.spans.span_of_block(block));
      const auto tensors = block_tensors(subject.model.architecture, block);
      EXPECT_EQ(slot.reads().placement_of.size(), tensors.size());
      for (const NamedShape& tensor : tensors) {
        EXPECT_EQ(slot.tensor(tensor.name),
                  testing::stored_bytes(subject.model.checkpoint, tensor.name))
            << folder << " " << tensor.name;
      }
    }
  }
}

TEST(ModelSpans, EmbeddingSpansTakeEveryWindowOnce) {
  const LargeVocabulary model(tokens_with_stride(20, 100, 4, LargeVocabulary::kVocab));
  expect_consecutive(model.subject.embed_spans(), 20);
}

TEST(ModelSpans, EmbeddingSpanHoldsTheRowsOfItsTokensAndNoOthers) {
  TokenWindows tokens = tokens_with_stride(10, 100, 2, LargeVocabulary::kVocab);
  for (size_t i = 1; i < tokens.ids.size(); i += 2) tokens.ids[i] = tokens.ids[i - 1];
  const LargeVocabulary model(tokens);
  const Subject& subject = model.subject;
  const ModelSpan span = subject.embed_spans().at(1);
  std::set<int32_t> wanted;
  for (int64_t window = span.first; window < span.last; ++window) {
    wanted.insert(subject.tokens.window(window).begin(), subject.tokens.window(window).end());
  }
  const Slot slot(subject, span);
  EXPECT_EQ(slot.reads().placement_of_token.size(), wanted.size());
  EXPECT_EQ(slot.reads().plan.placements.size(), wanted.size());
  for (const int32_t token : wanted) {
    EXPECT_EQ(slot.row(token),
              rows_of(subject, subject.model.architecture.embedding, token, token + 1))
        << "token " << token;
  }
}

TEST(ModelSpans, WindowsOfTheSameTokensShareASpan) {
  const LargeVocabulary model(tokens_with_stride(2000, 4, 640, LargeVocabulary::kVocab));
  EXPECT_EQ(model.subject.embed_spans().size(), 1u);
}

TEST(ModelSpans, RowsFarApartAreNotReadThrough) {
  const LargeVocabulary model(tokens_with_stride(1, 100, 10, LargeVocabulary::kVocab));
  const ReadPlan plan = model.subject.spans.reads_of(model.subject.embed_spans().at(0)).plan;
  EXPECT_LE(plan.slot_bytes, 100u * 2 * 4096);
}

TEST(ModelSpans, HeadSpansTakeEveryRowOfTheVocabularyOnce) {
  const LargeVocabulary model(tokens_with_stride(1, 8, 1, LargeVocabulary::kVocab));
  expect_consecutive(model.subject.head_spans(), LargeVocabulary::kVocab);
}

TEST(ModelSpans, HeadMayBeCutFiner) {
  const Subject subject = golden("llama_bf16");
  const std::vector<ModelSpan> spans = subject.spans.head_spans(20);
  expect_consecutive(spans, 61);
  EXPECT_EQ(spans.size(), 4u);
}

TEST(ModelSpans, HeadSpanHoldsItsRowsAndTheFinalNorm) {
  for (const char* folder : kGoldenFolders) {  // the first is tied
    const Subject subject = golden(folder);
    const Architecture& architecture = subject.model.architecture;
    const ModelSpan span = subject.spans.head_spans(20).at(1);
    const Slot slot(subject, span);
    EXPECT_EQ(slot.tensor(architecture.head),
              rows_of(subject, architecture.head, span.first, span.last));
    for (const NamedShape& tensor : final_tensors(architecture)) {
      EXPECT_EQ(slot.tensor(tensor.name),
                testing::stored_bytes(subject.model.checkpoint, tensor.name));
    }
  }
}

TEST(ModelSpans, NamesSayWhatASpanIs) {
  const Subject subject = golden("llama_fp32");
  std::vector<std::string> names;
  for (const auto& spans : {subject.embed_spans(), subject.block_spans(), subject.head_spans()}) {
    for (const ModelSpan& span : spans) names.push_back(span.name);
  }
  EXPECT_THAT(names, ElementsAre("embedding of windows 0-2", "block 0", "block 1", "block 2",
                                 "head rows 0-60"));
}

}  // namespace
}  // namespace coppice
