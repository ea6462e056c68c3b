#include "pipeline/prune_pass.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "pipeline/resident_tensors.h"
#include "pipeline/telemetry/json_text.h"
#include "stages/held_out.h"
#include "stages/propagation.h"
#include "stages/reconstruct.h"  // num_held_out

namespace coppice {

namespace fs = std::filesystem;
using nlohmann::json;

PrunePass::PrunePass(PassContext& context, std::vector<Recipe> recipes,
                     const std::vector<RecipeOutput>& outputs, Judge judge)
    : BlockPass(context, std::move(recipes)), outputs_(outputs), judges_(judge == Judge::kYes) {
  keeps_last_boundary_ = judges_;
}

// ---- what is left to do -----------------------------------------------------------------------

bool PrunePass::is_recorded(const ModelSpan& span) const {
  const RunState& state = context_.state;
  for (size_t recipe = 0; recipe < recipes_.size(); ++recipe) {
    for (int block = span.first_block; block < span.last_block; ++block) {
      if (!state.has_block(recipe, block)) return false;
    }
  }
  // The end of the model is there until it is judged.
  const bool is_last = span.last_block == context_.model.architecture.num_blocks;
  const int end = 2 * span.last_block;
  return !judges_ || !is_last || !state.judged().is_null() ||
         (state.has_held_out(end) && state.has_boundary({Stream::kDense, end}));
}

// A recorded block whose hidden states are gone only hands on the dense ones; what an adapted
// prefix hands on needs the adapted weights, which are made again, the same.
bool PrunePass::is_to_adapt(const ModelSpan& span) const {
  return span.kind == SpanKind::kBlock &&
         (propagates(recipes_.front().reconstruct) || judges_ || !is_recorded(span));
}

bool PrunePass::can_start_at(const ModelSpan& span) const {
  const int half = 2 * span.first_block;
  return BlockPass::can_start_at(span) &&
         (!judges_ || half == 0 || context_.state.has_held_out(half));
}

// Under dense propagation a span waits for the dense forward of the one before it alone. Held-out
// windows flow from one adapted span to the next.
bool PrunePass::uses_all_devices() const {
  return !judges_ && !propagates(recipes_.front().reconstruct);
}

std::vector<ModelSpan> PrunePass::spans_behind() const {
  if (!judges_ || !context_.state.judged().is_null()) return {};
  if (context_.model.architecture.head.empty()) return {};
  return context_.planner.head_spans(context_.planner.head_rows_per_span());
}

int PrunePass::num_steps(const ModelSpan& span) const {
  return is_to_adapt(span) ? (span.last_block - span.first_block) * int(recipes_.size()) : 0;
}

// ---- the device's thread ------------------------------------------------------------------------

// Recipes whose results are not written take turns in one part.
std::span<std::byte> PrunePass::part_of(const GraphSpan& span, size_t recipe) const {
  const OutputDirectory& directory = outputs_[recipe].directory;
  const uint64_t bytes = directory.largest_image_bytes(context_.planner.blocks_per_span());
  const size_t part = outputs_[recipe].is_written ? recipe : 0;
  return span.output.subspan(part * bytes, bytes);
}

void PrunePass::begin(GraphSpan& span, size_t recipe, Variant& variant) {
  const ModelSpan& what = work_of(span).span;
  const OutputDirectory& directory = outputs_[recipe].directory;
  for (int block = what.first_block; block < what.last_block; ++block) {
    variant.places.merge(directory.places(
        directory.part_of(part_of(span, recipe), what.first_block, block), block, device_of(span)));
  }
  if (!judges_ || what.first_block == 0) return;
  if (held_out_.empty()) read_held_out(2 * what.first_block);  // an earlier process came this far
  variant.held_out = {held_out_[recipe], {}};
  for (int window = first_held_out(); window < int(context_.tokens.count()); ++window) {
    const std::vector<int> lengths = context_.tokens.lengths_of(window);
    std::copy(lengths.begin(), lengths.end(), std::back_inserter(variant.held_out.lengths));
  }
}

void PrunePass::end(GraphSpan& span, size_t recipe, Variant& variant) {
  const ModelSpan& what = work_of(span).span;
  Device& device = device_of(span);
  const OutputDirectory& directory = outputs_[recipe].directory;
  if (judges_) carry_held_out(span, recipe, variant);
  for (const WindowReport& window : variant.windows) {
    if (window.micro_batch == 0) continue;
    context_.progress.note(
        fmt::format("{}, {}: no device memory for batches of {}; went on with {}", span.name,
                    window.name, variant.reconstruct.batch_size, window.micro_batch));
  }
  std::vector<Adapted> blocks;
  for (int block = what.first_block; block < what.last_block; ++block) {
    Adapted& adapted = blocks.emplace_back();
    adapted.recipe = recipe;
    adapted.block = block;
    if (outputs_[recipe].is_written && !directory.is_cut_out(block)) {
      const auto part = directory.part_of(part_of(span, recipe), what.first_block, block);
      adapted.image = directory.assemble_block(part, block, device, span, variant);
      adapted.arrival = context_.machine.downloads(device, span.name);
      adapted.masks = directory.assemble_masks(block, variant);
    }
    adapted.report = block_report(block, in_block(context_.model.architecture, block, ""), variant);
  }
  std::lock_guard lock(adapted_mutex_);
  std::vector<Adapted>& all = adapted_[what.first_block];
  std::move(blocks.begin(), blocks.end(), std::back_inserter(all));
}

// Of equal windows one is kept, so that models which differ nowhere so far are known again.
void PrunePass::read_held_out(int half) {
  for (auto& [name, saved] : read_tensors(held_out_path(half))) {
    const at::Tensor tensor = saved.to(context_.machine.device().where());
    const auto same = std::find_if(held_out_.begin(), held_out_.end(),
                                   [&](const at::Tensor& known) { return known.equal(tensor); });
    held_out_.push_back(same != held_out_.end() ? *same : tensor);
  }
}

void PrunePass::carry_held_out(GraphSpan& span, size_t recipe, Variant& variant) {
  held_out_.resize(recipes_.size());
  const at::Tensor entered = variant.held_out.hidden;  // undefined: the embeddings
  const bool is_dense = variant.adapted.empty();
  const auto same = std::find_if(carried_.begin(), carried_.end(), [&](const auto& carried) {
    return carried.first.is_same(entered);
  });
  if (is_dense && same != carried_.end()) {
    held_out_[recipe] = same->second;
    return;
  }
  const HeldOutForward forward(recipes_[recipe].reconstruct.validation_fraction);
  WindowJob job{*work_of(span).job, work_of(span).job->halves, &variant};
  run_stage(span, forward, job);
  held_out_[recipe] = variant.held_out.hidden;
  if (is_dense) carried_.emplace_back(entered, held_out_[recipe]);
}

void PrunePass::leave(GraphSpan& span, SpanJob& job) {
  if (!judges_) return;
  carried_.clear();
  std::map<std::string, at::Tensor> tensors;
  for (size_t recipe = 0; recipe < recipes_.size(); ++recipe) {  // by name in the order of recipes
    tensors[fmt::format("{:06}", recipe)] = held_out_[recipe].to(at::kFloat);
  }
  const int half = job.halves.last;
  const uint64_t bytes = recipes_.size() * tensors.begin()->second.nbytes();
  FileRecord file;
  context_.space.with_room(context_.work, bytes,
                           [&] { file = write_tensors(held_out_path(half), tensors); });
  context_.space.with_room(context_.work, 0, [&] { context_.state.record_held_out(half, file); });
  const bool is_last = half == 2 * context_.model.architecture.num_blocks;
  if (!is_last || !context_.model.architecture.head.empty()) return;
  const at::Tensor dense = dense_held_out(span);
  std::vector<double> errors;
  errors.reserve(held_out_.size());
  for (const at::Tensor& hidden : held_out_) errors.push_back(hidden_error(hidden, dense));
  record_judged("relative squared error of the last hidden states", 0, errors);
}

void PrunePass::behind(GraphSpan& span) {
  const Architecture& architecture = context_.model.architecture;
  const Device& device = device_of(span);
  if (!loss_) {
    if (held_out_.empty()) {
      read_held_out(2 * int(architecture.num_blocks));
    }
    held_out_.push_back(dense_held_out(span));
    loss_ = std::make_unique<HeldOutLoss>(context_.tokens, first_held_out(), held_out_.size(),
                                          device.where());
  }
  const auto tensor = [&](const std::string& name) {
    return slot_tensor(span, context_.model, device, name).to(context_.compute);
  };
  const ModelSpan& what = work_of(span).span;
  loss_->add(architecture, tensor(architecture.head), gather_final(architecture, tensor),
             what.first, held_out_);
  if (what.last < architecture.vocab) return;
  std::vector<double> losses = loss_->losses();
  const double dense = losses.back();
  losses.pop_back();
  record_judged("next-token loss", dense, losses);
}

int PrunePass::first_held_out() const {
  const auto windows = int(context_.tokens.count());
  return windows - num_held_out(recipes_.front().reconstruct.validation_fraction, windows);
}

at::Tensor PrunePass::dense_held_out(const GraphSpan& span) {
  const int last = 2 * int(context_.model.architecture.num_blocks);
  const auto source = boundaries_of(span).source({Stream::kDense, last});
  std::vector<int> windows(size_t(source->num_windows() - first_held_out()));
  std::iota(windows.begin(), windows.end(), first_held_out());
  source->announce(windows);
  return source->read(windows).hidden;
}

void PrunePass::record_judged(const char* metric, double dense, const std::vector<double>& losses) {
  json known = json::array();  // a model that overflows is the worst, and costs the others nothing
  for (const double loss : losses) known.push_back(finite_or_null(loss));
  context_.space.with_room(context_.work, 0, [&] {
    context_.state.record_judged(
        {{"metric", metric}, {"dense", finite_or_null(dense)}, {"losses", known}});
  });
}

// ---- the store's thread -------------------------------------------------------------------------

fs::path PrunePass::held_out_path(int half) const {
  return context_.work / fmt::format("held_out.{}.safetensors", half);
}

std::vector<FileRecord> PrunePass::write_block(const Adapted& block, const std::string& span) {
  const OutputDirectory& directory = outputs_[block.recipe].directory;
  RunMeters& meters = context_.machine.meters();
  block.arrival();
  std::vector<FileRecord> files;
  context_.space.with_room(directory.path(), block.image.size() + block.masks.size(), [&] {
    const Stopwatch busy(meters.writes);
    const TraceSlice slice(context_.trace, Track::kShardWrites, span);
    files = {directory.write_block(block.block, block.image)};
    if (!block.masks.empty()) files.push_back(directory.write_masks(block.block, block.masks));
  });
  for (const FileRecord& file : files) meters.writes.add_bytes(file.bytes);
  return files;
}

void PrunePass::write(GraphSpan& span) {
  std::unique_lock lock(adapted_mutex_);
  const auto found = adapted_.find(work_of(span).span.first_block);
  if (found == adapted_.end()) return;  // recorded by an earlier process
  std::vector<Adapted>& blocks = found->second;
  lock.unlock();  // no other thread touches this span's any more
  for (Adapted& block : blocks) {
    if (!block.image.empty()) block.files = write_block(block, span.name);
  }
}

void PrunePass::record(GraphSpan& span) {
  const ModelSpan& what = work_of(span).span;
  std::unique_lock lock(adapted_mutex_);
  auto adapted = adapted_.extract(what.first_block);
  lock.unlock();
  if (adapted.empty()) return;
  for (Adapted& block : adapted.mapped()) {
    if (block.block == what.first_block) {
      block.report.update(
          waits_report(span.times, work_of(span).waited_for_activations, SpanTimes::Clock::now()));
    }
    context_.space.with_room(context_.work, 0, [&] {
      context_.state.record_block(block.recipe, block.block, block.files, block.report);
    });
    const std::string& name = outputs_[block.recipe].name;
    const std::string line = block_line(block.report, int(context_.model.architecture.num_blocks));
    const bool is_untouched =
        block.report.at("linears").empty();  // of many recipes that is no news
    context_.progress.done(name.empty() ? line : is_untouched ? "" : name + ": " + line);
  }
  if (judges_) fs::remove(held_out_path(2 * what.first_block));
}

}  // namespace coppice
