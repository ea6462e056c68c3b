// Hidden states of calibration windows, wherever they live.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <span>
#include <vector>

namespace coppice {

/// Sequences laid end to end.
struct MicroBatch {
  at::Tensor hidden;         // [tokens, hidden_size], dtype and device of the job's compute
  std::vector<int> lengths;  // tokens of each sequence; sums to hidden.size(0)
};

/// Windows can be asked for by index, so epochs, hold-out and shuffling are index lists.
/// Used by the device's thread alone. Throws IoError, CorruptionError.
class ActivationSource {
 public:
  virtual ~ActivationSource() = default;
  virtual int num_windows() const = 0;
  /// Tells the windows that will be read next, in order, so that they are fetched ahead.
  /// Replaces an earlier announcement. Reading anything else works, but waits.
  virtual void announce(std::span<const int> order) = 0;
  /// The windows end to end, converted to the compute dtype, owned by the caller.
  virtual MicroBatch read(std::span<const int> windows) = 0;
};

/// Takes each window of a boundary once, in any order; `hidden` is [seqlen, hidden_size] of any
/// float dtype and is rounded to the boundary's own. The tensor is not written to any more: `write`
/// may return before it is copied.
class ActivationSink {
 public:
  virtual ~ActivationSink() = default;
  virtual void write(int window, const at::Tensor& hidden) = 0;
};

}  // namespace coppice
