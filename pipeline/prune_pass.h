// The pass that prunes: every block by every recipe, each into a shard of its own.
#pragma once

#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "pipeline/block_pass.h"
#include "pipeline/held_out_loss.h"
#include "pipeline/output_directory.h"

namespace coppice {

/// One of the recipes of a run.
struct RecipeOutput {
  std::string name;           // empty where it is the only one
  OutputDirectory directory;  // where its shards go, if they are written
  bool is_written = true;
};

/// Records `blocks` and, where it judges, `held out` and `judged` (see RunState).
class PrunePass final : public BlockPass {
 public:
  /// Whether the models as wholes are compared: the held-out windows then flow through each, and at
  /// the end the head tells how well they are predicted.
  enum class Judge { kNo, kYes };
  PrunePass(PassContext& context, std::vector<Recipe> recipes,
            const std::vector<RecipeOutput>& outputs, Judge judge);

 protected:
  bool is_recorded(const ModelSpan& span) const override;
  bool is_to_adapt(const ModelSpan& span) const override;
  bool can_start_at(const ModelSpan& span) const override;
  bool uses_all_devices() const override;
  std::vector<ModelSpan> spans_behind() const override;
  int num_steps(const ModelSpan& span) const override;
  void begin(GraphSpan& span, size_t recipe, Variant& variant) override;
  void end(GraphSpan& span, size_t recipe, Variant& variant) override;
  void leave(GraphSpan& span, SpanJob& job) override;
  void behind(GraphSpan& span) override;
  void write(GraphSpan& span) override;
  void record(GraphSpan& span) override;

 private:
  /// What an adapted block hands from the device's thread to the store's.
  struct Adapted {
    size_t recipe = 0;
    int block = 0;
    std::span<const std::byte> image;  // empty: nothing is written
    CopyWait arrival = {};             // of the image
    std::vector<std::byte> masks;      // the image of theirs; empty: none are asked for
    nlohmann::json report;
    std::vector<FileRecord> files = {};
  };

  std::span<std::byte> part_of(const GraphSpan& span, size_t recipe) const;
  std::filesystem::path held_out_path(int half) const;
  int first_held_out() const;
  at::Tensor dense_held_out(const GraphSpan& span);
  void read_held_out(int half);
  void carry_held_out(GraphSpan& span, size_t recipe, Variant& variant);
  void record_judged(const char* metric, double dense, const std::vector<double>& losses);
  std::vector<FileRecord> write_block(const Adapted& block, const std::string& span);

  const std::vector<RecipeOutput>& outputs_;
  bool judges_;
  // By the span's first block; the device's thread puts, the store's takes.
  std::map<int, std::vector<Adapted>> adapted_;
  std::mutex adapted_mutex_;
  // The rest is of the device's thread.
  std::vector<at::Tensor> held_out_;  // by recipe, behind the last span; at the end the dense one
  /// What the span's dense weights made of held-out windows, by what entered: models that differ
  /// nowhere so far share one.
  std::vector<std::pair<at::Tensor, at::Tensor>> carried_;
  std::unique_ptr<HeldOutLoss> loss_;
};

}  // namespace coppice
