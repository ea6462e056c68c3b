#include "pipeline/machine.h"

#include "configs/errors.h"  // ConfigError
#include "pipeline/telemetry/metered_engine.h"
#include "pipeline/telemetry/trace.h"
#include "storage/io/aligned_buffer.h"

namespace coppice {
namespace {

EngineChoice engine_choice(const std::string& word) {
  if (word == "auto") return EngineChoice::kAuto;
  if (word == "uring") return EngineChoice::kUring;
  if (word == "pread") return EngineChoice::kPread;
  throw ConfigError("resources.io_engine: " + word + ": expected auto, uring or pread");
}

}  // namespace

Machine::Machine(const ResourceOptions& resources, std::function<void(const std::string&)> note,
                 Trace* trace) {
  meters_.trace = trace;
  device_ = make_device({resources.device, resources.compute_dtype, resources.threads});
  IoEngineOptions options;
  options.engine = engine_choice(resources.io_engine);
  options.on_fallback = std::move(note);
  engine_ = std::make_unique<MeteredEngine>(make_io_engine(options), meters_.reads, trace);
}

GraphOptions Machine::graph_options(const ResourceOptions& resources, const RunSettings& settings,
                                    uint64_t slot_bytes, uint64_t output_bytes) {
  if (graph_memory_) return *graph_memory_;
  GraphOptions options;
  options.slab_bytes = resources.slab_bytes;
  options.num_slabs = resources.num_slabs;
  for (int i = 0; i < settings.slots; ++i) {
    options.slots.push_back(device_->allocate_slot(slot_bytes));
  }
  for (int i = 0; i < resources.num_slabs; ++i) {
    const auto slab = device_->allocate_slab(resources.slab_bytes);
    if (!slab.empty()) options.slabs.push_back(slab);
  }
  if (!options.slabs.empty()) {
    options.upload = [this](GraphSpan& span, std::span<const std::byte> slab,
                            uint64_t slot_offset) {
      const TraceSlice slice(meters_.trace, Track::kUpload, span.name);
      device_->upload(slab, span.slot.data() + slot_offset);
    };
  }
  // What reads land in: slabs where there are any, because then slots are the device's memory.
  registrations_.push_back(engine_->register_long_lived(
      {.memory = options.slabs.empty() ? options.slots : options.slabs, .files = {}}));
  if (output_bytes > 0) {
    for (int i = 0; i < settings.outputs; ++i) {
      options.outputs.push_back(outputs_.emplace_back(output_bytes).span());
    }
  }
  graph_memory_ = options;
  return options;
}

void Machine::read_often(std::span<const ReadFile* const> files) {
  LongLived shards;
  shards.files.assign(files.begin(), files.end());
  registrations_.push_back(engine_->register_long_lived(shards));
}

}  // namespace coppice
