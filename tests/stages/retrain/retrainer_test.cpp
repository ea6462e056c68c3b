#include "stages/retrain/retrainer.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn_like.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/zeros_like.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "stages/errors.h"
#include "tests/support/tiny_model.h"
#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using testing::counting_text;
using testing::finish;
using ::testing::HasSubstr;
using testing::IsCloseTo;
using ::testing::IsEmpty;
using testing::IsIdenticalTo;
using ::testing::SizeIs;
using testing::tiny_pruned_model;
using testing::tiny_retrain_options;

constexpr int64_t kWindows = 12, kSeqlen = 7;

// ---- the slow reference: every operation by itself, all of it in one graph ----

class Reference {
 public:
  Reference(const ResidentModel& model, const NamedTensors& parameters, double scale)
      : model_(model), a_(model.architecture), parameters_(parameters), scale_(scale) {}

  /// Mean cross entropy of the next tokens of ids [sequences, length].
  at::Tensor loss(const at::Tensor& ids) const {
    const int64_t length = ids.size(1);
    at::Tensor x = at::embedding(model_.tensors.at(a_.embedding), ids);  // [n, length, hidden]
    for (int block = 0; block < a_.num_blocks; ++block) {
      x = x + attention(block, normed(x, norm(block, "input_layernorm")));
      x = x + mlp(block, normed(x, norm(block, "post_attention_layernorm")));
    }
    const at::Tensor logits = at::linear(normed(x, model_.tensors.at(a_.final_norm + ".weight")),
                                         model_.tensors.at(a_.head));
    return at::cross_entropy_loss(logits.narrow(1, 0, length - 1).flatten(0, 1),
                                  ids.narrow(1, 1, length - 1).flatten());
  }

 private:
  at::Tensor norm(int block, const char* name) const {
    return parameters_.at(in_block(a_, block, name) + ".weight");
  }
  at::Tensor normed(const at::Tensor& x, const at::Tensor& gain) const {
    return x * x.square().mean(-1, /*keepdim=*/true).add(a_.norm_epsilon).rsqrt() * gain;
  }
  at::Tensor linear(int block, const char* role, const at::Tensor& x) const {
    const std::string name = in_block(a_, block, a_.linear(role).name);
    const at::Tensor weight = model_.tensors.at(name + ".weight");
    const at::Tensor mask = weight.ne(0).to(weight.scalar_type());
    const at::Tensor product =
        parameters_.at(name + ".lora_B").mm(parameters_.at(name + ".lora_A"));
    return at::linear(x, weight + mask * scale_ * product, parameters_.at(name + ".bias"));
  }
  at::Tensor heads(const at::Tensor& x) const {  // [n, heads, length, head_dim]
    return x.view({x.size(0), x.size(1), -1, a_.head_dim}).transpose(1, 2);
  }
  at::Tensor rotated(const at::Tensor& x) const {
    const RotaryTable table =
        make_rotary_table(a_.rope, a_.head_dim, x.size(2), at::kFloat, at::kCPU);
    const int64_t half = a_.head_dim / 2;
    const at::Tensor turned = at::cat({x.narrow(3, half, half).neg(), x.narrow(3, 0, half)}, 3);
    return x * table.cos + turned * table.sin;
  }
  at::Tensor attention(int block, const at::Tensor& x) const {
    const int64_t repeats = a_.heads / a_.kv_heads, length = x.size(1);
    const at::Tensor q = rotated(heads(linear(block, "q", x)));
    const at::Tensor k = rotated(heads(linear(block, "k", x))).repeat_interleave(repeats, 1);
    const at::Tensor v = heads(linear(block, "v", x)).repeat_interleave(repeats, 1);
    const at::Tensor later = at::ones({length, length}).triu(1).to(at::kBool);
    const at::Tensor scores = q.matmul(k.transpose(2, 3)) / std::sqrt(double(a_.head_dim));
    const at::Tensor mixed =
        scores.masked_fill(later, -std::numeric_limits<float>::infinity()).softmax(-1).matmul(v);
    return linear(block, "o", mixed.transpose(1, 2).flatten(2));
  }
  at::Tensor mlp(int block, const at::Tensor& x) const {
    return linear(block, "down", at::silu(linear(block, "gate", x)) * linear(block, "up", x));
  }

  const ResidentModel& model_;
  const Architecture& a_;
  const NamedTensors& parameters_;
  double scale_;
};

// ---- gradients ----

TEST(Retrainer, FirstStepHasTheGradientsOfAnUnfusedModel) {
  const ResidentModel model = tiny_pruned_model();
  const at::Tensor ids = counting_text(kWindows, kSeqlen);
  const RetrainOptions options = tiny_retrain_options();
  Retrainer trainer(model, ids, options);
  trainer.advance();  // the pruned model is judged
  // From where B is not zero, or A would get no gradient.
  NamedTensors start, parameters;
  for (const auto& [name, tensor] : trainer.state()) {
    start[name] = tensor.clone();
    if (name.ends_with(".lora_B.value")) start[name] = at::randn_like(tensor).mul(0.1);
    if (!name.ends_with(".value")) continue;
    parameters[name.substr(0, name.rfind('.'))] = start[name].clone().requires_grad_(true);
  }
  trainer.restore(trainer.progress(), start);
  trainer.advance();

  const at::Tensor loss = Reference(model, parameters, options.alpha / options.rank)
                              .loss(ids.narrow(0, 0, options.training.batch_size));
  loss.backward();
  EXPECT_NEAR(trainer.progress().step_loss, loss.item<double>(), 1e-5);
  const NamedTensors state = trainer.state();
  for (const auto& [name, parameter] : parameters) {
    // The first moment after one step from nothing is a tenth of the gradient.
    EXPECT_THAT(state.at(name + ".first_moment").mul(10), IsCloseTo(parameter.grad())) << name;
  }
}

TEST(Retrainer, HeldOutLossOfThePrunedModelIsThatOfAnUnfusedModel) {
  const ResidentModel model = tiny_pruned_model();
  const at::Tensor ids = counting_text(kWindows, kSeqlen);
  Retrainer trainer(model, ids, tiny_retrain_options());
  NamedTensors parameters;
  for (const auto& [name, tensor] : trainer.state()) {
    if (name.ends_with(".value")) parameters[name.substr(0, name.rfind('.'))] = tensor;
  }
  trainer.advance();
  const Reference reference(model, parameters, 2);
  EXPECT_NEAR(trainer.progress().validations.at(0),
              reference.loss(ids.narrow(0, 9, 3)).item<double>(), 1e-5);
  EXPECT_NEAR(trainer.progress().loss_pruned.value(),
              reference.loss(ids.narrow(0, 0, 3)).item<double>(), 1e-5);
}

// ---- what training does ----

struct Types {
  const char* name;
  at::ScalarType stored, compute;
};

class RetrainedModel : public ::testing::TestWithParam<Types> {
 protected:
  const ResidentModel model_ = tiny_pruned_model(GetParam().stored, GetParam().compute);
  const at::Tensor ids_ = counting_text(kWindows, kSeqlen);
};

TEST_P(RetrainedModel, LosesLessAndKeepsEveryZero) {
  Retrainer trainer(model_, ids_, tiny_retrain_options(2e-2, 6));
  finish(trainer);
  const RetrainProgress& progress = trainer.progress();
  EXPECT_THAT(progress.fallback, IsEmpty());
  ASSERT_GT(progress.best, 0);
  EXPECT_LT(progress.validations.at(size_t(progress.best)), 0.8 * progress.validations.at(0));
  EXPECT_LT(progress.loss_retrained.value(), 0.8 * progress.loss_pruned.value());
  for (int block = 0; block < 2; ++block) {
    for (const auto& [name, tensor] : trainer.result(block)) {
      const at::Tensor& before = model_.tensors.at(name);
      EXPECT_EQ(tensor.scalar_type(), GetParam().stored) << name;
      EXPECT_FALSE(tensor.equal(before)) << name << " was not trained";
      if (before.dim() != 2) continue;
      const at::Tensor zeros = tensor.masked_select(before.eq(0)).to(at::kFloat);
      EXPECT_TRUE(zeros.reciprocal().eq(INFINITY).all().item<bool>()) << name;
    }
  }
}

TEST_P(RetrainedModel, LossesAreThoseOfTheTensorsThatAreWritten) {
  Retrainer trainer(model_, ids_, tiny_retrain_options(2e-2, 2));
  finish(trainer);
  ASSERT_GT(trainer.progress().best, 0);
  ResidentModel written = model_;
  for (int block = 0; block < 2; ++block) {
    for (const auto& [name, tensor] : trainer.result(block)) written.tensors[name] = tensor;
  }
  Retrainer again(written, ids_, tiny_retrain_options());
  again.advance();
  EXPECT_EQ(again.progress().validations.at(0),
            trainer.progress().validations.at(size_t(trainer.progress().best)));
  EXPECT_EQ(again.progress().loss_pruned, trainer.progress().loss_retrained);
}

INSTANTIATE_TEST_SUITE_P(Types, RetrainedModel,
                         ::testing::Values(Types{"fp32", at::kFloat, at::kFloat},
                                           Types{"bf16_in_fp32", at::kBFloat16, at::kFloat},
                                           Types{"bf16", at::kBFloat16, at::kBFloat16}),
                         [](const auto& test) { return std::string(test.param.name); });

TEST(Retrainer, TrainsBiasesAndNormsOnlyWhereAsked) {
  const ResidentModel model = tiny_pruned_model();
  RetrainOptions options = tiny_retrain_options(2e-2, 3);
  options.training.train_biases = false;
  options.training.train_norms = false;
  Retrainer trainer(model, counting_text(kWindows, kSeqlen), options);
  finish(trainer);
  ASSERT_GT(trainer.progress().best, 0);
  for (const auto& [name, tensor] : trainer.result(0)) {
    EXPECT_EQ(tensor.equal(model.tensors.at(name)), tensor.dim() == 1) << name;
  }
}

TEST(Retrainer, PrunedWeightsStayWhereNothingIsBetter) {
  const ResidentModel model = tiny_pruned_model(at::kBFloat16);
  // Steps too small to be seen in what is written: equal is not better.
  Retrainer trainer(model, counting_text(kWindows, kSeqlen), tiny_retrain_options(1e-9, 2));
  finish(trainer);
  EXPECT_EQ(trainer.progress().validations.at(2), trainer.progress().validations.at(0));
  EXPECT_EQ(trainer.progress().best, 0);
  EXPECT_EQ(trainer.progress().loss_retrained, trainer.progress().loss_pruned);
  for (const auto& [name, tensor] : trainer.result(1)) {
    EXPECT_THAT(tensor, IsIdenticalTo(model.tensors.at(name))) << name;
  }
}

TEST(Retrainer, LossThatIsNotFiniteEndsTheTraining) {
  const ResidentModel model = tiny_pruned_model();
  Retrainer trainer(model, counting_text(kWindows, kSeqlen), tiny_retrain_options(1e30, 3));
  finish(trainer);
  EXPECT_THAT(trainer.progress().fallback, HasSubstr("not finite"));
  EXPECT_EQ(trainer.progress().best, 0);
}

TEST(Retrainer, PrunedModelThatIsNotFiniteIsRefused) {
  ResidentModel model = tiny_pruned_model();
  model.tensors.at("model.norm.weight")[3] = NAN;
  Retrainer trainer(model, counting_text(kWindows, kSeqlen), tiny_retrain_options());
  EXPECT_THROW(trainer.advance(), NumericalError);
}

TEST(Retrainer, OneWindowIsRefused) {
  const ResidentModel model = tiny_pruned_model();
  EXPECT_THROW(Retrainer(model, counting_text(1, kSeqlen), tiny_retrain_options()),
               std::invalid_argument);
}

// ---- steps, epochs, tokens ----

TEST(Retrainer, EpochsCountEveryTrainingTokenOnce) {
  const ResidentModel model = tiny_pruned_model();
  RetrainOptions options = tiny_retrain_options(1e-3, 3);
  options.training.batch_size = 4;  // 9 training windows: the last step of an epoch has one
  Retrainer trainer(model, counting_text(kWindows, kSeqlen), options);
  finish(trainer);
  EXPECT_EQ(trainer.progress().step, 9);
  EXPECT_EQ(trainer.progress().tokens, 3 * 9 * kSeqlen);
  EXPECT_THAT(trainer.progress().losses, SizeIs(3));
  EXPECT_THAT(trainer.progress().validations, SizeIs(4));
}

TEST(Retrainer, EvaluationThatWasStoppedDoesNotCount) {
  const ResidentModel model = tiny_pruned_model();
  Retrainer trainer(model, counting_text(kWindows, kSeqlen), tiny_retrain_options());
  int asked = 0;
  trainer.advance([&] { return ++asked == 2; });
  EXPECT_THAT(trainer.progress().validations, IsEmpty());
  EXPECT_TRUE(trainer.is_evaluation_due());
  trainer.advance();
  EXPECT_THAT(trainer.progress().validations, SizeIs(1));
}

TEST(Retrainer, ContinuesFromAnySavedStateToTheSameBytes) {
  const ResidentModel model = tiny_pruned_model(at::kBFloat16);
  const at::Tensor ids = counting_text(kWindows, kSeqlen);
  RetrainOptions options = tiny_retrain_options(2e-2, 3);
  options.training.shuffle = true;
  Retrainer undisturbed(model, ids, options);
  std::vector<std::pair<RetrainProgress, NamedTensors>> saved;
  while (!undisturbed.is_finished()) {
    NamedTensors copies;
    for (const auto& [name, tensor] : undisturbed.state()) copies[name] = tensor.clone();
    saved.emplace_back(undisturbed.progress(), copies);
    undisturbed.advance();
  }
  ASSERT_GT(undisturbed.progress().best, 0);
  for (const auto& [progress, state] : saved) {
    Retrainer continued(model, ids, options);
    continued.restore(progress, state);
    finish(continued);
    EXPECT_EQ(continued.progress().validations, undisturbed.progress().validations);
    for (int block = 0; block < 2; ++block) {
      const NamedTensors expected = undisturbed.result(block);
      for (const auto& [name, tensor] : continued.result(block)) {
        EXPECT_THAT(tensor, IsIdenticalTo(expected.at(name))) << name;
      }
    }
  }
}

TEST(Retrainer, StateOfAnotherRankIsRefusedByName) {
  const ResidentModel model = tiny_pruned_model();
  RetrainOptions options = tiny_retrain_options();
  Retrainer trainer(model, counting_text(kWindows, kSeqlen), options);
  options.rank = 5;
  Retrainer other(model, counting_text(kWindows, kSeqlen), options);
  try {
    other.restore(trainer.progress(), trainer.state());
    FAIL() << "nothing was refused";
  } catch (const std::invalid_argument& error) {
    EXPECT_THAT(error.what(), HasSubstr("lora_A.value is of another shape"));
  }
}

}  // namespace
}  // namespace coppice
