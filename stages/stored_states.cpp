#include "stages/stored_states.h"

namespace coppice {

at::Tensor as_stored(const SpanJob& span, const at::Tensor& hidden) {
  const at::ScalarType stored = span.dense.front().linears.begin()->second.weight.scalar_type();
  return hidden.to(stored).to(hidden.scalar_type());
}

}  // namespace coppice
