// The machinery a command streams a model with: device, I/O engine, threads, memory.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "configs/recipe.h"
#include "pipeline/device/device.h"
#include "pipeline/graph/block_graph.h"
#include "pipeline/plan/run_plan.h"  // RunSettings
#include "pipeline/telemetry/meter.h"
#include "storage/io/aligned_buffer.h"
#include "storage/io/io_engine.h"

namespace coppice {

class Machine {
 public:
  /// `note` is told which fallbacks were taken; `trace` may be null and outlives the machine.
  /// Throws ConfigError (no such device or engine), IoError.
  Machine(const ResourceOptions& resources, std::function<void(const std::string&)> note,
          Trace* trace = nullptr);

  Device& device() const { return *device_; }
  IoEngine& engine() const { return *engine_; }
  SerialExecutor& store_thread() { return store_; }
  SerialExecutor& hdf5_thread() { return hdf5_; }
  RunMeters& meters() { return meters_; }

  /// Slots, slabs and output buffers of a graph, as many as the settings say. `output_bytes` 0:
  /// nothing is adapted. Memory is allocated by the first call and lives as long as the machine:
  /// a later one wants the same, for a graph that comes after.
  GraphOptions graph_options(const ResourceOptions& resources, const RunSettings& settings,
                             uint64_t slot_bytes, uint64_t output_bytes);
  /// Prepares the engine for many reads of these files, which outlive the machine.
  void read_often(std::span<const ReadFile* const> files);

 private:
  RunMeters meters_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<IoEngine> engine_;
  std::vector<Registration> registrations_;  // of slots, slabs and files; gone before the engine
  std::vector<AlignedBuffer> outputs_;
  std::optional<GraphOptions> graph_memory_;
  SerialExecutor store_{"store"};
  SerialExecutor hdf5_{"hdf5"};  // HDF5 is called from nowhere else while a graph runs
};

}  // namespace coppice
