// What a reader of the model is told, and what the dense model's card hands on.
#include "pipeline/telemetry/model_card.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace coppice {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

json linear(double sparsity) { return {{"name", "q"}, {"sparsity", sparsity}}; }

json report() {
  return {{"version", "0.1.0"},
          {"command", "coppice run --model dense -o out"},
          {"model", {{"path", "models/dense"}}},
          {"calibration", {{"nsamples", 128}, {"seqlen", 512}}},
          {"recipe",
           {{"prune", {{"method", "wanda"}, {"sparsity_type", "2:4"}}},
            {"reconstruct", {{"window", "half-block"}, {"solver", "adamw"}}}}},
          {"blocks", {{{"linears", {linear(0.5), linear(0.75)}}}, {{"linears", {linear(0.25)}}}}}};
}

// Between the first line and the next "---".
std::string front_matter(const std::string& card) {
  EXPECT_THAT(card, StartsWith("---\n"));
  return card.substr(4, card.find("\n---\n", 3) - 3);
}

TEST(ModelCard, FrontMatterNamesTheBaseModelAndWhatThisIs) {
  EXPECT_EQ(front_matter(model_card(report(), "")),
            "base_model: models/dense\ntags:\n- pruned\n- sparse\n- coppice\n");
}

TEST(ModelCard, LicenceAndLanguageAreCopiedFromTheBaseCard) {
  const std::string base =
      "---\nlibrary_name: transformers\nlicense: other\nlicense_name: llama3\n"
      "license_link: LICENSE\nlanguage: en\n---\n# Dense\n";
  EXPECT_THAT(front_matter(model_card(report(), base)),
              AllOf(StartsWith("license: other\nlicense_name: llama3\nlicense_link: LICENSE\n"
                               "language: en\nbase_model: "),
                    Not(HasSubstr("library_name"))));
}

TEST(ModelCard, LanguagesAsAListAreCopiedWhole) {
  const std::string base = "---\nlanguage:\n- en\n- de\ntags:\n- chat\nlicense: mit\n---\n";
  EXPECT_THAT(front_matter(model_card(report(), base)),
              AllOf(HasSubstr("language:\n- en\n- de\n"), Not(HasSubstr("chat"))));
}

TEST(ModelCard, TextOfTheBaseCardIsNoFrontMatter) {
  EXPECT_THAT(model_card(report(), "# Dense\n\nlicense: mit\n"), Not(HasSubstr("license")));
  EXPECT_THAT(model_card(report(), "---\ntags: []\n---\nlicense: mit\n"),
              Not(HasSubstr("license")));
}

TEST(ModelCard, SaysWhatWasZeroedAndHow) {
  EXPECT_THAT(model_card(report(), ""),
              AllOf(HasSubstr("\n50.0 % of the weights"), HasSubstr("exactly zero (wanda 2:4)")));
}

TEST(ModelCard, SaysInWhichWindowsWeightsWereAdapted) {
  EXPECT_THAT(model_card(report(), ""), HasSubstr("adapted window by window (half-block, adamw)"));
}

TEST(ModelCard, SaysThatNothingWasReconstructed) {
  json pruned = report();
  pruned["recipe"]["reconstruct"]["window"] = "none";
  EXPECT_THAT(model_card(pruned, ""),
              AllOf(HasSubstr("Reconstruction: none."), Not(HasSubstr("adapted"))));
}

TEST(ModelCard, SaysWhatItWasMadeWith) {
  EXPECT_THAT(model_card(report(), ""),
              AllOf(HasSubstr("128 windows of 512 tokens"), HasSubstr("coppice 0.1.0"),
                    HasSubstr("```\ncoppice run --model dense -o out\n```")));
}

}  // namespace
}  // namespace coppice
