#include "configs/recipe.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <set>

#include "configs/errors.h"
#include "storage/errors.h"
#include "tests/support/temp_dir.h"

namespace coppice {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using ::testing::ThrowsMessage;

class RecipeFile {
 public:
  explicit RecipeFile(const std::string& text) { std::ofstream(path()) << text; }
  std::filesystem::path path() const { return directory_ / "recipe.yaml"; }

 private:
  testing::TempDir directory_;
};

Recipe recipe_of(const std::string& text) {
  Recipe recipe;
  read_recipe(RecipeFile(text).path(), recipe);
  return recipe;
}

auto reading(const std::string& text) {
  return [text] { recipe_of(text); };
}

// Every key away from its default, so that a key that is not written or read shows.
Recipe unusual_recipe() {
  Recipe recipe;
  for (const auto& [key, text] : std::vector<std::pair<std::string, std::string>>{
           {"prune.method", "magnitude"},
           {"prune.sparsity", "0.30000000000000004"},
           {"prune.block_sparsities", "0.25,0.30000000000000004"},
           {"prune.sparsity_map", "re:.*\\.[0-9]{1,,2}\\.mlp=0.1,a=b=0.75"},
           {"prune.allocation", "owl"},
           {"prune.owl_m", "7"},
           {"prune.owl_lambda", "0.15"},
           {"prune.sparsity_type", "3:8"},
           {"prune.comparison", "matrix"},
           {"prune.ffn_sparsity", "0.125"},
           {"prune.head_sparsity", "0.375"},
           {"prune.head_units", "group"},
           {"prune.structured_output", "sliced"},
           {"prune.targets", "re:.*\\.[0-9]{1,,2}\\.mlp,it's \"odd\": # &x,null"},
           {"prune.ignore", ""},
           {"prune.statistics", "propagated"},
           {"prune.masks", "runs/some, where"},
           {"prune.export_masks", "true"},
           {"reconstruct.window", "3"},
           {"reconstruct.propagation", "mixed"},
           {"reconstruct.loss", "cosine"},
           {"reconstruct.solver", "least_squares+adamw"},
           {"reconstruct.ridge", "0.1"},
           {"reconstruct.epochs", "7"},
           {"reconstruct.batch_size", "3"},
           {"reconstruct.lr", "1.2345678901234567e-05"},
           {"reconstruct.warmup", "0"},
           {"prune.unit_sparsity", "0.3"},
           {"prune.layer_sparsity", "0.2"},
           {"prune.layer_units", "mlp"},
           {"reconstruct.validation_fraction", "0.3333333333333333"},
           {"reconstruct.shuffle", "true"},
           {"reconstruct.add_biases", "true"},
           {"reconstruct.train_biases", "false"},
           {"reconstruct.train_norms", "false"},
           {"calibration.nsamples", "5"},
           {"calibration.seqlen", "17"},
           {"calibration.seed", "18446744073709551615"},
           {"calibration.sample_windows", "true"},
           {"resources.device", "cuda:3"},
           {"resources.compute_dtype", "bf16"},
           {"resources.threads", "2"},
           {"resources.io_engine", "pread"},
           {"resources.ram_budget", "24GiB"},
           {"resources.vram_budget", "24GB"},
           {"resources.disk_budget", "1"},
           {"resources.prefetch_blocks", "4"},
           {"resources.slab_size", "4096"},
           {"resources.num_slabs", "9"},
           {"resources.disk_wait", "5"},
           {"resources.half_block_targets", "recomputed"},
           {"resources.probe", "false"},
       }) {
    set_recipe_key(recipe, key, text);
  }
  return recipe;
}

TEST(Recipe, WrittenRecipeReadsBackTheSame) {
  const Recipe recipe = unusual_recipe();
  const Recipe same = recipe_of(write_recipe(recipe));
  for (const RecipeKey& key : recipe_keys()) {
    EXPECT_EQ(key.get(same), key.get(recipe)) << key.path();
  }
  EXPECT_EQ(write_recipe(same), write_recipe(recipe));
}

TEST(Recipe, UnusualRecipeOfThisTestLeavesNoKeyAtItsDefault) {
  const Recipe recipe = unusual_recipe();
  const Recipe defaults;
  for (const RecipeKey& key : recipe_keys()) {
    EXPECT_NE(key.get(recipe), key.get(defaults)) << key.path();
  }
}

TEST(Recipe, SetReachesTheMemberThatTheKeyNames) {
  const Recipe recipe = unusual_recipe();
  EXPECT_EQ(recipe.prune.method, PruneMethod::kMagnitude);
  EXPECT_EQ(recipe.prune.sparsity, 0.30000000000000004);
  EXPECT_EQ(recipe.prune.pattern.num_kept, 3);
  EXPECT_EQ(recipe.prune.pattern.group_size, 8);
  EXPECT_EQ(recipe.prune.comparison, Comparison::kMatrix);
  EXPECT_THAT(recipe.prune.targets,
              ElementsAre("re:.*\\.[0-9]{1,2}\\.mlp", "it's \"odd\": # &x", "null"));
  EXPECT_THAT(recipe.prune.ignore, IsEmpty());
  EXPECT_EQ(recipe.reconstruct.window, (Window{WindowKind::kBlock, 3}));
  EXPECT_EQ(recipe.reconstruct.epochs, 7);
  EXPECT_EQ(recipe.reconstruct.batch_size, 3);
  EXPECT_EQ(recipe.reconstruct.lr, 1.2345678901234567e-05);
  EXPECT_EQ(recipe.reconstruct.warmup, 0);
  EXPECT_EQ(recipe.reconstruct.validation_fraction, 0.3333333333333333);
  EXPECT_TRUE(recipe.reconstruct.shuffle);
  EXPECT_FALSE(recipe.reconstruct.train_biases);
  EXPECT_FALSE(recipe.reconstruct.train_norms);
  EXPECT_EQ(recipe.calibration.nsamples, 5);
  EXPECT_EQ(recipe.calibration.seqlen, 17);
  EXPECT_TRUE(recipe.calibration.sample_windows);
  EXPECT_EQ(recipe.resources.device, "cuda:3");
  EXPECT_EQ(recipe.resources.compute_dtype, "bf16");
  EXPECT_EQ(recipe.resources.threads, 2);
  EXPECT_EQ(recipe.resources.io_engine, "pread");
  EXPECT_EQ(recipe.resources.ram_budget_bytes, uint64_t{24} << 30);
  EXPECT_EQ(recipe.resources.vram_budget_bytes, 24'000'000'000u);
  EXPECT_EQ(recipe.resources.disk_budget_bytes, 1u);
  EXPECT_EQ(recipe.resources.prefetch_blocks, 4);
  EXPECT_EQ(recipe.resources.slab_bytes, 4096u);
  EXPECT_EQ(recipe.resources.num_slabs, 9);
  EXPECT_EQ(recipe.resources.disk_wait_seconds, 5);
  EXPECT_EQ(recipe.resources.half_block_targets, "recomputed");
  EXPECT_FALSE(recipe.resources.probe);
}

TEST(Recipe, OneSeedServesCalibrationAndReconstruction) {
  const Recipe recipe = recipe_of("calibration: {seed: 41}\n");
  EXPECT_EQ(recipe.calibration.seed, 41u);
  EXPECT_EQ(recipe.reconstruct.seed, 41u);
}

TEST(Recipe, FileChangesOnlyWhatItNamesAndSaysWhatThatWas) {
  const RecipeFile file("reconstruct:\nprune:\n  sparsity: 0.7\n");
  Recipe recipe = unusual_recipe();
  EXPECT_THAT(read_recipe(file.path(), recipe), ElementsAre("prune.sparsity"));
  EXPECT_EQ(recipe.prune.sparsity, 0.7);
  EXPECT_EQ(recipe.calibration.nsamples, 5);
}

TEST(Recipe, AnErrorLeavesTheRecipeAsItWas) {
  const RecipeFile file("calibration: {nsamples: 3}\nprune: {sparsity: 2}\n");
  Recipe recipe;
  EXPECT_THROW(read_recipe(file.path(), recipe), ConfigError);
  EXPECT_EQ(recipe.calibration.nsamples, 128);
}

TEST(Recipe, EmptyFileIsARecipeOfDefaults) {
  EXPECT_EQ(write_recipe(recipe_of("# nothing\n")), write_recipe(Recipe{}));
}

TEST(Recipe, AbsentFileIsAnIoError) {
  Recipe recipe;
  EXPECT_THROW(read_recipe("no/such/recipe.yaml", recipe), IoError);
}

TEST(Recipe, UnknownKeyNamesLineAndNearestKey) {
  EXPECT_THAT(reading("# three\nprune:\n  method: wanda\n  sparsty: 0.5\n"),
              ThrowsMessage<ConfigError>(EndsWith(
                  "recipe.yaml:4: prune.sparsty: unknown key; did you mean prune.sparsity?")));
}

TEST(Recipe, KeyInTheWrongSectionIsToldTheRightOne) {
  EXPECT_THAT(reading("prune: {lr: 1e-4}\n"),
              ThrowsMessage<ConfigError>(EndsWith("did you mean reconstruct.lr?")));
}

TEST(Recipe, UnknownSectionNamesLineAndNearestSection) {
  EXPECT_THAT(reading("prune:\nresource:\n  threads: 2\n"),
              ThrowsMessage<ConfigError>(
                  EndsWith("recipe.yaml:2: resource: unknown section; did you mean resources?")));
}

TEST(Recipe, WrongValueNamesFileLineKeyValueAndRange) {
  EXPECT_THAT(
      reading("prune:\n  sparsity: 1.5\n"),
      ThrowsMessage<ConfigError>(EndsWith(
          "recipe.yaml:2: prune.sparsity: 1.5: must be a number, at least 0 and less than 1")));
}

struct WrongValue {
  std::string key;
  std::string text;
  std::string advice;
};

void PrintTo(const WrongValue& wrong, std::ostream* out) { *out << wrong.key; }

class RecipeRange : public ::testing::TestWithParam<WrongValue> {};

TEST_P(RecipeRange, RefusesTheValueAndSaysWhatIsRight) {
  const WrongValue& wrong = GetParam();
  Recipe recipe;
  EXPECT_THAT([&] { set_recipe_key(recipe, wrong.key, wrong.text); },
              ThrowsMessage<ConfigError>(
                  AllOf(HasSubstr(wrong.key + ": " + wrong.text + ": "), HasSubstr(wrong.advice))));
}

INSTANTIATE_TEST_SUITE_P(
    Recipe, RecipeRange,
    ::testing::Values(
        WrongValue{"prune.method", "wandaa", "one of random, magnitude, wanda, ria, sparsegpt"},
        WrongValue{"prune.method", "snap", "snip"},
        WrongValue{"prune.sparsity", "1", "less than 1"},
        WrongValue{"prune.comparison", "layer", "one of auto, row, matrix"},
        WrongValue{"prune.block_sparsities", "1", "less than 1"},
        WrongValue{"prune.sparsity_map", "up_proj", "as in re:.*mlp.*=0.6"},
        WrongValue{"reconstruct.window", "half",
                   "one of none, matrix, half-block, block, or a number of blocks"},
        WrongValue{"reconstruct.window", "0", "a number of blocks, at least 1"},
        WrongValue{"reconstruct.propagation", "spares", "one of dense, sparse, mixed"},
        WrongValue{"reconstruct.loss", "mae", "one of mse, mse_normalized, cosine"},
        WrongValue{"reconstruct.solver", "lstsq",
                   "one of adamw, least_squares, least_squares+adamw, bias, liar, liar+adamw"},
        WrongValue{"reconstruct.ridge", "0", "greater than 0"},
        WrongValue{"reconstruct.epochs", "0", "at least 1"},
        WrongValue{"reconstruct.batch_size", "0", "at least 1"},
        WrongValue{"reconstruct.lr", "0", "greater than 0"},
        WrongValue{"reconstruct.warmup", "1", "less than 1"},
        WrongValue{"reconstruct.validation_fraction", "-0.1", "at least 0 and at most 0.5"},
        WrongValue{"reconstruct.validation_fraction", "0.51", "at least 0 and at most 0.5"},
        WrongValue{"reconstruct.shuffle", "1", "one of true, false"},
        WrongValue{"calibration.nsamples", "0", "at least 1"},
        WrongValue{"calibration.seqlen", "1", "at least 2"},
        WrongValue{"calibration.seed", "-1", "from 0 to 2^64 - 1"},
        WrongValue{"resources.device", "gpu", "cuda:0"},
        WrongValue{"resources.compute_dtype", "fp16", "one of auto, fp32, bf16"},
        WrongValue{"resources.threads", "-1", "at least 0"},
        WrongValue{"resources.io_engine", "aio", "one of auto, uring, pread"},
        WrongValue{"resources.ram_budget", "24G", "24GiB"},
        WrongValue{"resources.prefetch_blocks", "-1", "at least 0"},
        WrongValue{"resources.slab_size", "1000", "multiple of 4096"},
        WrongValue{"resources.num_slabs", "0", "at least 1"}));

TEST(Recipe, ListsAndValuesAreNotMistakenForEachOther) {
  EXPECT_THAT(reading("prune: {ignore: lm_head}\n"),
              ThrowsMessage<ConfigError>(HasSubstr("a list is wanted, as in ignore: [lm_head]")));
  EXPECT_THAT(reading("prune: {sparsity: [0.5]}\n"),
              ThrowsMessage<ConfigError>(HasSubstr("one value is wanted, as in sparsity: 0.5")));
  EXPECT_THAT(reading("prune: {sparsity: }\n"),
              ThrowsMessage<ConfigError>(HasSubstr("prune.sparsity: nothing")));
  EXPECT_THAT(reading("prune: [sparsity]\n"),
              ThrowsMessage<ConfigError>(HasSubstr("a section holds keys, as in prune: {method")));
  EXPECT_THAT(reading("- prune\n"), ThrowsMessage<ConfigError>(HasSubstr("sections are wanted")));
}

TEST(Recipe, ListEntriesMayHoldCommasAndMustHoldSomething) {
  EXPECT_THAT(recipe_of("prune: {targets: ['re:a{1,2}', b]}\n").prune.targets,
              ElementsAre("re:a{1,2}", "b"));
  EXPECT_THAT(reading("prune: {targets: [a, '']}\n"),
              ThrowsMessage<ConfigError>(HasSubstr("an entry that is no name")));
  EXPECT_THAT(reading("prune: {targets: [a, ',b']}\n"),
              ThrowsMessage<ConfigError>(HasSubstr("an entry that is no name")));
  EXPECT_THAT(reading("prune: {targets: [a, [b]]}\n"),
              ThrowsMessage<ConfigError>(HasSubstr("an entry that is no name")));
}

TEST(Recipe, TagsAnchorsAndDuplicatesAreRefused) {
  EXPECT_THROW(reading("prune: {sparsity: !!float 0.5}\n")(), ConfigError);
  EXPECT_THROW(reading("prune: &p {sparsity: 0.5}\n")(), ConfigError);
  EXPECT_THROW(reading("prune: {sparsity: 0.5, sparsity: 0.5}\n")(), ConfigError);
}

TEST(Recipe, FlagsAreKebabCaseAndTheMethodSaysOfWhat) {
  std::set<std::string> flags;
  for (const RecipeKey& key : recipe_keys()) flags.insert(key.flag());
  EXPECT_THAT(flags, SizeIs(recipe_keys().size()));  // no two alike
  EXPECT_TRUE(flags.count("--prune-method"));
  EXPECT_TRUE(flags.count("--sparsity-type"));
  EXPECT_TRUE(flags.count("--ram-budget"));
  EXPECT_FALSE(flags.count("--method"));
}

TEST(Recipe, KeysAreSetByFlagOrPath) {
  Recipe recipe;
  set_recipe_key(recipe, "--sparsity-type", "1:4");
  set_recipe_key(recipe, "prune.method", "magnitude");
  EXPECT_EQ(recipe.prune.pattern.group_size, 4);
  EXPECT_EQ(recipe.prune.method, PruneMethod::kMagnitude);
  EXPECT_THAT(
      [&] { set_recipe_key(recipe, "--sparsity-typ", "1:4"); },
      ThrowsMessage<ConfigError>("--sparsity-typ: unknown key; did you mean --sparsity-type?"));
  EXPECT_THAT([&] { set_recipe_key(recipe, "--method", "wanda"); },
              ThrowsMessage<ConfigError>(HasSubstr("did you mean --prune-method?")));
  EXPECT_THAT([&] { set_recipe_key(recipe, "calibration.lr", "1"); },
              ThrowsMessage<ConfigError>(HasSubstr("did you mean reconstruct.lr?")));
}

TEST(Recipe, HelpStatesTheDefault) {
  for (const RecipeKey& key : recipe_keys()) {
    const Recipe defaults;
    const std::string text = key.get(defaults);
    EXPECT_THAT(key.help, HasSubstr("[default: " + (text.empty() ? "none" : text) + "]"));
  }
}

TEST(Recipe, OnlyResourcesMayDifferOnResumeAndNotAllOfThem) {
  std::set<std::string> free;
  for (const RecipeKey& key : recipe_keys()) {
    if (!key.changes_output) free.insert(key.path());
  }
  EXPECT_THAT(free,
              ElementsAre("resources.device", "resources.disk_budget", "resources.disk_wait",
                          "resources.half_block_targets", "resources.io_engine",
                          "resources.num_slabs", "resources.prefetch_blocks", "resources.probe",
                          "resources.ram_budget", "resources.slab_size", "resources.vram_budget"));
}

TEST(Recipe, PatternMakesTheSparsity) {
  Recipe recipe = recipe_of("prune: {sparsity_type: 1:4}\n");
  check_recipe(recipe, {"prune.sparsity_type"});
  EXPECT_EQ(recipe.prune.sparsity, 0.75);
}

TEST(Recipe, SparsityStatedEqualToThePatternIsFine) {
  Recipe recipe = recipe_of("prune: {sparsity_type: 1:3, sparsity: 0.667}\n");
  check_recipe(recipe, {"prune.sparsity", "--sparsity-type"});
  EXPECT_EQ(recipe.prune.sparsity, 1.0 - 1.0 / 3);
}

TEST(Recipe, SparsityStatedAgainstThePatternIsRefused) {
  for (const char* stated : {"prune.sparsity", "--sparsity"}) {
    Recipe recipe = recipe_of("prune: {sparsity_type: 1:4, sparsity: 0.5}\n");
    EXPECT_THAT([&] { check_recipe(recipe, {stated}); },
                ThrowsMessage<ConfigError>(
                    AllOf(HasSubstr("prune.sparsity: 0.5"), HasSubstr("1:4 makes it 0.75"))));
  }
}

TEST(Recipe, ResolvedRecipePassesItsOwnCheck) {
  const RecipeFile file("prune: {sparsity_type: 1:3}\n");
  Recipe recipe;
  check_recipe(recipe, read_recipe(file.path(), recipe));
  const RecipeFile resolved(write_recipe(recipe));
  Recipe same;
  check_recipe(same, read_recipe(resolved.path(), same));
  EXPECT_EQ(write_recipe(same), write_recipe(recipe));
}

TEST(Recipe, OnlyWhatIsJudgedHoldsWindowsOut) {
  Recipe pruned = recipe_of("reconstruct: {window: none}\n");
  Recipe in_sweep = pruned, stated = pruned, reconstructed;
  check_recipe(pruned, {});
  EXPECT_EQ(pruned.reconstruct.validation_fraction, 0);
  check_recipe(stated, {"reconstruct.validation_fraction"});
  check_recipe(in_sweep, {}, JudgedBy::kSweep);
  check_recipe(reconstructed, {});
  for (const Recipe* recipe : {&stated, &in_sweep, &reconstructed}) {
    EXPECT_EQ(recipe->reconstruct.validation_fraction, 0.0625);
  }
  Recipe blind = recipe_of("reconstruct: {validation_fraction: 0}\n");
  EXPECT_THAT([&] { check_recipe(blind, {}); },
              ThrowsMessage<ConfigError>(HasSubstr("nothing would be left to judge by")));
  EXPECT_THAT([&] { check_recipe(pruned, {}, JudgedBy::kSweep); },
              ThrowsMessage<ConfigError>(HasSubstr("nothing would be left to judge by")));
}

TEST(Recipe, ReconstructionNeedsTwoWindows) {
  Recipe recipe = recipe_of("calibration: {nsamples: 1}\n");
  EXPECT_THAT([&] { check_recipe(recipe, {}); },
              ThrowsMessage<ConfigError>(HasSubstr("calibration.nsamples: 1: at least 2")));
  recipe.reconstruct.window = {WindowKind::kNone};
  EXPECT_NO_THROW(check_recipe(recipe, {}));
}

TEST(Recipe, OneBlockIsABlock) {
  EXPECT_EQ(recipe_of("reconstruct: {window: 1}\n").reconstruct.window,
            recipe_of("reconstruct: {window: block}\n").reconstruct.window);
}

TEST(Recipe, PropagatedStatisticsNeedAPropagatedPrefix) {
  Recipe recipe = recipe_of("prune: {statistics: propagated}\n");
  EXPECT_THAT([&] { check_recipe(recipe, {}); },
              ThrowsMessage<ConfigError>(HasSubstr("prune.statistics: propagated")));
  recipe.reconstruct.propagation = Propagation::kSparse;
  EXPECT_NO_THROW(check_recipe(recipe, {}));
}

TEST(Recipe, GivenMasksDecideAlone) {
  Recipe recipe = recipe_of("prune: {masks: runs/pruned}\n");
  check_recipe(recipe, {"prune.masks"});
  EXPECT_EQ(recipe.prune.method, PruneMethod::kGiven);
  recipe = recipe_of("prune: {masks: runs/pruned, method: wanda}\n");
  EXPECT_THAT(
      [&] {
        check_recipe(recipe, {"prune.masks", "prune.method"});
      },
      ThrowsMessage<ConfigError>(HasSubstr("prune.masks: decide instead of scores")));
  recipe = recipe_of("prune: {masks: runs/pruned, sparsity: 0.6}\n");
  EXPECT_THAT(
      [&] {
        check_recipe(recipe, {"prune.masks", "prune.sparsity"});
      },
      ThrowsMessage<ConfigError>(HasSubstr("prune.masks: decide what is pruned")));
}

TEST(Recipe, WrittenRecipeOfGivenMasksIsTakenAgain) {
  Recipe recipe = recipe_of("prune: {masks: runs/pruned}\n");
  check_recipe(recipe, {"prune.masks"});
  const RecipeFile written(write_recipe(recipe));
  Recipe again;
  EXPECT_NO_THROW(check_recipe(again, read_recipe(written.path(), again)));
  EXPECT_EQ(again.prune.method, PruneMethod::kGiven);
}

TEST(Recipe, GivenNeedsMasks) {
  Recipe recipe = recipe_of("prune: {method: given}\n");
  EXPECT_THAT([&] { check_recipe(recipe, {"prune.method"}); },
              ThrowsMessage<ConfigError>(HasSubstr("prune.masks names their directory")));
}

TEST(Recipe, ComparisonIsOfUnstructuredScoresThatCanBeComparedSo) {
  Recipe wanda = recipe_of("prune: {comparison: matrix}\n");
  EXPECT_THAT([&] { check_recipe(wanda, {}); },
              ThrowsMessage<ConfigError>(HasSubstr("prune.comparison: matrix: wanda")));
  Recipe pattern =
      recipe_of("prune: {method: magnitude, comparison: matrix, sparsity_type: 2:4}\n");
  EXPECT_THAT([&] { check_recipe(pattern, {}); },
              ThrowsMessage<ConfigError>(HasSubstr("prune.comparison: sparsity_type 2:4")));
  Recipe swept = recipe_of("prune: {method: sparsegpt, comparison: row}\n");
  EXPECT_THAT([&] { check_recipe(swept, {}); },
              ThrowsMessage<ConfigError>(HasSubstr("prune.comparison: sparsegpt")));
  for (const char* method : {"random", "magnitude", "ria"}) {
    Recipe fine = recipe_of(fmt::format("prune: {{method: {}, comparison: matrix}}\n", method));
    EXPECT_NO_THROW(check_recipe(fine, {})) << method;
  }
}

TEST(Recipe, SparsitiesOfTheirOwnAreLists) {
  const Recipe recipe = recipe_of(
      "prune: {block_sparsities: [0.4, 0.5], sparsity_map: ['re:.*mlp.*=0.6', 'q_proj=0']}\n");
  EXPECT_THAT(recipe.prune.block_sparsities, ElementsAre(0.4, 0.5));
  EXPECT_THAT(recipe.prune.sparsity_map,
              ElementsAre(SparsityRule{"re:.*mlp.*", 0.6}, SparsityRule{"q_proj", 0}));
  Recipe pattern = recipe_of("prune: {sparsity_type: 2:4, sparsity_map: [q_proj=0.4]}\n");
  EXPECT_THAT([&] { check_recipe(pattern, {}); },
              ThrowsMessage<ConfigError>(HasSubstr("prune.sparsity_map: sparsity_type 2:4")));
}

TEST(Recipe, OwlDecidesTheSparsitiesOfBlocksAlone) {
  Recipe fine = recipe_of("prune: {allocation: owl, sparsity_map: [q_proj=0]}\n");
  EXPECT_NO_THROW(check_recipe(fine, {}));
  for (const auto& [text, word] : std::vector<std::pair<std::string, std::string>>{
           {"prune: {allocation: owl, block_sparsities: [0.5]}", "leave them out"},
           {"prune: {allocation: owl, sparsity_type: 2:4}", "sparsity_type 2:4"},
           {"prune: {allocation: owl, masks: there}", "masks that are given"},
           {"prune: {allocation: owl, sparsity: 0.1}", "smaller prune.owl_lambda"},
           {"prune: {allocation: owl, sparsity: 0.9}", "smaller prune.owl_lambda"},
           {"prune: {allocation: owl}\nreconstruct: {propagation: mixed}", "propagation dense"},
       }) {
    Recipe recipe = recipe_of(text + "\n");
    EXPECT_THAT([&] { check_recipe(recipe, {}); }, ThrowsMessage<ConfigError>(HasSubstr(word)))
        << text;
  }
}

TEST(Recipe, ARateIsFoundOnlyWhereOneIsUsed) {
  Recipe fine = recipe_of("reconstruct: {lr: auto}\n");
  EXPECT_NO_THROW(check_recipe(fine, {}));
  EXPECT_EQ(fine.reconstruct.lr, 0);
  for (const auto& [text, word] : std::vector<std::pair<std::string, std::string>>{
           {"{lr: auto, window: none}", "nothing is trained"},
           {"{lr: auto, solver: least_squares}", "nothing is trained"},
           {"{lr: auto, propagation: sparse}", "propagation dense"},
       }) {
    Recipe recipe = recipe_of("reconstruct: " + text + "\n");
    EXPECT_THAT([&] { check_recipe(recipe, {}); }, ThrowsMessage<ConfigError>(HasSubstr(word)))
        << text;
  }
}

TEST(Recipe, EveryRecipeThatComesAlongPassesTheCheck) {
  int num_recipes = 0;
  const std::filesystem::path directory = COPPICE_SOURCE_DIR "/configs/recipes";
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    Recipe recipe;
    EXPECT_NO_THROW(check_recipe(recipe, read_recipe(entry.path(), recipe))) << entry.path();
    ++num_recipes;
  }
  EXPECT_GE(num_recipes, 3);
}

TEST(Recipe, NearestKeyHasTheSmallestEditDistance) {
  EXPECT_EQ(nearest("sparsty", {"seed", "sparsity", "sparsity_type"}), "sparsity");
  EXPECT_EQ(nearest("lr", {"lr"}), "lr");
  EXPECT_EQ(nearest("", {"abc", "a"}), "a");
  EXPECT_EQ(nearest("ab", {"ax", "ay"}), "ax");  // the first of equals
}

TEST(Recipe, UnitsOfBytesArePowersOf1024Or1000) {
  EXPECT_EQ(parse_bytes("auto"), 0u);
  EXPECT_EQ(parse_bytes("1024"), 1024u);
  EXPECT_EQ(parse_bytes("7B"), 7u);
  EXPECT_EQ(parse_bytes("24GiB"), uint64_t{24} << 30);
  EXPECT_EQ(parse_bytes("24GB"), 24'000'000'000u);
  EXPECT_EQ(parse_bytes("512MiB"), uint64_t{512} << 20);
  EXPECT_EQ(parse_bytes("3 KiB"), 3072u);
  EXPECT_EQ(parse_bytes("1.5GiB"), uint64_t{3} << 29);
  EXPECT_EQ(parse_bytes("2TB"), 2'000'000'000'000u);
}

TEST(Recipe, BytesInAnyOtherFormAreToldTheRightOne) {
  for (const char* text : {"", "0", "0GiB", "24G", "24gib", "-1", "GiB", "1e9", "9000000TiB",
                           "1.GiB", "24GiB ", "99999999999999999999"}) {
    EXPECT_THAT([&] { parse_bytes(text); }, ThrowsMessage<ConfigError>(HasSubstr("as in 24GiB")))
        << text;
  }
}

}  // namespace
}  // namespace coppice
