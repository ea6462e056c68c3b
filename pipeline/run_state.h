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

/// Throws ConfigError unless `work_directory` is absent, empty (but for tokens), or holds a run
/// that shall be resumed; the message names `resume_command`.
void require_resumable(const std::filesystem::path& work_directory, Resume resume,
                       const std::string& resume_command);

/// Throws ConfigError naming the keys in which a run in `work_directory` differs from this one.
void require_same_run(const std::filesystem::path& work_directory, const Fingerprint& started_with,
                      const Fingerprint& fingerprint);

class RunState {
 public:
  /// Opens or starts the run in `work_directory`. Throws ConfigError if there is a run already and
  /// `resume` is kNo (names `resume_command`), or if its fingerprint differs (names the keys).
  /// Records whose files are absent or of another size do not count: that work is done again.
  RunState(const std::filesystem::path& work_directory,
           const std::filesystem::path& output_directory, const Fingerprint& fingerprint,
           Resume resume, const std::string& resume_command);

  bool is_resumed() const { return is_resumed_; }
  bool is_finished() const { return is_finished_; }
  bool has_outer() const { return has_outer_; }
  bool has_block(int block) const {
    const std::lock_guard lock(mutex_);
    return blocks_.count(block) != 0;
  }
  bool has_boundary(Boundary boundary) const {
    const std::lock_guard lock(mutex_);
    return boundaries_.count(boundary) != 0;
  }
  /// By block, what record_block was given.
  const std::map<int, nlohmann::json>& block_reports() const { return blocks_; }

  // Each is durable when it returns; any thread.
  void record_outer(const FileRecord& file);
  void record_boundary(Boundary boundary, const FileRecord& file);
  void record_block(int block, const std::vector<FileRecord>& files, const nlohmann::json& report);
  void record_finished();

 private:
  void append(const std::string& type, const nlohmann::json& payload);

  std::filesystem::path work_directory_;
  std::filesystem::path output_directory_;
  std::unique_ptr<RunJournal> journal_;
  mutable std::mutex mutex_;
  std::map<int, nlohmann::json> blocks_;
  std::set<Boundary> boundaries_;
  bool has_outer_ = false;
  bool is_finished_ = false;
  bool is_resumed_ = false;
};

}  // namespace coppice
