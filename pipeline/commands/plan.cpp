// coppice plan: what a run would take, from headers and a few seconds of measuring.
#include <fmt/format.h>
#include <unistd.h>

#include "pipeline/commands/command.h"
#include "pipeline/commands/run_arguments.h"
#include "pipeline/heap.h"  // release_free_memory
#include "pipeline/plan/plan_inputs.h"
#include "pipeline/plan/plan_text.h"
#include "pipeline/run_checks.h"
#include "pipeline/scratch_directory.h"
#include "pipeline/telemetry/json_text.h"
#include "pipeline/telemetry/process.h"   // resident_bytes
#include "pipeline/telemetry/progress.h"  // human_bytes
#include "pipeline/unit_trials_run.h"

namespace coppice {
namespace {

namespace fs = std::filesystem;

// What a run has that this process has not, when it plans: HDF5, hashes and threads, which come
// with the tokens. Measured: 6 MiB, and 2 MiB more in one of 60 processes; what fits here shall not
// be refused there.
constexpr uint64_t kLoadedByRun = uint64_t{10} << 20;

/// As many windows as there will be, which is known without the text; sequences of their own
/// lengths are counted, unless no text is given: then each is taken for one.
int64_t num_windows(const PruneRunOptions& options, const SourceModel& model) {
  const CalibrationOptions& calibration = options.shared().calibration;
  if (!reads_sequences(model.architecture) || options.dataset.empty()) return calibration.nsamples;
  const fs::path directory = fs::temp_directory_path() / fmt::format("coppice-plan-{}", getpid());
  const ScratchDirectory scratch(directory, "the temporary directory");
  return calibration_windows({options.dataset, options.model, directory}, calibration,
                             model.architecture)
      .count();
}

std::string headline(const SourceModel& model, const PlanInputs& inputs, const Machine& machine) {
  return fmt::format("{} blocks of {}, {} of input; {} windows of {} tokens; {}, {}\n\n",
                     model.architecture.num_blocks, model.architecture.family,
                     human_bytes(double(model.checkpoint.total_bytes())), inputs.windows,
                     inputs.seqlen, machine.device_names(), machine.device().description());
}

struct Planned {
  std::string text;
  nlohmann::json json;
  std::exception_ptr refusal;  // null: it fits
};

Planned planned(const PruneRunOptions& options) {
  const Recipe& shared = options.shared();
  PlannedJob job = options.job();
  const SourceModel model = open_source(options);
  TokenWindows no_tokens;  // only their number and length matter
  no_tokens.seqlen = shared.calibration.seqlen;
  for (const Recipe& recipe : job.recipes) {
    check_against_model(recipe, model.architecture, no_tokens);
  }

  Progress progress(options.verbosity);
  Machine machine(
      shared.resources, [&](const std::string& line) { progress.note(line); }, nullptr,
      devices_for(options));
  const std::unique_ptr<MaskSource> masks = open_masks(shared.prune);
  if (masks) masks->check(model.architecture);
  const ModelSpans spans(model, no_tokens, blocks_per_span(job.recipes), masks.get());
  const fs::path here = fs::current_path();
  const OutputDirectory output(options.output.empty() ? here : options.output, model);
  const fs::path scratch = options.work.empty() ? here : options.work;
  const int64_t windows = num_windows(options, model);
  release_free_memory();
  const auto tokens = uint64_t(windows * shared.calibration.seqlen);
  job.process_bytes = resident_bytes() + kLoadedByRun + tokens * sizeof(int32_t);
  PlanInputs inputs = plan_inputs(model, job, spans, windows, machine, output, scratch,
                                  all_work(model.architecture, job));
  try {
    RunPlan plan = plan_run(inputs);  // what does not fit is not worth measuring
    measure_rates(model, machine, scratch, plan, inputs);
    plan = plan_run(inputs);
    return {headline(model, inputs, machine) + plan_text(plan, inputs), plan_json(plan, inputs),
            nullptr};
  } catch (const PlanRefused& refused) {
    return {"", plan_json(refused.smallest(), inputs), std::current_exception()};
  }
}

}  // namespace

int plan_command(const std::vector<std::string>& arguments, const std::string& command_line) {
  const std::optional<RunArguments> given = parse_run_arguments("plan", arguments, command_line);
  if (!given) return 0;
  Planned run = planned(given->options);
  if (const auto trials = unit_trials_run(given->options)) {
    const Planned before = planned(trials->options);
    run.json["trials"] = before.json;
    run.json["fits"] = !run.refusal && !before.refusal;
    run.refusal = with_trials(before.refusal, run.refusal);
    run.text += fmt::format("\nBefore it, {} trials of half-blocks:\n\n{}",
                            trials->options.recipes.size(), before.text);
  }
  if (given->as_json) {
    fmt::print("{}\n", json_text(run.json, 2));  // of what does not fit, too
  } else if (!run.refusal) {
    fmt::print("{}", run.text);
  }
  if (run.refusal) std::rethrow_exception(run.refusal);
  return 0;
}

}  // namespace coppice
