// A recipe: everything that decides the result of a run, and where it may run.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "stages/prune_options.h"
#include "stages/reconstruct_options.h"

namespace coppice {

/// Keys of `calibration:`.
struct CalibrationOptions {
  int nsamples = 128;           // windows
  int seqlen = 2048;            // tokens a window; never taken from max_position_embeddings
  uint64_t seed = 0;            // of sampled windows
  bool sample_windows = false;  // draw windows by seed instead of taking the first
};

/// Keys of `resources:`: where and how fast, never what comes out — except compute_dtype, threads
/// and device, which change bits and are therefore part of a run's fingerprint.
struct ResourceOptions {
  std::string device = "auto";         // auto | cpu | cuda:N; several with commas
  std::string compute_dtype = "auto";  // auto | fp32 | bf16
  int threads = 0;                     // inside an operation; 0: all cores
  std::string io_engine = "auto";      // auto | uring | pread
  uint64_t ram_budget_bytes = 0;       // 0: auto
  uint64_t vram_budget_bytes = 0;
  uint64_t disk_budget_bytes = 0;
  int prefetch_blocks = 0;  // device slots: blocks in memory at once; 0: what the plan chooses
  uint64_t slab_bytes = uint64_t{64} << 20;
  int num_slabs = 8;
  std::string half_block_targets = "auto";  // of half-blocks: auto | cached | recomputed
  int disk_wait_seconds = 3600;  // for room on a full disk, before the run ends and can be resumed
  bool probe = true;  // measure disk, codec and products first, for the time a run will take
};

struct Recipe {
  PruneOptions prune;
  ReconstructOptions reconstruct;
  CalibrationOptions calibration;
  ResourceOptions resources;
};

/// One key of a recipe: the single place that knows its YAML path, its flag, its meaning and its
/// form.
struct RecipeKey {
  std::string section;   // "prune"
  std::string name;      // "sparsity_type"; the flag is "--sparsity-type"
  std::string help;      // with unit and default
  bool changes_output;   // false: may differ when a run is resumed
  bool is_list = false;  // a list in YAML; as text separated by commas (",," is a comma itself)
  std::string flag_override;  // where the name alone says too little: "--prune-method"
  std::function<void(Recipe&, const std::string& text)> set;  // throws ConfigError without location
  std::function<std::string(const Recipe&)> get;              // text that `set` reads back

  std::string flag() const;  // "--sparsity-type"
  std::string path() const;  // "prune.sparsity_type"
};

/// All keys, in the order they are written. calibration.seed serves what is drawn in
/// other sections, too.
const std::vector<RecipeKey>& recipe_keys();

/// By flag or by path; null: there is none.
const RecipeKey* find_recipe_key(const std::string& name);

/// Sets one key by flag name or by "section.name". Throws ConfigError naming the nearest known key.
void set_recipe_key(Recipe& recipe, const std::string& key, const std::string& text);

/// Reads YAML over `recipe`. Unknown sections and keys, tags, anchors and wrong values are
/// ConfigErrors with file, line, key path, value, and what would be right (the nearest known key).
/// An error leaves `recipe` as it was. Returns the paths of the keys that the file sets, for
/// check_recipe. Throws IoError for an absent file.
std::vector<std::string> read_recipe(const std::filesystem::path& path, Recipe& recipe);

/// Who looks at the held-out windows: what a recipe reconstructs, or a sweep, at whole models.
enum class JudgedBy { kItsWindows, kSweep };

/// Checks what no single key can: N:M against sparsity, nsamples ≥ 2 when reconstructing, ….
/// Resolves sparsity from N:M: omitted (not among `keys_set_by_user`, flags or paths) or stated
/// equal. Where nothing is judged, nothing is held out unless that was stated. Throws ConfigError.
void check_recipe(Recipe& recipe, const std::vector<std::string>& keys_set_by_user,
                  JudgedBy judged = JudgedBy::kItsWindows);

/// The resolved recipe as YAML, every key written; `read_recipe` gives the same back.
std::string write_recipe(const Recipe& recipe);

/// The entry of `known` with the smallest edit distance to `word`.
std::string nearest(const std::string& word, const std::vector<std::string>& known);

/// "24GiB" (2^30), "24GB" (10^9), "1.5GiB", "1024" (bytes), "auto" (0; nothing else is 0).
/// Throws ConfigError.
uint64_t parse_bytes(const std::string& text);

}  // namespace coppice
