// How far a window's output is from its target, and the gradient written where the output was.
#pragma once

#include <ATen/core/Tensor.h>

#include "stages/reconstruct_options.h"

namespace coppice {

/// Per token t with output y and target z of width h, all [tokens, h] of one float dtype:
///   mse             Σ (y − z)², whose mean is over tokens · h
///   mse_normalized  Σ (y − z)² / ‖z‖²          (tokens of any length weigh the same)
///   cosine          1 − y·z / (‖y‖ ‖z‖)        (and only the direction counts)
/// the latter two with means over tokens. In fp32, summed over tokens in fp64: a scalar fp64 tensor
/// on their device. A token of zeros is divided by a tiny norm,
/// and is half way from any direction.
at::Tensor loss_sum(Loss loss, const at::Tensor& output, const at::Tensor& target);

/// The same, and overwrites `output` with the gradient of the mean with respect to it. For
/// tensors outside of autograd's graph.
at::Tensor loss_gradient_(Loss loss, at::Tensor& output, const at::Tensor& target);

/// What loss_sum is divided by to be a mean.
double loss_terms(Loss loss, const at::Tensor& output);

}  // namespace coppice
