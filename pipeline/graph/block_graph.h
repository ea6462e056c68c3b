// THE flow graph: spans of a model stream from disk through slots, are computed, stored and
// retired.
//
//   spans ─► grant ─► cut ─► admit ─► read ─► upload ─► ready ─► forward ─► adapt ─► store ─►
//   retire
//      slot ▲     slab ▲ └─── slab back ────┘             ▲                    └─ slot back
//                                                         └─ inputs of the next span, after forward
//                                                            or after adapt
//
// It knows neither tensors nor models: what is done with a span are callables. Links no libtorch.
#pragma once

#include <exception>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "pipeline/graph/serial_executor.h"
#include "pipeline/graph/span_times.h"
#include "pipeline/graph/token_pool.h"
#include "storage/io/io_engine.h"
#include "storage/io/read_plan.h"

namespace coppice {

/// One piece of the model on its way: a block, some rows of the embedding, a chunk of the head.
/// `plan` and `slot` are valid from `forward` to the end of `adapt`, `output` from `adapt` to
/// `store`.
struct GraphSpan {
  int index = 0;
  std::string name;  // "block 17", for errors and spans of time
  ReadPlan plan;
  std::span<const ReadFile* const> files;  // what the plan's reads index
  std::span<std::byte> slot;               // where plan.placements lie; device memory on a GPU
  int device = 0;                          // whose slot it is, and who computes the span
  std::span<std::byte> output;             // empty where the span is not adapted
  std::shared_ptr<void> work;              // whatever the callables want to hand on
  SpanTimes times;                         // of the steps behind it; written by the graph alone
  std::exception_ptr failure;              // BlockError with the cause nested
  bool skipped = false;                    // the run was stopped before this span was finished
};

/// What the owner of the graph does with a span. Exceptions become the span's failure, nested in a
/// BlockError naming span and step; the spans behind it are skipped, those before it finish.
struct GraphWork {
  int num_spans = 0;
  /// The span's name and what to read, from where. On a TBB worker, in ascending order.
  std::function<void(GraphSpan&)> plan;
  /// On the thread of the span's device, in ascending order; span i only after span i − 1 (see
  /// Advance).
  std::function<void(GraphSpan&)> forward;
  /// On the thread of the span's device, or on GraphDevice::adapter; in ascending order on each.
  /// Empty function: the graph ends after forward.
  std::function<void(GraphSpan&)> adapt;
  /// On the store's thread: the output becomes durable and is journalled.
  std::function<void(GraphSpan&)> store;
};

/// When the next span's inputs are there: as soon as this one's dense forward is done, or only when
/// it is adapted (propagated activations; also a CPU, which has no gaps to fill).
enum class Advance { kAfterForward, kAfterAdapt };

/// Where spans are computed. Its threads outlive the graph.
struct GraphDevice {
  SerialExecutor& thread;
  /// A thread for `adapt`, so that with Advance::kAfterForward the next span's forward runs beside
  /// it (a GPU, whose streams have gaps to fill). Null: the one above, one after the other.
  SerialExecutor* adapter = nullptr;
};

/// Bytes of a slab, and where in the slot they go.
struct StagedPiece {
  std::span<const std::byte> bytes;
  uint64_t slot_offset = 0;
};

struct GraphOptions {
  Advance advance = Advance::kAfterAdapt;
  std::vector<std::span<std::byte>> slots;  // spans in memory at once; two overlap read and compute
  /// By slot: whose memory it is. A span goes to the device that has the first slot to spare, so
  /// slots of several devices should take turns. Empty: all are the first one's.
  std::vector<int> slot_devices;
  std::vector<std::span<std::byte>> outputs;  // adapted spans in memory at once
  uint64_t slab_bytes = uint64_t{64} << 20;
  int num_slabs = 8;  // bytes in flight ≤ num_slabs · slab_bytes
  /// Memory of the slabs. Empty: reads go straight into the slot (a CPU), and a slab is the
  /// permission to have its bytes in flight.
  std::vector<std::span<std::byte>> slabs;
  /// Starts copying what is wanted of a slab that has arrived to its places in the slot, and calls
  /// `done` once when it is there, or cannot be; any thread, at once for several slabs. Null where
  /// `slabs` is empty.
  std::function<void(const GraphSpan&, std::vector<StagedPiece> pieces,
                     std::function<void(std::exception_ptr failure)> done)>
      upload;
};

struct GraphResult {
  int retired = 0;
  int skipped = 0;  // of the retired
  int most_slots_in_use = 0;
  int most_slabs_in_use = 0;
  int most_outputs_in_use = 0;
};

class BlockGraph {
 public:
  /// All references, and the files that spans name, outlive the graph. At least one device; several
  /// are of use with Advance::kAfterForward, when one's forward runs beside another's adaptation.
  BlockGraph(GraphOptions options, GraphWork work, IoEngine& engine,
             std::vector<GraphDevice> devices, SerialExecutor& store);
  ~BlockGraph();

  /// Streams every span, once. Returns when all are retired, nothing is in flight and every token
  /// is back; then throws the failure of the lowest failed span, if any.
  GraphResult run();

  /// Any thread, async-signal-safe: adaptations at work finish and are stored, all else is skipped.
  void stop() noexcept;

 private:
  struct Nodes;
  std::unique_ptr<Nodes> nodes_;
};

}  // namespace coppice
