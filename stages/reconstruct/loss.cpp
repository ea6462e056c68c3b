#include "stages/reconstruct/loss.h"

#include <ATen/TensorOperators.h>

#include "stages/ops/squared_error.h"

namespace coppice {
namespace {

constexpr double kTiny = 1e-12;  // of a squared norm: divides no gradient into infinity

at::Tensor widened(const at::Tensor& x) {
  return x.to(x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
}

at::Tensor token_dot(const at::Tensor& a, const at::Tensor& b) {
  return a.mul(b).sum({1}, /*keepdim=*/true);  // [tokens, 1]
}

at::Tensor squared_norm(const at::Tensor& x) { return token_dot(x, x).clamp_min_(kTiny); }

/// y / ‖y‖ row by row; a row of zeros stays one.
at::Tensor directions(const at::Tensor& y) { return y * squared_norm(y).rsqrt_(); }

/// Of every token, [tokens, 1]. 1 − cos is ½ ‖y/‖y‖ − z/‖z‖‖²: the difference of two numbers close
/// to 1 would leave nothing of a small distance.
at::Tensor token_losses(Loss loss, const at::Tensor& y, const at::Tensor& z) {
  if (loss == Loss::kCosine) {
    const at::Tensor difference = directions(y) - directions(z);
    return token_dot(difference, difference).mul_(0.5);
  }
  const at::Tensor difference = y - z;
  return token_dot(difference, difference).div_(squared_norm(z));
}

/// Of the sum of the above with respect to y, [tokens, h].
at::Tensor token_gradients(Loss loss, const at::Tensor& y, const at::Tensor& z) {
  if (loss == Loss::kCosine) {
    const at::Tensor u = directions(y), v = directions(z);
    return u.mul(token_dot(u, v)).sub_(v).mul_(squared_norm(y).rsqrt_());
  }
  return (y - z).mul_(squared_norm(z).reciprocal_().mul_(2));
}

}  // namespace

at::Tensor loss_sum(Loss loss, const at::Tensor& output, const at::Tensor& target) {
  if (loss == Loss::kMse) return squared_error(output, target);
  return token_losses(loss, widened(output), widened(target)).sum(at::kDouble);
}

at::Tensor loss_gradient_(Loss loss, at::Tensor& output, const at::Tensor& target) {
  const double terms = loss_terms(loss, output);
  if (loss == Loss::kMse) return squared_error_gradient_(output, target, 2 / terms);
  const at::Tensor y = widened(output), z = widened(target);
  const at::Tensor sum = token_losses(loss, y, z).sum(at::kDouble);
  output.copy_(token_gradients(loss, y, z).div_(terms));
  return sum;
}

double loss_terms(Loss loss, const at::Tensor& output) {
  return static_cast<double>(loss == Loss::kMse ? output.numel() : output.size(0));
}

}  // namespace coppice
