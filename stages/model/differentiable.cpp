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
  // Absent ones are no edges of the graph: the bias is the fourth edge where there is no shift.
  enum Input : size_t { kXHat, kGain, kNormed, kWeight, kShift, kBias };

  static at::Tensor forward(AutogradContext* context, const at::Tensor& x_hat,
                            const at::Tensor& gain, const at::Tensor& normed,
                            const at::Tensor& weight, const std::optional<at::Tensor>& shift,
                            const std::optional<at::Tensor>& bias) {
    context->save_for_backward({x_hat, gain, weight, shift.value_or(at::Tensor())});
    context->saved_data["has_bias"] = bias.has_value();
    return at::linear(normed, weight, bias);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &x_hat = saved[0], &gain = saved[1], &weight = saved[2], &shift = saved[3];
    const at::Tensor& g = gradients[0];  // [tokens, out]
    const bool has_bias = context->saved_data["has_bias"].toBool();
    const size_t bias_edge = shift.defined() ? kBias : kShift;
    variable_list result(6);
    const bool wants_weight = context->needs_input_grad(kWeight);
    const bool wants_gain = context->needs_input_grad(kGain);
    const bool wants_shift = shift.defined() && context->needs_input_grad(kShift);
    const bool wants_bias = has_bias && context->needs_input_grad(bias_edge);
    const at::Tensor sums = shift.defined() || wants_bias ? g.sum(0) : at::Tensor();  // [out]
    if (wants_weight || wants_gain) {
      at::Tensor product = g.t().mm(x_hat);  // [out, in]
      if (wants_gain) result[kGain] = (weight * product).sum(0);
      if (wants_weight) {
        result[kWeight] = product.mul_(gain);
        if (shift.defined()) result[kWeight].addr_(sums, shift);
      }
    }
    if (context->needs_input_grad(kXHat)) result[kXHat] = g.mm(weight).mul_(gain);
    if (wants_shift) result[kShift] = weight.t().mv(sums);
    if (wants_bias) result[kBias] = sums;
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

std::optional<at::Tensor> if_defined(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional<at::Tensor>(tensor) : std::nullopt;
}

}  // namespace

at::Tensor normed_linear(const at::Tensor& x_hat, const at::Tensor& normed, const Norm& norm,
                         const Linear& linear) {
  return NormedLinear::apply(x_hat, norm.gain, normed, linear.weight, if_defined(norm.bias),
                             if_defined(linear.bias));
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
