#include "pipeline/machine.h"

#include <algorithm>
#include <thread>
#include <utility>

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

// `done`, which also ends what begins on the timeline now.
CopyCompletion traced(Trace* trace, const std::string& name, CopyCompletion done) {
  if (trace == nullptr) return done;
  const uint64_t id = trace->begin(Track::kUpload, name, {});
  return [=, done = std::move(done)](std::exception_ptr failure) {
    trace->end(Track::kUpload, name, id);
    done(std::move(failure));
  };
}

}  // namespace

Machine::Machine(const ResourceOptions& resources, std::function<void(const std::string&)> note,
                 Trace* trace, Devices devices, const DeviceFactory& factory) {
  meters_.trace = trace;
  devices_ = factory(
      {resources.device, resources.compute_dtype, resources.threads, resources.vram_budget_bytes});
  if (devices == Devices::kOne && devices_.size() > 1) {
    throw ConfigError("resources.device: " + resources.device +
                      ": expected one device; blocks are handed to several only by run, under "
                      "dense propagation");
  }
  if (resources.vram_budget_bytes > 0 && device().is_host()) {
    note("resources.vram_budget: " + device().name() + " has no memory of its own: no effect");
  }
  IoEngineOptions options;
  options.engine = engine_choice(resources.io_engine);
  options.on_fallback = std::move(note);
  engine_ = std::make_unique<MeteredEngine>(make_io_engine(options), meters_.reads, trace);
}

std::string Machine::device_names() const {
  std::string names;
  for (const auto& device : devices_) names += (names.empty() ? "" : ",") + device->name();
  return names;
}

uint64_t Machine::peak_device_bytes() const {
  uint64_t most = 0;
  for (const auto& device : devices_) most = std::max(most, device->peak_bytes());
  return most;
}

int Machine::codec_threads() const {
  return std::clamp(int(std::thread::hardware_concurrency()) / 2, 2, 8);
}

double Machine::idle_seconds() const {
  double most = 0;
  for (const auto& device : devices_) most = std::max(most, device->executor().idle_seconds());
  return most;
}

std::vector<GraphDevice> Machine::graph_devices(int num_devices) const {
  std::vector<GraphDevice> devices;
  devices.reserve(size_t(num_devices));
  for (int index = 0; index < num_devices; ++index) devices.push_back({device(index).executor()});
  return devices;
}

GraphOptions Machine::graph_options(const ResourceOptions& resources, const RunSettings& settings,
                                    uint64_t slot_bytes, uint64_t output_bytes, int num_devices) {
  if (!graph_memory_) graph_memory_ = allocate(resources, settings, slot_bytes, output_bytes);
  GraphOptions options = *graph_memory_;
  std::erase_if(options.slots, [&, slot = 0](const auto&) mutable {
    return options.slot_devices[size_t(slot++)] >= num_devices;
  });
  std::erase_if(options.slot_devices, [&](int device) { return device >= num_devices; });
  // With one device there is nobody to run a forward beside its adaptation.
  options.advance = num_devices > 1 ? Advance::kAfterForward : Advance::kAfterAdapt;
  return options;
}

GraphOptions Machine::allocate(const ResourceOptions& resources, const RunSettings& settings,
                               uint64_t slot_bytes, uint64_t output_bytes) {
  GraphOptions options;
  options.slab_bytes = resources.slab_bytes;
  options.num_slabs = resources.num_slabs;
  for (int i = 0; i < settings.slots; ++i) {
    for (int index = 0; index < num_devices(); ++index) {
      options.slots.push_back(device(index).allocate_slot(slot_bytes));
      options.slot_devices.push_back(index);
    }
  }
  // Any device copies from and to what the first one staged.
  for (int i = 0; i < resources.num_slabs; ++i) {
    const auto slab = device().allocate_staging(resources.slab_bytes);
    if (!slab.empty()) options.slabs.push_back(slab);
  }
  if (!options.slabs.empty()) {
    options.upload = [this](const GraphSpan& span, const std::vector<StagedPiece>& pieces,
                            CopyCompletion done) {
      std::vector<StagedCopy> copies;
      copies.reserve(pieces.size());
      for (const StagedPiece& piece : pieces) {
        copies.push_back({piece.bytes, span.slot.data() + piece.slot_offset});
      }
      device(span.device)
          .upload(std::move(copies), traced(meters_.trace, span.name, std::move(done)));
    };
  }
  // What reads land in: slabs where there are any, because then slots are the device's memory.
  registrations_.push_back(engine_->register_long_lived(
      {.memory = options.slabs.empty() ? options.slots : options.slabs, .files = {}}));
  if (output_bytes > 0) {
    for (int i = 0; i < settings.outputs; ++i) {
      const auto staged = device().allocate_staging(output_bytes);
      options.outputs.push_back(staged.empty() ? outputs_.emplace_back(output_bytes).span()
                                               : staged);
    }
  }
  return options;
}

CopyWait Machine::downloads(Device& device, const std::string& name) {
  CopyWait wait = device.downloads();
  if (meters_.trace == nullptr || device.is_host()) return wait;
  const uint64_t id = meters_.trace->begin(Track::kDownload, name, {});
  return [=, this] {
    wait();
    meters_.trace->end(Track::kDownload, name, id);
  };
}

void Machine::read_often(std::span<const ReadFile* const> files) {
  LongLived shards;
  shards.files.assign(files.begin(), files.end());
  registrations_.push_back(engine_->register_long_lived(shards));
}

}  // namespace coppice
