#include "pipeline/commands/command.h"

namespace coppice {

const std::vector<Command>& commands() {
  static const std::vector<Command> kAll = {
      {"run", "prune a checkpoint and reconstruct it window by window", run_command},
      {"sweep", "several recipes in one dense pass, the best by held-out text", sweep_command},
      {"plan", "what will a run take: memory, disk, time, and what bounds it?", plan_command},
      {"retrain", "masked LoRA retraining of a pruned checkpoint that fits in memory",
       retrain_command},
      {"eval", "perplexity of a checkpoint, out of core", eval_command},
      {"inspect", "what is in this checkpoint?", inspect_command},
  };
  return kAll;
}

}  // namespace coppice
