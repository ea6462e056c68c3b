#include "stages/ops/grouped_attention.h"

#include <ATen/ops/scaled_dot_product_attention.h>

#include <optional>

namespace coppice {
namespace {

/// Of a GPU's kernels the one for bf16 without a mask shares heads; the one for everything else
/// does not, and without it every score would be held in memory.
bool shares_heads(const at::Tensor& q, const at::Tensor& mask) {
  return q.is_cpu() || (q.element_size() == 2 && !mask.defined());
}

}  // namespace

at::Tensor grouped_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                             const at::Tensor& mask, Causal causal) {
  const auto attend = [&](const at::Tensor& keys, const at::Tensor& values) {
    const std::optional<at::Tensor> sees = mask.defined() ? std::optional(mask) : std::nullopt;
    return at::scaled_dot_product_attention(q, keys, values, sees, /*dropout_p=*/0.0,
                                            causal == Causal::kYes, /*scale=*/std::nullopt,
                                            /*enable_gqa=*/q.size(1) != keys.size(1));
  };
  const int64_t group = q.size(1) / k.size(1);
  if (group == 1 || shares_heads(q, mask)) return attend(k, v);
  return attend(k.repeat_interleave(group, 1), v.repeat_interleave(group, 1));
}

}  // namespace coppice
