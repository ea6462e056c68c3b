// The one table of a recipe's keys: a new option is a member of some Options struct and a row here.
#include <fmt/format.h>

#include <iterator>
#include <utility>

#include "configs/recipe.h"
#include "configs/value_form.h"

namespace coppice {
namespace {

enum class Effect { kChangesOutput, kChangesOnlyCost };

/// The key stands for `recipe.*options.*member`.
template <typename T, typename Options>
RecipeKey make_key(std::string section, std::string name, const std::string& help,
                   ValueForm<T> form, Options Recipe::*options, T Options::*member,
                   Effect effect = Effect::kChangesOutput) {
  RecipeKey key;
  key.section = std::move(section);
  key.name = std::move(name);
  key.changes_output = effect == Effect::kChangesOutput;
  key.set = [=](Recipe& recipe, const std::string& text) {
    recipe.*options.*member = form.read(text);
  };
  key.get = [=](const Recipe& recipe) { return form.print(recipe.*options.*member); };
  const Recipe defaults;
  const std::string fallback = key.get(defaults);
  key.help = fmt::format("{} [default: {}]", help, fallback.empty() ? "none" : fallback);
  return key;
}

RecipeKey as_list(RecipeKey key) {
  key.is_list = true;
  key.help += " (separated by commas; ,, is a comma within a pattern)";
  return key;
}

RecipeKey with_flag(RecipeKey key, std::string flag) {
  key.flag_override = std::move(flag);
  return key;
}

ValueForm<double> fraction() {
  return real_number([](double x) { return x >= 0 && x < 1; }, "at least 0 and less than 1");
}

std::vector<RecipeKey> prune_keys() {
  return {
      with_flag(
          make_key("prune", "method",
                   "how weights are scored: random, magnitude, wanda, ria or sparsegpt; given: "
                   "--masks decides; random_sp, magnitude_sp, wanda_sp, flap and snip remove "
                   "neurons and heads; similarity removes layers",
                   one_of<PruneMethod>({{"random", PruneMethod::kRandom},
                                        {"magnitude", PruneMethod::kMagnitude},
                                        {"wanda", PruneMethod::kWanda},
                                        {"ria", PruneMethod::kRia},
                                        {"sparsegpt", PruneMethod::kSparseGpt},
                                        {"given", PruneMethod::kGiven},
                                        {"random_sp", PruneMethod::kRandomSp},
                                        {"magnitude_sp", PruneMethod::kMagnitudeSp},
                                        {"wanda_sp", PruneMethod::kWandaSp},
                                        {"flap", PruneMethod::kFlap},
                                        {"snip", PruneMethod::kSnip},
                                        {"similarity", PruneMethod::kSimilarity}}),
                   &Recipe::prune, &PruneOptions::method),
          "--prune-method"),
      make_key("prune", "sparsity",
               "fraction of the targeted weights that become zero; follows from N:M", fraction(),
               &Recipe::prune, &PruneOptions::sparsity),
      as_list(make_key("prune", "block_sparsities",
                       "fraction of zeros of each block, from the first to the last",
                       sparsity_list(), &Recipe::prune, &PruneOptions::block_sparsities)),
      as_list(make_key("prune", "sparsity_map",
                       "PATTERN=FRACTION of linears with a sparsity of their own; the first that "
                       "matches",
                       sparsity_rules(), &Recipe::prune, &PruneOptions::sparsity_map)),
      make_key("prune", "allocation",
               "how sparsity is spread over the blocks: uniform; owl (blocks with more outliers "
               "keep more; a dense pass before the run measures them); of methods that remove "
               "units: global (scores are ranked over the whole model), or measured (trials of "
               "every half-block before the run tell what the model misses)",
               one_of<Allocation>({{"uniform", Allocation::kUniform},
                                   {"owl", Allocation::kOwl},
                                   {"global", Allocation::kGlobal},
                                   {"measured", Allocation::kMeasured}}),
               &Recipe::prune, &PruneOptions::allocation),
      make_key("prune", "owl_m", "of owl: an outlier's score is above so many times the mean",
               real_number([](double x) { return x > 1; }, "greater than 1"), &Recipe::prune,
               &PruneOptions::owl_m),
      make_key("prune", "owl_lambda", "of owl: the sparsities of the blocks lie within twice this",
               real_number([](double x) { return x > 0 && x < 0.5; }, "between 0 and 0.5"),
               &Recipe::prune, &PruneOptions::owl_lambda),
      make_key("prune", "sparsity_type",
               "unstructured, or N:M: N weights kept of every M along a row", sparsity_pattern(),
               &Recipe::prune, &PruneOptions::pattern),
      make_key("prune", "comparison",
               "within what scores are compared: row, matrix, or auto (matrix for ria, else row)",
               one_of<Comparison>({{"auto", Comparison::kAuto},
                                   {"row", Comparison::kRow},
                                   {"matrix", Comparison::kMatrix}}),
               &Recipe::prune, &PruneOptions::comparison),
      make_key("prune", "statistics",
               "whose activations scores are taken from: dense, propagated (of the pruned model "
               "so far), or auto (dense under dense propagation, else propagated)",
               one_of<StatisticsOf>({{"auto", StatisticsOf::kAuto},
                                     {"dense", StatisticsOf::kDense},
                                     {"propagated", StatisticsOf::kPropagated}}),
               &Recipe::prune, &PruneOptions::statistics),
      make_key("prune", "ffn_sparsity",
               "of methods that remove units: fraction of the neurons of each MLP", fraction(),
               &Recipe::prune, &PruneOptions::ffn_sparsity),
      make_key("prune", "head_sparsity",
               "of methods that remove units: fraction of the query heads of each block",
               fraction(), &Recipe::prune, &PruneOptions::head_sparsity),
      make_key("prune", "unit_sparsity",
               "of allocation global and measured: fraction of the parameters of all neurons and "
               "heads together, instead of ffn_sparsity and head_sparsity",
               fraction(), &Recipe::prune, &PruneOptions::unit_sparsity),
      make_key("prune", "layer_sparsity", "of similarity: fraction of the layers that go",
               fraction(), &Recipe::prune, &PruneOptions::layer_sparsity),
      make_key("prune", "layer_units",
               "of similarity: what a layer is: blocks, sublayers (attention or MLP), attention, "
               "or mlp",
               one_of<LayerUnits>({{"blocks", LayerUnits::kBlocks},
                                   {"sublayers", LayerUnits::kSublayers},
                                   {"attention", LayerUnits::kAttention},
                                   {"mlp", LayerUnits::kMlp}}),
               &Recipe::prune, &PruneOptions::layer_units),
      make_key(
          "prune", "head_units",
          "which heads go together: query (any), balanced (as many of each key-value head), or "
          "group (key-value heads with all that share them)",
          one_of<HeadUnits>({{"query", HeadUnits::kQuery},
                             {"balanced", HeadUnits::kBalanced},
                             {"group", HeadUnits::kGroup}}),
          &Recipe::prune, &PruneOptions::head_units),
      make_key("prune", "structured_output",
               "what was removed is masked (zeros, shapes as before) or sliced (cut out: smaller "
               "and faster, sizes in config.json)",
               one_of<bool>({{"masked", false}, {"sliced", true}}), &Recipe::prune,
               &PruneOptions::is_sliced),
      as_list(make_key("prune", "targets",
                       "linears to prune, by name or re: pattern; none means all of the blocks",
                       name_list(), &Recipe::prune, &PruneOptions::targets)),
      as_list(make_key("prune", "ignore", "linears to leave alone, by name or re: pattern",
                       name_list(), &Recipe::prune, &PruneOptions::ignore)),
      make_key("prune", "masks",
               "a directory whose masks decide instead of scores: bitmasks of an earlier run, or "
               "any checkpoint of this shape, by its zeros",
               path_text(), &Recipe::prune, &PruneOptions::masks),
      make_key("prune", "export_masks", "write the masks beside the checkpoint, as bitmasks",
               true_or_false(), &Recipe::prune, &PruneOptions::export_masks),
  };
}

std::vector<RecipeKey> reconstruct_keys() {
  return {
      make_key("reconstruct", "window",
               "what is reconstructed at once: matrix, half-block, block, a number of blocks, or "
               "none (prune only)",
               window_form(), &Recipe::reconstruct, &ReconstructOptions::window),
      make_key("reconstruct", "propagation",
               "whose activations enter a window and are compared with: dense (the dense model's), "
               "sparse (the pruned model's, the dense window's on them), or mixed (the pruned "
               "model's, the dense model's)",
               one_of<Propagation>({{"dense", Propagation::kDense},
                                    {"sparse", Propagation::kSparse},
                                    {"mixed", Propagation::kMixed}}),
               &Recipe::reconstruct, &ReconstructOptions::propagation),
      make_key("reconstruct", "loss",
               "distance to the dense window's output: mse, mse_normalized (by the target token's "
               "norm), or cosine",
               one_of<Loss>({{"mse", Loss::kMse},
                             {"mse_normalized", Loss::kMseNormalized},
                             {"cosine", Loss::kCosine}}),
               &Recipe::reconstruct, &ReconstructOptions::loss),
      make_key("reconstruct", "solver",
               "adamw; least_squares (each row on its own, no training); of methods that remove "
               "units: liar (folds them into what stays, no training) or bias (their mean alone, "
               "into the bias); least_squares+adamw, liar+adamw: training starts there",
               one_of<Solver>({{"adamw", Solver::kAdamW},
                               {"least_squares", Solver::kLeastSquares},
                               {"least_squares+adamw", Solver::kLeastSquaresAdamW},
                               {"bias", Solver::kBias},
                               {"liar", Solver::kLiar},
                               {"liar+adamw", Solver::kLiarAdamW}}),
               &Recipe::reconstruct, &ReconstructOptions::solver),
      make_key("reconstruct", "ridge",
               "of least squares and liar: pull towards the weights as they were, as a share of "
               "the mean square of an input; auto, and by itself for liar: the best of some by the "
               "held-out windows",
               positive_or_auto(), &Recipe::reconstruct, &ReconstructOptions::ridge),
      make_key("reconstruct", "epochs", "passes over the training windows", whole_number(1),
               &Recipe::reconstruct, &ReconstructOptions::epochs),
      make_key("reconstruct", "batch_size", "sequences per optimiser step", whole_number(1),
               &Recipe::reconstruct, &ReconstructOptions::batch_size),
      make_key("reconstruct", "lr",
               "peak learning rate, small models want about 1e-3; auto: a few are tried on the "
               "first, middle and last block before the run",
               positive_or_auto(), &Recipe::reconstruct, &ReconstructOptions::lr),
      make_key("reconstruct", "warmup", "share of the steps with a growing rate", fraction(),
               &Recipe::reconstruct, &ReconstructOptions::warmup),
      make_key(
          "reconstruct", "validation_fraction",
          "share of the windows held out to judge the result, at least one window; 0, and by "
          "itself, where nothing is judged",
          real_number([](double x) { return x >= 0 && x <= 0.5; }, "at least 0 and at most 0.5"),
          &Recipe::reconstruct, &ReconstructOptions::validation_fraction),
      make_key("reconstruct", "shuffle", "another order of the training windows in each epoch",
               true_or_false(), &Recipe::reconstruct, &ReconstructOptions::shuffle),
      make_key("reconstruct", "add_biases",
               "write biases where the model's class has a place for them and this checkpoint none "
               "(attention_bias, mlp_bias of config.json, say); liar and bias use them",
               true_or_false(), &Recipe::reconstruct, &ReconstructOptions::add_biases),
      make_key("reconstruct", "train_biases", "adapt biases along with the kept weights",
               true_or_false(), &Recipe::reconstruct, &ReconstructOptions::train_biases),
      make_key("reconstruct", "train_norms", "adapt norms along with the kept weights",
               true_or_false(), &Recipe::reconstruct, &ReconstructOptions::train_norms),
  };
}

RecipeKey seed_key() {
  RecipeKey key =
      make_key("calibration", "seed", "of whatever is drawn: windows, their order, random scores",
               seed_number(), &Recipe::calibration, &CalibrationOptions::seed);
  // One seed for a run: random scores and the order of training follow the same key.
  key.set = [set = key.set](Recipe& recipe, const std::string& text) {
    set(recipe, text);
    recipe.prune.seed = recipe.reconstruct.seed = recipe.calibration.seed;
  };
  return key;
}

std::vector<RecipeKey> calibration_keys() {
  return {
      make_key("calibration", "nsamples", "windows of calibration text", whole_number(1),
               &Recipe::calibration, &CalibrationOptions::nsamples),
      make_key("calibration", "seqlen", "tokens per window", whole_number(2), &Recipe::calibration,
               &CalibrationOptions::seqlen),
      seed_key(),
      make_key("calibration", "sample_windows",
               "draw the windows by seed instead of taking the first", true_or_false(),
               &Recipe::calibration, &CalibrationOptions::sample_windows),
  };
}

std::vector<RecipeKey> arithmetic_keys() {
  return {
      // What of it changes bits is in the fingerprint by itself (Device::numerics); how many there
      // are does not.
      make_key("resources", "device", "auto, cpu or cuda:N; cuda:0,cuda:1: blocks go to either",
               device_name(), &Recipe::resources, &ResourceOptions::device,
               Effect::kChangesOnlyCost),
      make_key("resources", "compute_dtype", "of products and activations: auto, fp32 or bf16",
               one_of<std::string>({{"auto", "auto"}, {"fp32", "fp32"}, {"bf16", "bf16"}}),
               &Recipe::resources, &ResourceOptions::compute_dtype),
      make_key("resources", "threads", "inside an operation; 0 means all cores", whole_number(0),
               &Recipe::resources, &ResourceOptions::threads),
  };
}

std::vector<RecipeKey> budget_keys() {
  const Effect effect = Effect::kChangesOnlyCost;
  return {
      make_key("resources", "io_engine", "auto, uring or pread",
               one_of<std::string>({{"auto", "auto"}, {"uring", "uring"}, {"pread", "pread"}}),
               &Recipe::resources, &ResourceOptions::io_engine, effect),
      make_key("resources", "ram_budget", "peak memory of the whole process, as in 24GiB",
               byte_budget(), &Recipe::resources, &ResourceOptions::ram_budget_bytes, effect),
      make_key("resources", "vram_budget", "peak memory on the device, as in 24GiB", byte_budget(),
               &Recipe::resources, &ResourceOptions::vram_budget_bytes, effect),
      make_key("resources", "disk_budget", "scratch space on disk, as in 500GiB", byte_budget(),
               &Recipe::resources, &ResourceOptions::disk_budget_bytes, effect),
      make_key("resources", "prefetch_blocks",
               "blocks in memory at once; 0: two, or one where the budget wants it",
               whole_number(0), &Recipe::resources, &ResourceOptions::prefetch_blocks, effect),
      make_key("resources", "slab_size", "bytes of one staging buffer, a multiple of 4KiB",
               byte_multiple(4096), &Recipe::resources, &ResourceOptions::slab_bytes, effect),
      make_key("resources", "num_slabs", "staging buffers", whole_number(1), &Recipe::resources,
               &ResourceOptions::num_slabs, effect),
      make_key("resources", "disk_wait",
               "seconds to wait for room on a full disk before ending, to be resumed",
               whole_number(0), &Recipe::resources, &ResourceOptions::disk_wait_seconds, effect),
      make_key("resources", "half_block_targets",
               "hidden states inside a block: cached, recomputed, or auto (what is cheaper)",
               one_of<std::string>(
                   {{"auto", "auto"}, {"cached", "cached"}, {"recomputed", "recomputed"}}),
               &Recipe::resources, &ResourceOptions::half_block_targets, effect),
      make_key("resources", "probe",
               "measure disk, codec and products for a few seconds, to tell the time a run takes",
               true_or_false(), &Recipe::resources, &ResourceOptions::probe, effect),
  };
}

}  // namespace

const std::vector<RecipeKey>& recipe_keys() {
  static const std::vector<RecipeKey> kKeys = [] {
    std::vector<RecipeKey> keys;
    for (auto make :
         {prune_keys, reconstruct_keys, calibration_keys, arithmetic_keys, budget_keys}) {
      std::vector<RecipeKey> more = make();
      std::move(more.begin(), more.end(), std::back_inserter(keys));
    }
    return keys;
  }();
  return kKeys;
}

}  // namespace coppice
