// What of a run is done: the journal read as facts, and written as they come true.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "stages/span_job.h"
#include "storage/journal/fingerprint.h"
#include "storage/journal/run_journal.h"

namespace coppice {

enum class Resume { kNo, kYes };

/// Below a work directory: that of the trials which a run is preceded by.
inline constexpr char kTrialsDirectory[] = "trials";

/// Throws ConfigError unless `work_directory` is absent, empty (but for tokens and trials), or
/// holds a run that shall be resumed; the message names `resume_command`.
void require_resumable(const std::filesystem::path& work_directory, Resume resume,
                       const std::string& resume_command);

/// Throws ConfigError naming the keys in which a run in `work_directory` differs from this one.
void require_same_run(const std::filesystem::path& work_directory, const Fingerprint& started_with,
                      const Fingerprint& fingerprint);

/// Whether the file is there with the bytes of its record {bytes, xxh3_128}. Reads all of it.
bool is_whole(const std::filesystem::path& path, const nlohmann::json& file);

/// Of each, what it is called whatever the current directory, as a journal gives it back.
nlohmann::json canonical(const std::vector<std::filesystem::path>& directories);

class RunState {
 public:
  /// Opens or starts the run in `work_directory`. Throws ConfigError if there is a run already and
  /// `resume` is kNo (names `resume_command`), or if its fingerprint differs (names the keys).
  /// Records whose files are absent or of another size do not count, nor those of held-out windows
  /// and unit scores whose files are damaged: that work is done again.
  /// `output_directories`: by recipe, where its shards go. Throws ConfigError if one is neither
  /// empty, nor where the run was started, nor holds what the run made.
  RunState(const std::filesystem::path& work_directory,
           const std::vector<std::filesystem::path>& output_directories,
           const Fingerprint& fingerprint, Resume resume, const std::string& resume_command);

  bool is_resumed() const { return is_resumed_; }
  bool is_finished() const { return is_finished_; }
  /// What record_finished() was given.
  const std::vector<std::string>& side_files() const { return side_files_; }
  bool has_outer(size_t recipe) const { return outer_.contains(recipe); }
  bool has_block(size_t recipe, int block) const {
    const std::lock_guard lock(mutex_);
    return blocks_.at(recipe).contains(block);
  }
  bool has_boundary(Boundary boundary) const {
    const std::lock_guard lock(mutex_);
    return boundaries_.count(boundary) != 0;
  }
  /// Whether the held-out windows of all recipes as they enter this half-block are there.
  bool has_held_out(int half) const {
    const std::lock_guard lock(mutex_);
    return held_out_.contains(half);
  }
  bool has_unit_scores() const { return has_unit_scores_; }
  /// By block, what record_block was given.
  const std::map<int, nlohmann::json>& block_reports(size_t recipe) const {
    return blocks_.at(recipe);
  }
  /// By block, what record_survey was given. Not while another thread records.
  const std::map<int, nlohmann::json>& surveys() const { return surveys_; }
  /// What record_judged was given; null before.
  const nlohmann::json& judged() const { return judged_; }

  // Each is durable when it returns; any thread. A file's name is that below its directory.
  void record_outer(size_t recipe, const FileRecord& file);
  void record_boundary(Boundary boundary, const FileRecord& file);
  void record_block(size_t recipe, int block, const std::vector<FileRecord>& files,
                    const nlohmann::json& report);
  void record_survey(int block, const nlohmann::json& found);
  void record_held_out(int half, const FileRecord& file);
  void record_judged(const nlohmann::json& losses);
  void record_unit_scores(const FileRecord& file);
  /// side_files   copied into every output, below it
  void record_finished(const std::vector<std::string>& side_files);
  /// A finished run makes again what somebody removed: until then it is not finished.
  void record_reopened();

 private:
  void require_own_outputs(const nlohmann::json& outputs) const;
  void append(const std::string& type, const nlohmann::json& payload);
  void take(const std::string& type, const nlohmann::json& payload, const Fingerprint& fingerprint);

  std::filesystem::path work_directory_;
  std::vector<std::filesystem::path> output_directories_;
  std::unique_ptr<RunJournal> journal_;
  mutable std::mutex mutex_;
  std::vector<std::map<int, nlohmann::json>> blocks_;  // by recipe
  std::map<int, nlohmann::json> surveys_;
  nlohmann::json judged_;
  nlohmann::json started_outputs_;  // by recipe, the directories of the process that began
  std::set<Boundary> boundaries_;
  std::set<int> held_out_;  // half-blocks
  std::set<size_t> outer_;  // recipes
  std::vector<std::string> side_files_;
  bool has_unit_scores_ = false;
  bool is_finished_ = false;
  bool is_resumed_ = false;
};

}  // namespace coppice
