// Times each kind of arithmetic a plan counts, at the model's own shapes, in about a second.
#pragma once

#include <cstdint>

#include "pipeline/device/device.h"
#include "pipeline/plan/rates.h"
#include "stages/model/architecture.h"

namespace coppice {

/// Fills the compute rates: products at::linear x [tokens, in] · w [out, in]ᵀ of each half
/// (harmonic mean over its linears, by their FLOP), causal attention, elementwise traffic, mask
/// selection. Medians of repetitions; on a processor matrices are cut to 16 MiB and tokens to what
/// a tenth of a second takes, on a GPU to what `most_bytes` of its memory hold. On the device's
/// thread.
void probe_compute(const Device& device, const Architecture& architecture, at::ScalarType compute,
                   int64_t seqlen, uint64_t most_bytes, Rates& rates);

/// The `new_memory_bytes` rate: up to `most_bytes` (0: none) or half a second of memory taken from
/// the kernel, touched and given back.
void probe_new_memory(uint64_t most_bytes, Rates& rates);

}  // namespace coppice
