// What of a retraining is done, so that one that was interrupted continues.
#pragma once

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "pipeline/run_state.h"  // Resume
#include "stages/retrain/retrainer.h"
#include "storage/journal/fingerprint.h"
#include "storage/journal/run_journal.h"

namespace coppice {

/// A journal of saved states: each record holds the scalars and names a file of tensors,
/// `state.<number>.safetensors`; the latest whose file is there with the bytes recorded counts, the
/// others are removed. One thread.
class RetrainState {
 public:
  /// Opens or starts the run in `work_directory`. Throws ConfigError as RunState does.
  RetrainState(std::filesystem::path work_directory, const std::filesystem::path& output,
               const Fingerprint& fingerprint, Resume resume, const std::string& resume_command);

  bool is_finished() const { return is_finished_; }
  /// What record_finished() was given.
  const std::vector<std::string>& side_files() const { return side_files_; }
  /// Whether an earlier process may have written to this output directory.
  bool is_output_begun() const { return is_output_begun_; }
  /// Whether an earlier process saved something.
  bool has_saved() const { return saved_.has_value(); }
  double seconds() const { return saved_ ? saved_->at("seconds").get<double>() : 0; }

  /// Puts the trainer where the latest record has it. On the device's thread. Throws IoError,
  /// CorruptionError.
  void restore(Retrainer& trainer) const;

  /// Durable when it returns. `seconds`: spent training so far, all processes together. On the
  /// device's thread. Throws IoError.
  void save(const Retrainer& trainer, double seconds);

  /// Removes what was saved, too. side_files   copied into the output, below it
  void record_finished(const std::vector<std::string>& side_files);
  /// A finished run makes again what somebody removed: until then it is not finished.
  void record_reopened();
  /// Of no use once the run is finished.
  void remove_saved();

 private:
  void remove_others() const;
  std::filesystem::path path_of(const nlohmann::json& record) const;

  std::filesystem::path work_directory_;
  std::unique_ptr<RunJournal> journal_;
  std::optional<nlohmann::json> saved_;  // the record that counts
  int64_t number_ = 0;                   // of the latest file
  std::vector<std::string> side_files_;
  bool is_finished_ = false;
  bool is_output_begun_ = false;
};

}  // namespace coppice
