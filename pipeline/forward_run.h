// One model, and a reference beside it, streamed forward over some tokens: what evaluations share.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "configs/recipe.h"
#include "pipeline/device/device.h"
#include "pipeline/forward_pass.h"
#include "pipeline/scratch_directory.h"
#include "pipeline/telemetry/progress.h"
#include "pipeline/telemetry/trace.h"

namespace coppice {

struct ForwardRunOptions {
  std::filesystem::path model;
  std::filesystem::path against;       // a reference to compare with; may be empty
  std::filesystem::path work;          // tokens and cache; removed afterwards
  std::filesystem::path architecture;  // an extra description; may be empty
  std::filesystem::path trace;         // a timeline to write; may be empty
  ResourceOptions resources;
  Verbosity verbosity = Verbosity::kNormal;
  DeviceFactory device_factory = make_devices;
};

struct ForwardRunTotals {
  double wall_seconds = 0;
  double waited_seconds = 0;  // of the device's thread, for bytes
  uint64_t peak_rss_bytes = 0;
  std::string device;  // and what it computed with
};

/// Holds no more than the planned slots (a block or a chunk of the head each) and some windows.
class ForwardRun {
 public:
  /// Throws ConfigError for a model that is not fit for what is wanted.
  using Check = std::function<void(const std::filesystem::path& directory, const Architecture&)>;
  /// The tokens of the first model's tokenizer; files of its own go to `cache`.
  using ReadTokens =
      std::function<TokenWindows(const std::filesystem::path& cache, const Architecture&)>;

  /// Opens and checks the models before tokens are made. `options` outlives the run. Throws any of
  /// the program's errors.
  ForwardRun(const ForwardRunOptions& options, const Check& check, const ReadTokens& read_tokens);

  const TokenWindows& tokens() const { return tokens_; }
  const Device& device() const { return machine_.device(); }
  ForwardPass& model() { return *pass_; }
  ForwardPass* reference() { return reference_pass_.get(); }  // null: there is none

  /// Runs `work` on the device's thread.
  void on_device(const std::function<void()>& work) const {
    machine_.device().executor().run(work);
  }

  /// A span of one of the two.
  struct PassSpan {
    ForwardPass* pass;
    ModelSpan span;
  };
  /// Once: the body of the reference, that of the model, then `behind`, each of which `add` is told
  /// on the device's thread. Throws Interrupted.
  void stream(const std::vector<PassSpan>& behind,
              const std::function<void(const GraphSpan&, bool is_reference)>& add);

  ForwardRunTotals totals();

 private:
  SourceModel open(const std::filesystem::path& directory, const Check& check) const;
  std::optional<SourceModel> open_reference(const Check& check) const;
  std::unique_ptr<ForwardPass> make_pass(const SourceModel& model, const char* cache);
  void forward(GraphSpan& span,
               const std::function<void(const GraphSpan&, bool is_reference)>& add);

  const ForwardRunOptions& options_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  Progress progress_;
  SourceModel model_;
  std::optional<SourceModel> reference_;
  std::unique_ptr<Trace> trace_;  // null: not wanted
  ScratchDirectory scratch_;
  TokenWindows tokens_;
  Machine machine_;
  std::unique_ptr<ForwardPass> pass_, reference_pass_;  // the latter null without a reference
  std::vector<PassSpan> spans_;
  std::string at_work_;
};

}  // namespace coppice
