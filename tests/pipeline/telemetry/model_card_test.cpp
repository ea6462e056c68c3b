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

json linear(double sparsity, int weights = 100) {
  return {{"name", "q"}, {"sparsity", sparsity}, {"weights", weights}};
}

json report() {
  return {{"version", "0.1.0"},
          {"command", "coppice run --model dense -o out"},
          {"model", {{"path", "models/dense"}}},
          {"calibration", {{"nsamples", 128}, {"seqlen", 512}, {"tokens", 65536}}},
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

TEST(ModelCard, CountsWeightsAndNotLinears) {
  json unequal = report();
  unequal["blocks"] = {{{"linears", {linear(0.25, 300), linear(1, 100)}}}};
  EXPECT_THAT(model_card(unequal, ""), HasSubstr("\n43.8 % of the weights"));
}

TEST(ModelCard, UnitsThatWereCutOutAreNoZeros) {
  json cut = report();
  cut["recipe"]["prune"] = {
      {"method", "flap"}, {"sparsity_type", "unstructured"}, {"structured_output", "sliced"}};
  const std::string card = model_card(cut, "");
  EXPECT_THAT(card,
              AllOf(HasSubstr("\n50.0 % of the weights of the 3 pruned matrices, averaged "
                              "over them, are cut out (flap whole neurons and heads)"),
                    HasSubstr("Embeddings, norms and the head are not pruned"),
                    HasSubstr("Removed neurons and heads are cut out"), Not(HasSubstr("zero"))));
  EXPECT_THAT(front_matter(card), Not(HasSubstr("sparse")));
  cut["recipe"]["prune"]["structured_output"] = "masked";
  EXPECT_THAT(model_card(cut, ""),
              AllOf(HasSubstr("are exactly zero (flap whole neurons and heads)"),
                    HasSubstr("\n- sparse\n"), HasSubstr("The zeros are stored")));
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

json retrained_report(const char* kept, const char* fallback, int zeros = 50) {
  return {{"version", "0.1.0"},
          {"command", "coppice retrain --model pruned -o out"},
          {"model", {{"path", "models/pruned"}}},
          {"recipe", {{"retrain", {{"rank", 16}, {"lora_alpha", 32.0}}}}},
          {"retrain",
           {{"kept", kept},
            {"fallback", fallback},
            {"zeros", zeros},
            {"weights", 80},
            {"matrices", 14},
            {"tokens_seen", 4096},
            {"validation_pruned", 3.5},
            {"validation_retrained", 3.25}}}};
}

TEST(ModelCard, CountsTheTokensOfSequencesThatAreShorterThanAWindow) {
  json sentences = report();
  sentences["calibration"] = {{"nsamples", 256}, {"seqlen", 128}, {"tokens", 3481}};
  EXPECT_THAT(model_card(sentences, ""),
              HasSubstr("Calibration: 256 sequences of at most 128 tokens, 3481 tokens together."));
}

TEST(RetrainedCard, TellsTheZerosAndWhatTrainingBrought) {
  const std::string card = retrained_card(retrained_report("retrained", ""), "");
  EXPECT_EQ(front_matter(card),
            "base_model: models/pruned\ntags:\n- pruned\n- sparse\n- coppice\n");
  EXPECT_THAT(card, AllOf(HasSubstr("62.5 % of the weights of the 14 linears"),
                          HasSubstr("retrained on 4096 tokens"), HasSubstr("3.2500 nats"),
                          HasSubstr("coppice retrain --model pruned -o out"),
                          HasSubstr("as large as the dense one")));
}

TEST(RetrainedCard, SaysWhereTheWeightsAreThoseOfThePrunedModel) {
  const std::string card = retrained_card(retrained_report("pruned", "it got worse"), "");
  EXPECT_THAT(card, HasSubstr("Retraining brought nothing (it got worse)"));
}

TEST(RetrainedCard, OfAModelThatWasCutTellsOfNoZeros) {
  const std::string card = retrained_card(retrained_report("retrained", "", /*zeros=*/0), "");
  EXPECT_THAT(card, AllOf(HasSubstr("The 14 linears of the blocks are dense, as they were in "
                                    "models/pruned"),
                          HasSubstr("They were retrained on 4096 tokens"),
                          HasSubstr("as large as models/pruned and loads like it"),
                          Not(HasSubstr("zero")), Not(HasSubstr("the dense one"))));
  EXPECT_THAT(front_matter(card), Not(HasSubstr("sparse")));
}

TEST(ModelCard, SaysWhatTheWeightsWereStoredAs) {
  json of_fp8 = report();
  const std::string note = "weights were FP8 with block scales; written as bf16";
  of_fp8["model"]["note"] = note;
  EXPECT_THAT(model_card(of_fp8, ""), HasSubstr("Of models/dense: " + note));
  EXPECT_THAT(model_card(report(), ""), Not(HasSubstr("FP8")));
}

TEST(ModelCard, LayersThatWentAreSaidToBeZeroOrCutOut) {
  json layers = report();
  layers["recipe"]["prune"] = {{"method", "similarity"}, {"sparsity_type", "unstructured"}};
  EXPECT_THAT(model_card(layers, ""),
              AllOf(HasSubstr("similarity whole layers"), HasSubstr("The zeros are stored")));
  layers["recipe"]["prune"]["structured_output"] = "sliced";
  EXPECT_THAT(
      model_card(layers, ""),
      AllOf(HasSubstr("\n3 matrices went with the blocks that were removed (similarity "
                      "whole layers). Embeddings, the head and the other blocks are not "
                      "pruned."),
            HasSubstr("Removed blocks are cut out, norms and all"), Not(HasSubstr("neurons")),
            Not(HasSubstr("zero")), Not(HasSubstr("norms and the head are not"))));
}

}  // namespace
}  // namespace coppice
