// How much the loss of a whole model would feel a unit's absence, to first order.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <optional>

#include "stages/cost.h"
#include "stages/model/half_cost.h"  // BatchShape
#include "stages/retrain/resident_model.h"

namespace coppice {

/// Asked before every window, with how many are done; true ends the work.
using SaliencyStop = std::function<bool(int64_t windows_done)>;

/// Of every unit u of the model the mean over windows of |∂L/∂c_u|, where c_u = 1 multiplies what u
/// hands to its consumer W [out, in] and L is the mean next-token loss of one window:
///     ∂L/∂c_u = Σ_{o, j in u} W_oj ∂L/∂W_oj
/// One window at a time; in the backward sweep one block's activations lie in memory, and of its
/// weights only the consumers get gradients. A unit that no token of a window reaches (an
/// expert's) adds 0 for it.
///
///     ids      [windows, length] int64, on the model's device; length ≥ 2
///     returns  by the consumer's full name without ".weight": [units] fp32 on the CPU, not
///              negative; nothing if `stop` ended it
///
/// A function of model, ids and arithmetic. On the device's thread. Throws NumericalError for a
/// loss or a derivative that is not finite, std::invalid_argument where there is no window, a
/// window has no next token, or the model has no units.
/// Source: Lee et al., "SNIP: Single-shot Network Pruning based on Connection Sensitivity",
/// arXiv:1810.02340, eq. 5; of heads, with the mean of magnitudes: Michel et al., "Are Sixteen
/// Heads Really Better than One?", arXiv:1905.10650, eq. 2.
std::optional<NamedTensors> unit_saliency(const ResidentModel& model, const at::Tensor& ids,
                                          const SaliencyStop& stop = {});

/// What that takes, of the whole model, a window of one sequence at a time; bytes_held beside the
/// model as it is stored, with so many bytes an element.
Cost unit_saliency_cost(const Architecture& architecture, int64_t windows, const BatchShape& window,
                        int64_t stored_bytes);

}  // namespace coppice
