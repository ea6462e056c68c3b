#include "pipeline/graph/block_graph.h"

#include <tbb/flow_graph.h>

#include <atomic>
#include <limits>
#include <map>
#include <optional>
#include <stdexcept>
#include <tuple>

#include "pipeline/errors.h"  // BlockError
#include "pipeline/graph/travelling.h"
#include "pipeline/graph/workers.h"

namespace coppice {
namespace {

namespace flow = tbb::flow;

// Matrix products of a GPU take slower ways where an operand is less aligned.
constexpr uint64_t kOperandAlignment = 16;
// A copy takes some microseconds to start: rows of an embedding, which are no operands, stay as
// they were read.
constexpr size_t kMostMoves = 4096;

using detail::ComputeThread;
using detail::DeviceThreads;
using detail::Inputs;
using detail::Slab;
using detail::SlabPtr;
using detail::SpanPtr;
using detail::Travelling;
using detail::UnreadSlabs;

using SpanQueue = flow::queue_node<SpanPtr>;
using SlabQueue = flow::queue_node<SlabPtr>;
using SpanAsync = flow::async_node<SpanPtr, SpanPtr>;
using SlabAsync = flow::async_node<SlabPtr, SlabPtr>;

std::exception_ptr in_context(const GraphSpan& span, const char* step, std::exception_ptr cause) {
  try {
    try {
      std::rethrow_exception(cause);
    } catch (...) {
      std::throw_with_nested(BlockError(span.name + ", " + step));
    }
  } catch (...) {
    return std::current_exception();
  }
}

}  // namespace

struct BlockGraph::Nodes {
  GraphOptions options;
  GraphWork work;
  IoEngine& engine;
  std::vector<DeviceThreads> devices;
  SerialExecutor& store_thread;
  std::atomic<bool> stopped = false;
  std::atomic<int> first_failed = std::numeric_limits<int>::max();  // spans behind it are skipped
  GraphResult result;
  std::map<int, std::exception_ptr> failures;  // touched by the serial node `retire` alone
  int next_span = 0;
  UnreadSlabs unread;

  tbb::global_control workers = enough_workers();
  flow::graph graph;
  TokenPool slot_tokens{graph, int(options.slots.size())};
  TokenPool slab_tokens{graph, options.num_slabs};
  TokenPool output_tokens{graph, std::max(1, int(options.outputs.size()))};

  flow::input_node<int> spans;
  flow::join_node<std::tuple<int, int>, flow::reserving> grant{graph};
  flow::multifunction_node<std::tuple<int, int>, std::tuple<SlabPtr, SpanPtr>> cut;
  SlabQueue waiting_slabs{graph};
  flow::join_node<std::tuple<SlabPtr, int>, flow::reserving> admit{graph};
  SlabAsync read;
  SlabQueue arrived{graph};
  SlabAsync upload;
  SlabQueue uploaded{graph};
  flow::multifunction_node<SlabPtr, std::tuple<SpanPtr>> ready;
  flow::join_node<std::tuple<SpanPtr, Inputs>, flow::key_matching<int>> with_inputs;
  SpanAsync forward;
  SpanQueue forwarded{graph};
  flow::multifunction_node<SpanPtr, std::tuple<SpanPtr, Inputs, SpanPtr>> after_forward;
  SpanQueue to_adapt{graph};
  flow::join_node<std::tuple<SpanPtr, int>, flow::reserving> with_output{graph};
  SpanAsync adapt;
  SpanQueue adapted{graph};
  flow::multifunction_node<SpanPtr, std::tuple<SpanPtr, Inputs>> after_adapt;
  SpanAsync store;
  SpanQueue stored{graph};
  flow::function_node<SpanPtr> retire;

  Nodes(GraphOptions options_in, GraphWork work_in, IoEngine& engine_in,
        const std::vector<GraphDevice>& devices_in, SerialExecutor& store_in)
      : options(std::move(options_in)),
        work(std::move(work_in)),
        engine(engine_in),
        devices(devices_in.begin(), devices_in.end()),
        store_thread(store_in),
        spans(graph,
              [this](tbb::flow_control& control) {
                if (next_span == work.num_spans) control.stop();
                return next_span++;
              }),
        cut(graph, flow::serial,
            [this](const auto& granted, auto& ports) { do_cut(granted, ports); }),
        read(graph, flow::unlimited,
             [this](SlabPtr slab, SlabAsync::gateway_type& gateway) { do_read(slab, gateway); }),
        upload(
            graph, flow::unlimited,
            [this](SlabPtr slab, SlabAsync::gateway_type& gateway) { do_upload(slab, gateway); }),
        ready(graph, flow::serial, [this](SlabPtr slab, auto& ports) { do_ready(slab, ports); }),
        with_inputs(
            graph, [](const SpanPtr& span) { return span->span.index; },
            [](const Inputs& inputs) { return inputs.index; }),
        // Serial from here on: bodies that only post, in the order in which spans come.
        forward(graph, flow::serial,
                [this](SpanPtr span, SpanAsync::gateway_type& gateway) {
                  on(threads_of(span->span).forwards(), span, "forward", gateway,
                     [this](GraphSpan& s) { do_forward(s); });
                }),
        after_forward(graph, flow::serial,
                      [this](SpanPtr span, auto& ports) { do_after_forward(span, ports); }),
        adapt(graph, flow::serial,
              [this](SpanPtr span, SpanAsync::gateway_type& gateway) {
                on(threads_of(span->span).adapts(), span, "adapt", gateway,
                   [this](GraphSpan& s) { do_adapt(s); });
              }),
        after_adapt(graph, flow::serial,
                    [this](SpanPtr span, auto& ports) { do_after_adapt(span, ports); }),
        store(graph, flow::serial,
              [this](SpanPtr span, SpanAsync::gateway_type& gateway) { do_store(span, gateway); }),
        retire(graph, flow::serial, [this](const SpanPtr& span) { do_retire(*span); }) {
    connect();
  }

  ~Nodes() {
    for (TokenPool* pool : {&slot_tokens, &slab_tokens, &output_tokens}) pool->close();
  }

  void connect() {
    flow::make_edge(spans, flow::input_port<0>(grant));
    flow::make_edge(slot_tokens.node(), flow::input_port<1>(grant));
    flow::make_edge(grant, cut);
    flow::make_edge(flow::output_port<0>(cut), waiting_slabs);
    flow::make_edge(flow::output_port<1>(cut), flow::input_port<0>(with_inputs));
    flow::make_edge(waiting_slabs, flow::input_port<0>(admit));
    flow::make_edge(slab_tokens.node(), flow::input_port<1>(admit));
    admitted.emplace(graph, flow::serial, [this](const std::tuple<SlabPtr, int>& pair) {
      const SlabPtr& slab = std::get<0>(pair);
      slab->token = TokenLease(slab_tokens, std::get<1>(pair));
      SpanTimes& times = slab->owner->span.times;
      if (times.reads_begin == SpanTimes::Time{}) times.reads_begin = SpanTimes::Clock::now();
      return slab;
    });
    flow::make_edge(admit, *admitted);
    flow::make_edge(*admitted, read);
    flow::make_edge(read, arrived);  // a gateway drops what its successor rejects: always a queue
    flow::make_edge(arrived, upload);
    flow::make_edge(upload, uploaded);
    flow::make_edge(uploaded, ready);
    flow::make_edge(flow::output_port<0>(ready), flow::input_port<0>(with_inputs));
    joined.emplace(graph, flow::serial, [](const std::tuple<SpanPtr, Inputs>& pair) {
      std::get<0>(pair)->span.times.inputs_there = std::get<1>(pair).since;
      return std::get<0>(pair);
    });
    flow::make_edge(with_inputs, *joined);
    flow::make_edge(*joined, forward);
    flow::make_edge(forward, forwarded);
    flow::make_edge(forwarded, after_forward);
    flow::make_edge(flow::output_port<0>(after_forward), to_adapt);
    flow::make_edge(flow::output_port<1>(after_forward), flow::input_port<1>(with_inputs));
    flow::make_edge(flow::output_port<2>(after_forward), retire);
    flow::make_edge(to_adapt, flow::input_port<0>(with_output));
    flow::make_edge(output_tokens.node(), flow::input_port<1>(with_output));
    with_buffer.emplace(graph, flow::serial, [this](const std::tuple<SpanPtr, int>& pair) {
      const SpanPtr& span = std::get<0>(pair);
      span->output = TokenLease(output_tokens, std::get<1>(pair));
      span->span.times.output_granted = SpanTimes::Clock::now();
      if (!options.outputs.empty()) span->span.output = options.outputs[span->output.token()];
      return span;
    });
    flow::make_edge(with_output, *with_buffer);
    flow::make_edge(*with_buffer, adapt);
    flow::make_edge(adapt, adapted);
    flow::make_edge(adapted, after_adapt);
    flow::make_edge(flow::output_port<0>(after_adapt), store);
    flow::make_edge(flow::output_port<1>(after_adapt), flow::input_port<1>(with_inputs));
    flow::make_edge(store, stored);
    flow::make_edge(stored, retire);
  }

  // Made in connect(): they only turn a pair from a join into the message itself.
  std::optional<flow::function_node<std::tuple<SlabPtr, int>, SlabPtr>> admitted;
  std::optional<flow::function_node<std::tuple<SpanPtr, Inputs>, SpanPtr>> joined;
  std::optional<flow::function_node<std::tuple<SpanPtr, int>, SpanPtr>> with_buffer;

  DeviceThreads& threads_of(const GraphSpan& span) { return devices[size_t(span.device)]; }

  void fail(GraphSpan& span, const char* step, std::exception_ptr cause) {
    if (!span.failure) span.failure = in_context(span, step, std::move(cause));
    int seen = first_failed;
    while (span.index < seen && !first_failed.compare_exchange_weak(seen, span.index)) {
    }
  }

  bool is_past_stop(const GraphSpan& span) const { return stopped || span.index > first_failed; }

  // Whether a step shall be done for the span; once skipped, always skipped.
  bool wanted(GraphSpan& span) const {
    if (is_past_stop(span) && !span.failure) span.skipped = true;
    return !span.skipped && !span.failure;
  }

  template <typename Ports>
  void do_cut(const std::tuple<int, int>& granted, Ports& ports) {
    auto travelling = std::make_shared<Travelling>();
    GraphSpan& span = travelling->span;
    span.index = std::get<0>(granted);
    span.name = "span " + std::to_string(span.index);
    travelling->slot = TokenLease(slot_tokens, std::get<1>(granted));
    const auto slot = size_t(travelling->slot.token());
    span.slot = options.slots[slot];
    if (!options.slot_devices.empty()) span.device = options.slot_devices[slot];
    span.times.slot_granted = SpanTimes::Clock::now();
    span.times.reads_idle_since = unread.none_since(span.times.slot_granted);
    if (wanted(span)) {
      try {
        work.plan(span);
        if (!options.slabs.empty()) plan_moves(*travelling);
        if (span.plan.slot_bytes > span.slot.size()) {
          throw std::logic_error("the span needs " + std::to_string(span.plan.slot_bytes) +
                                 " bytes, a slot has " + std::to_string(span.slot.size()));
        }
        travelling->slabs = cut_into_slabs(span.plan, options.slab_bytes);
      } catch (...) {
        fail(span, "plan", std::current_exception());
      }
    }
    travelling->slabs_left = travelling->slabs.size();
    unread.add(travelling->slabs.size());
    if (travelling->slabs.empty()) {
      span.times.reads_begin = span.times.reads_end = span.times.slot_granted;
      std::get<1>(ports).try_put(travelling);
    }
    for (const SlabRange& range : travelling->slabs) {
      std::get<0>(ports).try_put(std::make_shared<Slab>(Slab{travelling, range, {}, {}}));
    }
  }

  // Where slabs are memory, the kernel would write past one that is smaller than its read. Very
  // many tiny tensors may take more than the slot once they are packed: then they, too, stay as
  // read.
  void plan_moves(Travelling& travelling) const {
    ReadPlan& plan = travelling.span.plan;
    split_reads(plan, options.slab_bytes);
    ReadPlan packed = plan;
    travelling.moves = pack(packed, kOperandAlignment);
    const bool fits = packed.slot_bytes <= travelling.span.slot.size();
    if (fits && travelling.moves.size() <= kMostMoves) {
      plan = std::move(packed);
    } else {
      travelling.moves = {{0, 0, plan.slot_bytes}};
    }
  }

  ReadBatch reads_of(const SlabPtr& slab) {
    const GraphSpan& span = slab->owner->span;
    const uint64_t base = span.plan.reads[slab->range.first].slot_offset;
    const std::span<std::byte> memory =
        options.slabs.empty() ? span.slot.subspan(base) : options.slabs[slab->token.token()];
    ReadBatch batch{slab, {}};
    for (uint32_t i = slab->range.first; i < slab->range.last; ++i) {
      const PlannedRead& read_i = span.plan.reads[i];
      batch.reads.push_back({span.files[read_i.file], read_i.offset,
                             memory.subspan(read_i.slot_offset - base, read_i.bytes),
                             read_i.required_bytes});
    }
    return batch;
  }

  // Touches nothing of the span that `ready` writes: slabs of one span may be in all three nodes at
  // once. So does the next.
  void do_read(const SlabPtr& slab, SlabAsync::gateway_type& gateway) {
    gateway.reserve_wait();
    if (is_past_stop(slab->owner->span)) {
      gateway.try_put(slab);
      gateway.release_wait();
      return;
    }
    engine.submit(reads_of(slab), [slab, &gateway](ReadBatch batch, std::exception_ptr failure) {
      batch.memory.reset();
      slab->failure = failure;
      slab->is_there = failure == nullptr;
      gateway.try_put(slab);
      gateway.release_wait();
    });
  }

  // What was read into a slab; what was read into the slot is there already.
  void do_upload(const SlabPtr& slab, SlabAsync::gateway_type& gateway) {
    gateway.reserve_wait();
    const GraphSpan& span = slab->owner->span;
    if (is_past_stop(span)) slab->is_there = false;
    if (!options.upload || !slab->is_there) {
      gateway.try_put(slab);
      gateway.release_wait();
      return;
    }
    const std::span<const std::byte> memory = options.slabs[slab->token.token()];
    std::vector<StagedPiece> pieces;
    for (const Move& move : moves_of(span.plan, slab->range, slab->owner->moves)) {
      pieces.push_back({memory.subspan(move.from, move.bytes), move.to});
    }
    slab->step = "upload";
    options.upload(span, std::move(pieces), [slab, &gateway](std::exception_ptr failure) {
      slab->failure = failure;
      gateway.try_put(slab);
      gateway.release_wait();
    });
  }

  template <typename Ports>
  void do_ready(const SlabPtr& slab, Ports& ports) {
    Travelling& owner = *slab->owner;
    if (slab->failure) {
      fail(owner.span, slab->step, slab->failure);
    } else if (!slab->is_there) {
      owner.span.skipped = true;
    }
    const SpanPtr span = slab->owner;
    slab->token.reset();
    slab->owner.reset();
    const SpanTimes::Time now = SpanTimes::Clock::now();
    unread.remove_one(now);
    if (--owner.slabs_left > 0) return;
    span->span.times.reads_end = now;
    std::get<0>(ports).try_put(span);
  }

  void do_forward(GraphSpan& span) {
    ComputeThread& thread = threads_of(span).forwards();
    span.times.free_for_forward = thread.free_since;
    span.times.forward_begin = SpanTimes::Clock::now();
    work.forward(span);
    span.times.forward_end = thread.free_since = SpanTimes::Clock::now();
  }

  void do_adapt(GraphSpan& span) {
    ComputeThread& thread = threads_of(span).adapts();
    span.times.free_for_adapt = thread.free_since;
    span.times.adapt_begin = SpanTimes::Clock::now();
    work.adapt(span);
    span.times.adapt_end = thread.free_since = SpanTimes::Clock::now();
  }

  // Runs one step of a span on its thread; the message goes on whatever happens.
  template <typename Step>
  void on(ComputeThread& thread, const SpanPtr& span, const char* name,
          SpanAsync::gateway_type& gateway, Step step) {
    gateway.reserve_wait();
    thread.executor.post([this, span, name, &gateway, step] {
      if (wanted(span->span)) {
        try {
          step(span->span);
        } catch (...) {
          fail(span->span, name, std::current_exception());
        }
      }
      gateway.try_put(span);
      gateway.release_wait();
    });
  }

  template <typename Ports>
  void do_after_forward(const SpanPtr& span, Ports& ports) {
    const int index = span->span.index;
    if (options.advance == Advance::kAfterForward || !work.adapt) {
      std::get<1>(ports).try_put({index + 1, SpanTimes::Clock::now()});
    }
    if (work.adapt) {
      std::get<0>(ports).try_put(span);
    } else {
      span->slot.reset();
      std::get<2>(ports).try_put(span);
    }
  }

  template <typename Ports>
  void do_after_adapt(const SpanPtr& span, Ports& ports) {
    span->slot.reset();
    if (options.advance == Advance::kAfterAdapt) {
      std::get<1>(ports).try_put({span->span.index + 1, SpanTimes::Clock::now()});
    }
    std::get<0>(ports).try_put(span);
  }

  // An adapted span is stored even when the run is being stopped: its work shall not be lost.
  void do_store(const SpanPtr& span, SpanAsync::gateway_type& gateway) {
    gateway.reserve_wait();
    store_thread.post([this, span, &gateway] {
      GraphSpan& s = span->span;
      if (!s.skipped && !s.failure) {
        try {
          s.times.store_begin = SpanTimes::Clock::now();
          work.store(s);
        } catch (...) {
          fail(s, "store", std::current_exception());
        }
      }
      span->output.reset();
      gateway.try_put(span);
      gateway.release_wait();
    });
  }

  void do_retire(Travelling& span) {
    ++result.retired;
    if (span.span.skipped) ++result.skipped;
    if (span.span.failure) failures[span.span.index] = span.span.failure;
    span.span.work.reset();
  }
};

BlockGraph::BlockGraph(GraphOptions options, GraphWork work, IoEngine& engine,
                       std::vector<GraphDevice> devices, SerialExecutor& store)
    : nodes_(std::make_unique<Nodes>(std::move(options), std::move(work), engine, devices, store)) {
}

BlockGraph::~BlockGraph() = default;

GraphResult BlockGraph::run() {
  Nodes& n = *nodes_;
  n.slot_tokens.fill();
  n.slab_tokens.fill();
  n.output_tokens.fill();
  flow::input_port<1>(n.with_inputs).try_put({0, SpanTimes::Clock::now()});
  n.spans.activate();
  n.graph.wait_for_all();
  n.result.most_slots_in_use = n.slot_tokens.most_in_use();
  n.result.most_slabs_in_use = n.slab_tokens.most_in_use();
  n.result.most_outputs_in_use = n.output_tokens.most_in_use();
  if (n.result.retired != n.work.num_spans) {
    // A graph that starves returns as if it were finished.
    throw std::logic_error("internal error: " + std::to_string(n.result.retired) + " of " +
                           std::to_string(n.work.num_spans) + " spans retired");
  }
  if (!n.failures.empty()) std::rethrow_exception(n.failures.begin()->second);
  return n.result;
}

void BlockGraph::stop() noexcept { nodes_->stopped = true; }

}  // namespace coppice
