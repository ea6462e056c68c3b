#include "stages/model/routing.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/bincount.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/topk.h>

#include <optional>
#include <tuple>

namespace coppice {

Routing route(const ExpertSpec& experts, const at::Tensor& logits) {
  const at::Tensor probabilities = at::softmax(logits, 1, at::kFloat);
  auto [weights, chosen] = at::topk(probabilities, experts.per_token, 1);  // [tokens, per_token]
  if (experts.sum_to_one) weights = weights / weights.sum(1, /*keepdim=*/true);
  if (experts.round_weights) weights = weights.to(logits.scalar_type());

  // Token after token, its experts side by side: a stable sort keeps tokens in order.
  const at::Tensor expert_of = chosen.flatten();
  const at::Tensor order =
      std::get<1>(at::sort(expert_of, /*stable=*/std::optional(true), /*dim=*/0));
  const at::Tensor counts = at::bincount(expert_of, {}, experts.count).cpu();
  Routing routing;
  routing.counts.assign(counts.const_data_ptr<int64_t>(),
                        counts.const_data_ptr<int64_t>() + experts.count);
  routing.tokens = order.div(experts.per_token, "floor");
  routing.weights = weights.flatten().index_select(0, order).unsqueeze(1);
  return routing;
}

}  // namespace coppice
