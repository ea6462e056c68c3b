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

/// Whether somebody knows what to do with more than one device.
enum class Devices { kOne, kSeveral };

class Machine {
 public:
  /// `note` is told which fallbacks were taken; `trace` may be null and outlives the machine.
  /// Throws ConfigError (no such device or engine; several devices where one is wanted, or of
  /// different kinds), IoError.
  Machine(const ResourceOptions& resources, std::function<void(const std::string&)> note,
          Trace* trace = nullptr, Devices devices = Devices::kOne,
          const DeviceFactory& factory = make_devices);

  /// The first one: all are alike.
  Device& device() const { return *devices_.front(); }
  Device& device(int index) const { return *devices_[size_t(index)]; }
  int num_devices() const { return int(devices_.size()); }
  std::string device_names() const;  // "cuda:0,cuda:1"
  /// Of the device that took the most.
  uint64_t peak_device_bytes() const;
  /// Seconds without a task, of the device that had least to do.
  double idle_seconds() const;
  /// That compress hidden states beside what is computed: half as many as there are cores, at least
  /// 2 and at most 8, which keep up with a fast disk.
  int codec_threads() const;
  IoEngine& engine() const { return *engine_; }
  SerialExecutor& store_thread() { return store_; }
  SerialExecutor& hdf5_thread() { return hdf5_; }
  RunMeters& meters() { return meters_; }

  /// Slots, slabs and output buffers of a graph, as many as the settings say; slots on each of the
  /// first `num_devices`, taking turns. `output_bytes` 0: nothing is adapted. Memory is allocated
  /// by the first call and lives as long as the machine: a later one wants the same, for a graph
  /// that comes after, on as many devices or on fewer.
  GraphOptions graph_options(const ResourceOptions& resources, const RunSettings& settings,
                             uint64_t slot_bytes, uint64_t output_bytes, int num_devices = 1);
  /// The threads of the first `num_devices`.
  std::vector<GraphDevice> graph_devices(int num_devices = 1) const;
  /// What Device::downloads() waits for, on the trace's timeline as `name`.
  CopyWait downloads(Device& device, const std::string& name);
  /// Prepares the engine for many reads of these files, which outlive the machine.
  void read_often(std::span<const ReadFile* const> files);

 private:
  GraphOptions allocate(const ResourceOptions& resources, const RunSettings& settings,
                        uint64_t slot_bytes, uint64_t output_bytes);

  RunMeters meters_;
  std::vector<std::unique_ptr<Device>> devices_;
  std::unique_ptr<IoEngine> engine_;
  std::vector<Registration> registrations_;  // of slots, slabs and files; gone before the engine
  std::vector<AlignedBuffer> outputs_;
  std::optional<GraphOptions> graph_memory_;  // of all devices
  SerialExecutor store_{"store"};
  SerialExecutor hdf5_{"hdf5"};  // HDF5 is called from nowhere else while a graph runs
};

}  // namespace coppice
