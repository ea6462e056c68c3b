// How a pruned model is retrained as a whole.
#pragma once

#include "stages/reconstruct_options.h"

namespace coppice {

/// Source: "PERP: Rethinking the Prune-Retrain Paradigm in the Era of LLMs", arXiv:2312.15230
/// (MaskLoRA); adapters: arXiv:2106.09685.
struct RetrainOptions {
  int rank = 16;      // of every adapter
  double alpha = 32;  // an adapter weighs alpha / rank
  /// Epochs, batch size, rate and warm-up, hold-out, shuffle, biases and norms, seed: as where a
  /// window is reconstructed. The rest has no meaning here.
  ReconstructOptions training;
};

}  // namespace coppice
