// How well reading and computing overlap: a model streamed forward as the program does it, beside
// the same with everything in memory, and the same with stages that do nothing.
//
// usage: stream_bench MODEL_DIR WINDOWS SEQLEN SCRATCH_DIR ROUNDS [GB/s]
//
// With a rate, the disk is held to it (it should be a rate the disk always has): a shared disk
// swings by more than what is to be measured.
//
// Prints one line of JSON: medians of seconds `both`, `compute` (weights in their slots, hidden
// states as tensors), `io` (weights read; hidden states read, decoded, encoded and written), and
// ratio = both / max(compute, io) with its quartiles, over rounds in which the three alternate.
#include <ATen/ops/empty.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <numeric>
#include <optional>
#include <vector>

#include "pipeline/graph/block_graph.h"
#include "pipeline/graph/cached_activations.h"
#include "pipeline/machine.h"
#include "pipeline/model_spans.h"
#include "pipeline/resident_boundaries.h"
#include "pipeline/span_work.h"
#include "stages/calibrate.h"
#include "tests/bench/paced_engine.h"

namespace coppice {
namespace {

namespace fs = std::filesystem;

class StreamBench {
 public:
  /// `rate`: bytes a second the disk is held to, 0 as fast as it can.
  StreamBench(const fs::path& directory, int windows, int seqlen, fs::path scratch, double rate)
      : model_(open_model(directory, {})),
        tokens_(numbered_tokens(windows, seqlen, model_.architecture.vocab)),
        spans_(model_, tokens_),
        machine_({}, [](const std::string& line) { fmt::print(stderr, "{}\n", line); }),
        scratch_(std::move(scratch)),
        compute_(machine_.device().compute_dtype(scalar_type(model_.architecture.dtype))) {
    blocks_ = spans_.block_spans();
    for (size_t block = 0; block < blocks_.size(); ++block) {
      slots_.push_back(machine_.device().allocate_slot(spans_.slot_bytes()));
    }
    if (rate > 0) paced_.emplace(machine_.engine(), rate);
    machine_.read_often(spans_.files());
    machine_.device().executor().run([this] {
      rotary_ = make_rotary_table(model_.architecture.rope, model_.architecture.head_dim,
                                  tokens_.seqlen, compute_, machine_.device().where());
    });
    fs::create_directories(scratch_);
    load();
  }
  ~StreamBench() { fs::remove_all(scratch_); }

  double both() {
    return with_cache([this](CachedBoundaries& cached) {
      return stream(2, Reads::kYes, [&](GraphSpan& span) {
        UsersBoundaries boundaries(cached, user_);
        compute(span, boundaries);
        cached.expire({Stream::kDense, 2 * work_of(span).span.first_block});
      });
    });
  }

  double compute_alone() {
    ResidentBoundaries resident(int(tokens_.count()), stored(), compute_,
                                ResidentBoundaries::Keep::kBetweenBlocks);
    machine_.device().executor().run([&] { begin(resident); });
    return stream(int(slots_.size()), Reads::kNo,
                  [&](GraphSpan& span) { compute(span, resident); });
  }

  double io_alone() {
    return with_cache([this](CachedBoundaries& cached) {
      return stream(2, Reads::kYes, [&](GraphSpan& span) {
        const int half = 2 * work_of(span).span.first_block;
        const auto source = cached.source({Stream::kDense, half}, user_);
        const auto sink = cached.sink({Stream::kDense, half + 2}, user_);
        std::vector<int> order(size_t(tokens_.count()));
        std::iota(order.begin(), order.end(), 0);
        source->announce(order);
        for (const int window : order) sink->write(window, source->read({&window, 1}).hidden);
        cached.expire({Stream::kDense, half});
      });
    });
  }

 private:
  enum class Reads { kYes, kNo };

  static TokenWindows numbered_tokens(int windows, int seqlen, int64_t vocab) {
    TokenWindows tokens;
    tokens.seqlen = seqlen;
    tokens.ids.resize(size_t(windows) * size_t(seqlen));
    for (size_t i = 0; i < tokens.ids.size(); ++i) tokens.ids[i] = int32_t(int64_t(i) % vocab);
    return tokens;
  }

  IoEngine& engine() { return paced_ ? *paced_ : machine_.engine(); }
  at::ScalarType stored() const { return scalar_type(model_.architecture.dtype); }

  /// x_0: anything finite and different in each element.
  void begin(Boundaries& boundaries) {
    const auto sink = boundaries.sink({Stream::kDense, 0});
    at::Tensor x = at::empty({tokens_.seqlen, model_.architecture.hidden}, at::kFloat);
    for (int window = 0; window < tokens_.count(); ++window) {
      auto* value = x.mutable_data_ptr<float>();
      for (int64_t i = 0; i < x.numel(); ++i) {
        value[i] = float((i * 7919 + window * 104729) % 2048) / 1024.0f - 1.0f;
      }
      sink->write(window, x);
    }
  }

  void compute(GraphSpan& span, Boundaries& boundaries) {
    start_job(span, model_, machine_.device(), rotary_, boundaries, {});
    WindowJob job{*work_of(span).job, work_of(span).job->halves, nullptr};
    Calibrate({.statistics = Calibrate::Statistics::kSquares}).run(job);
    work_of(span).job.reset();
  }

  /// Reads every block into its slot, where compute_alone() finds it.
  void load() {
    stream(int(slots_.size()), Reads::kYes, [](GraphSpan&) {});
  }

  double with_cache(const std::function<double(CachedBoundaries&)>& measure) {
    CacheOptions options;
    options.directory = scratch_;
    options.shape = {tokens_.count(), tokens_.seqlen, model_.architecture.hidden,
                     model_.architecture.dtype};
    options.compute = compute_;
    // As the plan has it: small hidden states stay in memory as well.
    if (3 * options.shape.chunk_bytes() * uint64_t(tokens_.count()) < (uint64_t{32} << 20)) {
      options.inputs_in_ram = tokens_.count();
    }
    CachedBoundaries cached(options, engine(), machine_.hdf5_thread(), machine_.meters(),
                            [](Boundary, const FileRecord&) {});
    cached.set_unwanted([](Boundary boundary) { return boundary.half % 2 == 1; });
    machine_.device().executor().run([&] {
      UsersBoundaries boundaries(cached, user_);
      begin(boundaries);
    });
    cached.wait_durable({Stream::kDense, 0});
    const double seconds = measure(cached);
    const auto start = std::chrono::steady_clock::now();
    cached.wait_durable({Stream::kDense, 2 * int(blocks_.size())});  // the drain is part of it
    return seconds + seconds_since(start);
  }

  static double seconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

  double stream(int num_slots, Reads reads, std::function<void(GraphSpan&)> forward) {
    GraphOptions options;
    options.slots.assign(slots_.begin(), slots_.begin() + num_slots);
    GraphWork work;
    work.num_spans = int(blocks_.size());
    work.plan = [&](GraphSpan& span) {
      plan_span(span, spans_, blocks_[size_t(span.index)]);
      if (reads == Reads::kNo) span.plan.reads.clear();
    };
    work.forward = std::move(forward);
    BlockGraph graph(std::move(options), std::move(work), engine(),
                     {{machine_.device().executor()}}, machine_.store_thread());
    const auto start = std::chrono::steady_clock::now();
    graph.run();
    return seconds_since(start);
  }

  SourceModel model_;
  TokenWindows tokens_;
  ModelSpans spans_;
  Machine machine_;
  std::optional<PacedEngine> paced_;
  fs::path scratch_;
  at::ScalarType compute_;
  CacheUser user_{.device = &machine_.device()};
  RotaryTable rotary_;
  std::vector<ModelSpan> blocks_;
  std::vector<std::span<std::byte>> slots_;
};

double quantile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  return values[std::min(size_t(share * double(values.size())), values.size() - 1)];
}
double median(const std::vector<double>& values) { return quantile(values, 0.5); }

}  // namespace
}  // namespace coppice

int main(int argc, char** argv) {
  if (argc != 6 && argc != 7) {
    fmt::print(stderr, "usage: stream_bench MODEL_DIR WINDOWS SEQLEN SCRATCH_DIR ROUNDS [GB/s]\n");
    return 2;
  }
  coppice::StreamBench bench(argv[1], std::atoi(argv[2]), std::atoi(argv[3]), argv[4],
                             argc == 7 ? 1e9 * std::atof(argv[6]) : 0);
  std::vector<double> both, compute, io, ratios;
  for (int round = 0; round < std::atoi(argv[5]); ++round) {
    // Each side goes first in every other round: the rate of a shared disk drifts.
    if (round % 2 == 0) both.push_back(bench.both());
    io.push_back(bench.io_alone());
    if (round % 2 == 1) both.push_back(bench.both());
    compute.push_back(bench.compute_alone());
    ratios.push_back(both.back() / std::max(compute.back(), io.back()));
  }
  fmt::print(
      "{{\"both\": {:.4f}, \"compute\": {:.4f}, \"io\": {:.4f}, \"ratio\": {:.4f}, "
      "\"quartiles\": [{:.4f}, {:.4f}]}}\n",
      coppice::median(both), coppice::median(compute), coppice::median(io), coppice::median(ratios),
      coppice::quantile(ratios, 0.25), coppice::quantile(ratios, 0.75));
  return 0;
}
