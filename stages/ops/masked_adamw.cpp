#include "stages/ops/masked_adamw.h"

#include <fmt/ranges.h>

#include <cmath>
#include <stdexcept>

#include "stages/ops/masked_adamw_detail.h"  // one implementation per device

namespace coppice {
namespace detail {
#ifndef COPPICE_WITH_CUDA  // no kernel was compiled: its launch ends here
void masked_adamw_cuda(const AdamWPointers&, const AdamWCoefficients&, at::Device) {
  throw std::runtime_error(
      "masked_adamw: the state lies on a GPU, but this program was built without CUDA");
}
#endif

AdamWCoefficients coefficients_of(const AdamWStep& step) {
  if (step.step < 1) {
    throw std::invalid_argument(
        fmt::format("masked_adamw: steps are counted from 1, found {}", step.step));
  }
  const auto steps = static_cast<double>(step.step);
  AdamWCoefficients c;
  c.beta1 = static_cast<float>(step.beta1);
  c.one_minus_beta1 = static_cast<float>(1 - step.beta1);
  c.beta2 = static_cast<float>(step.beta2);
  c.one_minus_beta2 = static_cast<float>(1 - step.beta2);
  c.step_size = static_cast<float>(step.lr / (1 - std::pow(step.beta1, steps)));
  c.inverse_root_correction = static_cast<float>(1 / std::sqrt(1 - std::pow(step.beta2, steps)));
  c.epsilon = static_cast<float>(step.epsilon);
  return c;
}

}  // namespace detail

namespace {

void require(const char* name, const at::Tensor& tensor, at::ScalarType dtype,
             const at::Tensor& master) {
  if (!tensor.defined()) {
    throw std::invalid_argument(fmt::format("masked_adamw: {} is undefined", name));
  }
  const bool is_as_expected = tensor.scalar_type() == dtype && tensor.device() == master.device() &&
                              tensor.sizes() == master.sizes() && tensor.is_contiguous();
  if (is_as_expected) return;
  throw std::invalid_argument(fmt::format(
      "masked_adamw: expected {} contiguous [{}] in {} on {}, found {} [{}] in {} on {}", name,
      fmt::join(master.sizes(), ", "), c10::toString(dtype), master.device().str(),
      tensor.is_contiguous() ? "contiguous" : "strided", fmt::join(tensor.sizes(), ", "),
      c10::toString(tensor.scalar_type()), tensor.device().str()));
}

detail::AdamWPointers checked_pointers(AdamWState& state, const at::Tensor& gradient) {
  const at::Tensor& master = state.master;
  const bool is_bf16 = gradient.defined() && gradient.scalar_type() == at::kBFloat16;
  require("master", master, at::kFloat, master);
  require("first_moment", state.first_moment, at::kFloat, master);
  require("second_moment", state.second_moment, at::kFloat, master);
  require("gradient", gradient, is_bf16 ? at::kBFloat16 : at::kFloat, master);
  detail::AdamWPointers tensors;
  tensors.n = master.numel();
  tensors.master = master.mutable_data_ptr<float>();
  tensors.first_moment = state.first_moment.mutable_data_ptr<float>();
  tensors.second_moment = state.second_moment.mutable_data_ptr<float>();
  if (is_bf16) {
    tensors.gradient_bf16 = gradient.const_data_ptr<at::BFloat16>();
  } else {
    tensors.gradient_fp32 = gradient.const_data_ptr<float>();
  }
  if (state.mask.defined()) {
    require("mask", state.mask, at::kBool, master);
    tensors.mask = state.mask.const_data_ptr<bool>();
  }
  if (state.compute.defined()) {
    require("compute", state.compute, at::kBFloat16, master);
    tensors.compute = state.compute.mutable_data_ptr<at::BFloat16>();
  }
  return tensors;
}

}  // namespace

void masked_adamw(AdamWState& state, const at::Tensor& gradient, const AdamWStep& step) {
  const detail::AdamWPointers tensors = checked_pointers(state, gradient);
  const detail::AdamWCoefficients c = detail::coefficients_of(step);
  state.master.is_cuda() ? detail::masked_adamw_cuda(tensors, c, state.master.device())
                         : detail::masked_adamw_cpu(tensors, c);
}

}  // namespace coppice
