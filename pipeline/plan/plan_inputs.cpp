#include "pipeline/plan/plan_inputs.h"

#include <sys/stat.h>

#include <algorithm>
#include <functional>
#include <numeric>

#include "pipeline/heap.h"  // release_free_memory
#include "pipeline/plan/compute_probe.h"
#include "pipeline/plan/disk_probe.h"
#include "pipeline/plan/planned_work.h"  // record_bytes
#include "pipeline/plan/rehearsal.h"
#include "pipeline/telemetry/process.h"
#include "pipeline/unit_saliency_pass.h"

namespace coppice {
namespace {

namespace fs = std::filesystem;

// Left to others: what they take while the run lasts is not known.
constexpr double kShareOfAvailable = 0.9;

constexpr uint64_t kMostNewMemory = uint64_t{1} << 30;

fs::path nearest_existing(fs::path directory) {
  directory = fs::absolute(directory);
  while (!fs::exists(directory) && directory.has_relative_path()) {
    directory = directory.parent_path();
  }
  return directory;
}

dev_t file_system_of(const fs::path& directory) {
  struct stat facts {};
  return stat(directory.c_str(), &facts) == 0 ? facts.st_dev : 0;
}

uint64_t blocks_read_bytes(const ModelSpans& spans, const WorkLeft& left) {
  uint64_t bytes = 0;
  for (const ModelSpan& span : spans.block_spans()) {
    const bool is_left = std::any_of(left.blocks.begin(), left.blocks.end(), [&](int block) {
      return span.first_block <= block && block < span.last_block;
    });
    if (!is_left) continue;
    for (const PlannedRead& read : spans.reads_of(span).plan.reads) bytes += read.bytes;
  }
  return bytes;
}

uint64_t outer_bytes(const SourceModel& model) {
  uint64_t bytes = 0;
  for (const NamedShape& tensor : outer_tensors(model.architecture)) {
    bytes += model.checkpoint.tensor(tensor.name).bytes;
  }
  for (const std::string& unknown : model.unknown_tensors) {  // copied through
    bytes += model.checkpoint.tensor(unknown).bytes;
  }
  return bytes;
}

// Of the block that has most of them.
uint64_t largest_of_blocks(const SourceModel& model,
                           const std::function<uint64_t(const TensorInfo&)>& bytes_of) {
  uint64_t largest = 0;
  for (int block = 0; block < model.architecture.num_blocks; ++block) {
    uint64_t bytes = 0;
    for (const NamedShape& named : block_tensors(model.architecture, block)) {
      if (!named.is_added) bytes += bytes_of(model.checkpoint.tensor(named.name));
    }
    largest = std::max(largest, bytes);
  }
  return largest;
}

// What is FP8 in its slot and bf16 beside it.
uint64_t widened_bytes(const TensorInfo& tensor) {
  return tensor.dtype == kFp8 ? 2 * uint64_t(tensor.num_elements()) : 0;
}

// What a host device copies, since no tensor can lie there: a slot keeps what is left of a file's
// offset behind the elements' size.
uint64_t unaligned_bytes(const TensorInfo& tensor) {
  const uint64_t element = std::max<uint64_t>(1, element_bytes(tensor.dtype));
  return tensor.offset % element == 0 ? 0 : tensor.bytes;
}

// Of a block, were every linear pruned.
uint64_t bitmask_bytes(const Architecture& architecture) {
  uint64_t bytes = 0;
  for (const LinearSpec& linear : architecture.linears) {
    bytes += uint64_t(linear.out) * uint64_t((linear.in + 7) / 8);
  }
  return bytes;
}

// Of spans of one block each. Their floor is no share of a larger span's.
uint64_t block_slot_bytes(const SourceModel& model, const ModelSpans& spans, const Recipe& recipe) {
  if (spans.blocks_per_span() == 1) return spans.slot_bytes();
  TokenWindows no_tokens;
  no_tokens.seqlen = recipe.calibration.seqlen;
  const std::unique_ptr<MaskSource> masks = open_masks(recipe.prune);
  return ModelSpans(model, no_tokens, 1, masks.get()).slot_bytes();
}

// What is available lies beside what the process has by now, whatever it is planned with.
void set_ram_limit(const ResourceOptions& resources, uint64_t process_bytes, PlanInputs& inputs) {
  release_free_memory();
  const uint64_t now = resident_bytes();
  inputs.process_bytes = process_bytes > 0 ? process_bytes : now;
  inputs.is_ram_limit_given = resources.ram_budget_bytes > 0;
  const RamLimit limit = ram_limit(resources, now);
  inputs.ram_limit = limit.bytes;
  inputs.ram_limit_name = limit.name;
}

void set_device_limit(const ResourceOptions& resources, const Machine& machine,
                      PlanInputs& inputs) {
  inputs.is_host = machine.device().is_host();
  if (inputs.is_host) return;
  inputs.device_limit = machine.device().free_bytes();
  for (int index = 1; index < inputs.devices; ++index) {
    inputs.device_limit = std::min(inputs.device_limit, machine.device(index).free_bytes());
  }
  inputs.device_limit_name = "free on the device";
  const uint64_t budget = resources.vram_budget_bytes;
  if (budget > 0 && budget <= inputs.device_limit) {  // else others have some of what is granted
    inputs.device_limit = budget;
    inputs.device_limit_name = "--vram-budget";
  }
}

void set_disk_limits(const ResourceOptions& resources, const fs::path& output,
                     const fs::path& scratch, uint64_t scratch_held, PlanInputs& inputs) {
  const fs::path out = nearest_existing(output), work = nearest_existing(scratch);
  inputs.output_limit = fs::space(out).available;
  inputs.output_limit_name = "free on " + out.string();
  inputs.scratch_limit = fs::space(work).available + scratch_held;
  inputs.scratch_limit_name = "free on " + work.string();
  if (file_system_of(out) == file_system_of(work)) {  // what one takes the other cannot have
    inputs.scratch_limit -= std::min(inputs.scratch_limit, inputs.output_bytes);
    inputs.scratch_limit_name += ", less the output";
  }
  if (resources.disk_budget_bytes > 0 && resources.disk_budget_bytes < inputs.scratch_limit) {
    inputs.scratch_limit = resources.disk_budget_bytes;
    inputs.scratch_limit_name = "--disk-budget";
  }
}

}  // namespace

RamLimit ram_limit(const ResourceOptions& resources, uint64_t process_bytes) {
  if (resources.ram_budget_bytes > 0) return {resources.ram_budget_bytes, "--ram-budget"};
  return {process_bytes + uint64_t(kShareOfAvailable * double(available_memory_bytes())),
          "nine tenths of what is available"};
}

WorkLeft all_work(const Architecture& architecture, const PlannedJob& job) {
  WorkLeft left;
  left.outer_copies = job.num_written;
  left.scores_units = wants_unit_saliency(job.recipes);
  left.blocks.resize(size_t(architecture.num_blocks));
  std::iota(left.blocks.begin(), left.blocks.end(), 0);
  return left;
}

PlanInputs plan_inputs(const SourceModel& model, const PlannedJob& job, const ModelSpans& spans,
                       int64_t windows, const Machine& machine, const OutputDirectory& output,
                       const fs::path& scratch, const WorkLeft& left) {
  const Architecture& architecture = model.architecture;
  const Device& device = machine.device();
  const Recipe& recipe = job.recipes.front();
  const auto copies = uint64_t(job.num_written);
  PlanInputs inputs{architecture, job.recipes};
  inputs.num_written = job.num_written;
  inputs.is_judged = job.is_judged;
  if (job.is_judged && !architecture.head.empty()) {
    inputs.head_rows = std::min(spans.head_rows_per_span(), architecture.vocab);
  }
  inputs.windows = windows;
  inputs.seqlen = recipe.calibration.seqlen;
  inputs.compute_bytes =
      int64_t(c10::elementSize(device.compute_dtype(scalar_type(architecture.dtype))));
  inputs.blocks_to_do = int(left.blocks.size());
  inputs.slot_bytes = spans.slot_bytes();
  inputs.block_slot_bytes = block_slot_bytes(model, spans, recipe);
  const auto of_a_span = [&](const std::function<uint64_t(const TensorInfo&)>& bytes_of) {
    return largest_of_blocks(model, bytes_of) * uint64_t(spans.blocks_per_span());
  };
  inputs.widened_bytes = of_a_span(widened_bytes);
  if (device.is_host()) inputs.unaligned_bytes = of_a_span(unaligned_bytes);
  inputs.image_bytes = output.largest_image_bytes(spans.blocks_per_span());
  inputs.block_read_bytes = blocks_read_bytes(spans, left);
  inputs.outer_bytes = uint64_t(left.outer_copies) * outer_bytes(model);
  inputs.output_bytes =
      inputs.outer_bytes +
      copies * (left.blocks.size() * output.largest_image_bytes() + output.side_bytes());
  if (std::any_of(job.recipes.begin(), job.recipes.end(),
                  [](const Recipe& one) { return one.prune.export_masks; })) {
    inputs.mask_bytes = copies * bitmask_bytes(architecture) * uint64_t(spans.blocks_per_span());
    inputs.output_bytes += copies * left.blocks.size() * bitmask_bytes(architecture);
  }
  const RecordBytes records = record_bytes(architecture, job.recipes);
  inputs.report_bytes = records.ram;
  inputs.journal_bytes = records.journal;
  if (left.scores_units) {
    const ResidentBudget scoring =
        unit_saliency_budget(model, inputs.seqlen, recipe.resources, device, job.process_bytes);
    inputs.scoring_ram = scoring.ram;
    inputs.scoring_device = scoring.device;
    inputs.scoring_refusal = unit_saliency_refusal(scoring);
  }
  set_ram_limit(recipe.resources, job.process_bytes, inputs);
  inputs.devices = machine.num_devices();
  inputs.codec_threads = machine.codec_threads();
  set_device_limit(recipe.resources, machine, inputs);
  set_disk_limits(recipe.resources, output.path(), scratch, left.scratch_bytes, inputs);
  inputs.input_bytes = model.checkpoint.total_bytes();
  inputs.input_place = fs::absolute(model.checkpoint.directory()).string();
  inputs.input_free_bytes = fs::space(inputs.input_place).available;
  return inputs;
}

void measure_rates(const SourceModel& model, Machine& machine, const fs::path& scratch,
                   const RunPlan& unmeasured, PlanInputs& inputs) {
  if (!inputs.resources().probe) return;
  const auto reconstructs = std::find_if(
      inputs.recipes.begin(), inputs.recipes.end(),
      [](const Recipe& recipe) { return recipe.reconstruct.window.kind != WindowKind::kNone; });
  const Recipe& recipe =
      reconstructs == inputs.recipes.end() ? inputs.recipes.front() : *reconstructs;
  const Architecture& architecture = model.architecture;
  // A rehearsal holds a part of what the run holds, and shall not be its peak; half of the room
  // would refuse the narrow ones.
  const uint64_t planned = unmeasured.ram.bytes();
  const uint64_t left = planned - std::min(planned, inputs.process_bytes);
  RehearsalLimits limits;
  // A slice that fills a GPU is larger than one that a processor takes half a second for.
  limits.bytes = inputs.is_host ? std::min(limits.bytes, left * 17 / 20)
                                : std::min(8 * limits.bytes, inputs.device_limit * 17 / 20);
  std::vector<StageFactors> passes;
  const auto rehearse_once = [&] {
    machine.device().executor().run([&] {
      try {
        const auto more = rehearse(machine.device(), architecture, recipe, inputs.windows,
                                   inputs.seqlen, inputs.rates, limits);
        passes.insert(passes.end(), more.begin(), more.end());
      } catch (const std::exception&) {
        // An estimate without it is worse, and no reason to refuse the run.
      }
    });
    release_free_memory();
  };
  machine.device().executor().run([&] {
    const Device& device = machine.device();
    probe_compute(device, architecture, device.compute_dtype(scalar_type(architecture.dtype)),
                  inputs.seqlen, limits.bytes, inputs.rates);
  });
  rehearse_once();
  probe_new_memory(std::min(kMostNewMemory, left / 2), inputs.rates);
  // An engine of its own: what a probe reads is not what the run reads.
  const std::unique_ptr<IoEngine> engine = make_io_engine({});
  probe_disk(model.checkpoint, nearest_existing(scratch), unmeasured.scratch.bytes() / 4, *engine,
             inputs.rates);
  probe_codec({inputs.windows, inputs.seqlen, architecture.hidden, architecture.dtype},
              machine.device().chunk_layout(), inputs.rates);
  rehearse_once();  // again, some seconds later: slow moments of a shared machine last that long
  inputs.rates.corrections = corrections_of(passes);
  machine.device().forget_work();
}

}  // namespace coppice
