#include "pipeline/plan/stage_time.h"

namespace coppice {

StageWork work_of(const Stage& stage, const std::vector<HalfRange>& windows,
                  const SpanShape& shape) {
  const auto cost_of = [&](HalfRange halves, KeptActivations kept) {
    SpanShape part = shape;
    part.halves = halves;
    part.kept_activations = kept;
    return stage.cost(part);
  };
  // One half's products, with those that are made again where another half follows.
  const auto products_of = [&](int half, int last) {
    double flop = cost_of({half, half + 1}, KeptActivations::kAll).product_flop;
    if (half + 1 < last) {
      flop += cost_of({half, half + 2}, shape.kept_activations).product_flop -
              cost_of({half, half + 2}, KeptActivations::kAll).product_flop;
    }
    return flop;
  };
  StageWork work;
  for (const HalfRange& window : windows) {
    work.cost += cost_of(window, shape.kept_activations);
    for (int half = window.first; half < window.last; ++half) {
      if (half_of(half) == Half::kAttention) {
        work.attention_products += products_of(half, window.last);
      }
    }
  }
  return work;
}

StageWork operator*(double times, StageWork work) {
  work.cost.product_flop *= times;
  work.cost.attention_flop *= times;
  work.cost.bytes_touched *= times;
  work.cost.weights_selected *= times;
  work.cost.bytes_moved *= times;
  work.attention_products *= times;
  return work;
}

std::vector<TimeShare> time_shares(const StageWork& work, const Rates& rates) {
  const Cost& cost = work.cost;
  return {{"products", work.attention_products / rates.attention_product_flop +
                           (cost.product_flop - work.attention_products) / rates.mlp_product_flop},
          {"attention", cost.attention_flop / rates.attention_flop},
          {"memory", cost.bytes_touched / rates.touched_bytes},
          {"selection", cost.weights_selected / rates.selected_weights}};
}

double modelled_seconds(const StageWork& work, const Rates& rates) {
  double seconds = 0;
  for (const TimeShare& share : time_shares(work, rates)) seconds += share.seconds;
  return seconds;
}

}  // namespace coppice
