// How long stages take by the rates of a machine.
#pragma once

#include <vector>

#include "pipeline/plan/rates.h"
#include "stages/stage.h"

namespace coppice {

/// What a stage does to a block: all windows of it, one after the other.
struct StageWork {
  Cost cost;
  double attention_products = 0;  // of cost.product_flop: those of the attention half
};

/// `shape.halves` is not looked at: `windows` are the halves.
StageWork work_of(const Stage& stage, const std::vector<HalfRange>& windows,
                  const SpanShape& shape);

StageWork operator*(double times, StageWork work);  // memory held stays

struct TimeShare {
  const char* name;  // "products", "attention", "memory", "selection"
  double seconds;
};

/// By the rates alone, none of which may be 0. Times rates.correction(name) is what a stage takes.
std::vector<TimeShare> time_shares(const StageWork& work, const Rates& rates);
double modelled_seconds(const StageWork& work, const Rates& rates);

}  // namespace coppice
