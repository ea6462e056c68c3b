#include "stages/model/differentiable.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/linear.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>
#include <utility>

#include "stages/ops/gated_silu.h"
#include "stages/ops/rms_normalize.h"
#include "stages/ops/rotate_halves.h"

namespace coppice::differentiable {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

struct NormedLinear : Function<NormedLinear> {
  enum Input : size_t { kXHat, kGain, kNormed, kWeight, kBias };

  static at::Tensor forward(AutogradContext* context, const at::Tensor& x_hat,
                            const at::Tensor& gain, const at::Tensor& normed,
                            const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
    context->save_for_backward({x_hat, gain, weight});
    context->saved_data["has_bias"] = bias.has_value();
    return at::linear(normed, weight, bias);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &x_hat = saved[0], &gain = saved[1], &weight = saved[2];
    const at::Tensor& g = gradients[0];  // [tokens, out]
    variable_list result(5);
    const bool wants_weight = context->needs_input_grad(kWeight);
    const bool wants_gain = context->needs_input_grad(kGain);
    if (wants_weight || wants_gain) {
      at::Tensor product = g.t().mm(x_hat);  // [out, in]
      if (wants_gain) result[kGain] = (weight * product).sum(0);
      if (wants_weight) result[kWeight] = product.mul_(gain);
    }
    if (context->needs_input_grad(kXHat)) result[kXHat] = g.mm(weight).mul_(gain);
    // An absent bias is no edge of the graph: asking for one would be out of range.
    if (context->saved_data["has_bias"].toBool() && context->needs_input_grad(kBias)) {
      result[kBias] = g.sum(0);
    }
    return result;
  }
};

struct RmsNormalize : Function<RmsNormalize> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, double epsilon) {
    RmsNormalized output = rms_normalize_rows(x, epsilon);
    context->save_for_backward({output.x_hat, output.inverse_rms});
    return output.x_hat;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list saved = context->get_saved_variables();
    return {rms_normalize_rows_backward(gradients[0], {saved[0], saved[1]}), {}};
  }
};

struct GatedSilu : Function<GatedSilu> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& gate,
                            const at::Tensor& up) {
    context->save_for_backward({gate, up});
    return coppice::gated_silu(gate, up);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list saved = context->get_saved_variables();
    GatedSiluGradients result = gated_silu_backward(gradients[0], saved[0], saved[1]);
    return {std::move(result.gate), std::move(result.up)};
  }
};

struct RotateHalves : Function<RotateHalves> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& cos,
                            const at::Tensor& sin) {
    context->save_for_backward({cos, sin});
    return coppice::rotate_halves(x, cos, sin, Turn::kForward);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list saved = context->get_saved_variables();
    return {coppice::rotate_halves(gradients[0], saved[0], saved[1], Turn::kBack), {}, {}};
  }
};

}  // namespace

at::Tensor normed_linear(const at::Tensor& x_hat, const at::Tensor& gain, const at::Tensor& normed,
                         const at::Tensor& weight, const at::Tensor& bias) {
  const std::optional<at::Tensor> maybe_bias =
      bias.defined() ? std::optional<at::Tensor>(bias) : std::nullopt;
  return NormedLinear::apply(x_hat, gain, normed, weight, maybe_bias);
}

at::Tensor rms_normalize(const at::Tensor& x, double epsilon) {
  return RmsNormalize::apply(x, epsilon);
}

at::Tensor gated_silu(const at::Tensor& gate, const at::Tensor& up) {
  return GatedSilu::apply(gate, up);
}

at::Tensor rotate_halves(const at::Tensor& x, const RotaryTable& table) {
  return RotateHalves::apply(x, table.cos, table.sin);
}

}  // namespace coppice::differentiable
