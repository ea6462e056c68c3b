// How the kept weights are adapted. Keys of the recipe's `reconstruct:` section.
#pragma once

#include <cstdint>

namespace coppice {

enum class WindowKind { kNone, kMatrix, kHalfBlock, kBlock };

/// What is reconstructed at once.
struct Window {
  WindowKind kind = WindowKind::kHalfBlock;
  int blocks = 1;  // of kBlock: so many side by side; they travel and are written together
  bool operator==(const Window&) const = default;
};

/// Whether the MLP half is a window of its own, so that what enters it is asked for.
inline bool has_windows_inside_blocks(const Window& window) {
  return window.kind == WindowKind::kHalfBlock || window.kind == WindowKind::kMatrix;
}

/// Whose activations enter a window / what its output is compared with: of the dense model / the
/// same; of the adapted prefix / the dense window on them; of the adapted prefix / the dense model.
enum class Propagation { kDense, kSparse, kMixed };
enum class Loss { kMse, kCosine, kMseNormalized };
/// kLeastSquares fits each row to its own support; kLiar folds removed units into kept ones by the
/// same least squares, in closed form, and kBias their mean alone into the bias. …AdamW: training
/// starts there.
enum class Solver { kAdamW, kLeastSquares, kLeastSquaresAdamW, kBias, kLiar, kLiarAdamW };

/// Source: "A Free Lunch in LLM Compression", arXiv:2510.14444; AdamW: arXiv:1711.05101.
struct ReconstructOptions {
  Window window;
  Propagation propagation = Propagation::kDense;
  Loss loss = Loss::kMse;
  Solver solver = Solver::kAdamW;
  // Of least squares: on the increment, as a share of the mean diagonal; 0: the best of some by
  // the held-out windows.
  double ridge = 0.01;
  int epochs = 1;
  int batch_size = 2;                   // sequences per optimiser step
  double lr = 1e-4;                     // small models want about 1e-3; 0: found by trials
  double warmup = 0.1;                  // share of the steps, linear; then linear decay to 0
  double validation_fraction = 0.0625;  // of the windows, at least one, from the end
  bool shuffle = false;                 // of the training windows, per epoch, by seed
  bool add_biases = false;  // where the model's class has a place for them, and it has none
  bool train_biases = true;
  bool train_norms = true;
  uint64_t seed = 0;
};

/// Whether weights are fitted without training, before any.
inline bool fits(const ReconstructOptions& options) { return options.solver != Solver::kAdamW; }
/// Whether that folds removed units into kept ones, or into the bias.
inline bool folds_units(const ReconstructOptions& options) {
  return options.solver == Solver::kBias || options.solver == Solver::kLiar ||
         options.solver == Solver::kLiarAdamW;
}
inline bool trains_adamw(const ReconstructOptions& options) {
  return options.solver == Solver::kAdamW || options.solver == Solver::kLeastSquaresAdamW ||
         options.solver == Solver::kLiarAdamW;
}

}  // namespace coppice
