// Hidden states between blocks, as the cache has them.
#pragma once

#include "stages/span_job.h"

namespace coppice {

/// `hidden` rounded to the model's dtype, still in the compute dtype: what the next block reads,
/// whether it travels with this one or not. Itself where the dtypes are the same.
at::Tensor as_stored(const SpanJob& span, const at::Tensor& hidden);

}  // namespace coppice
