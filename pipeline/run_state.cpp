#include "pipeline/run_state.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "configs/errors.h"  // ConfigError

namespace coppice {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

json as_json(const FileRecord& file) {
  return {{"name", file.name}, {"bytes", file.bytes}, {"xxh3_128", file.xxh3_128}};
}

bool is_there(const fs::path& directory, const json& file) {
  std::error_code error;
  const auto bytes = fs::file_size(directory / file.at("name").get<std::string>(), error);
  return !error && bytes == file.at("bytes").get<uint64_t>();
}

Boundary boundary_of(const json& payload) {
  const bool dense = payload.at("stream") == "dense";
  return {dense ? Stream::kDense : Stream::kPropagated, payload.at("half").get<int>()};
}

// Tokens may be there before a run starts: they are kept when a run is refused for another reason.
bool holds_more_than_tokens(const fs::path& directory) {
  if (!fs::exists(directory)) return false;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory)) {
    if (entry.path().filename() != "tokens") return true;
  }
  return false;
}

}  // namespace

void require_resumable(const fs::path& work_directory, Resume resume,
                       const std::string& resume_command) {
  if (!holds_more_than_tokens(work_directory)) return;
  const bool has_journal = fs::exists(work_directory / "journal.bin");
  if (has_journal && resume == Resume::kYes) return;
  if (has_journal) {
    throw ConfigError(
        fmt::format("{}: the work directory holds an earlier run; continue it with\n  {}\n"
                    "or remove it to start again",
                    work_directory.string(), resume_command));
  }
  throw ConfigError(
      fmt::format("{}: not empty, and not the work directory of a run; choose another "
                  "with --work-dir",
                  work_directory.string()));
}

void require_same_run(const fs::path& work_directory, const Fingerprint& started_with,
                      const Fingerprint& fingerprint) {
  const auto differing = differing_keys(started_with, fingerprint);
  if (differing.empty()) return;
  throw ConfigError(
      fmt::format("{}: the run there was started with another {}; continue it with "
                  "what it was started with, or choose another work directory",
                  work_directory.string(), fmt::join(differing, ", ")));
}

RunState::RunState(const fs::path& work_directory, const fs::path& output_directory,
                   const Fingerprint& fingerprint, Resume resume, const std::string& resume_command)
    : work_directory_(work_directory), output_directory_(output_directory) {
  require_resumable(work_directory, resume, resume_command);
  fs::create_directories(work_directory);
  fs::create_directories(output_directory);
  journal_ = std::make_unique<RunJournal>(work_directory / "journal.bin");
  for (const JournalRecord& record : journal_->records()) {
    const json payload = json::parse(record.payload);
    if (record.type == "run") {
      is_resumed_ = true;
      require_same_run(work_directory, payload.at("fingerprint").get<Fingerprint>(), fingerprint);
    } else if (record.type == "outer") {
      has_outer_ = is_there(output_directory, payload);
    } else if (record.type == "boundary") {
      if (is_there(work_directory, payload.at("file"))) boundaries_.insert(boundary_of(payload));
    } else if (record.type == "block") {
      const json& files = payload.at("files");
      if (std::all_of(files.begin(), files.end(),
                      [&](const json& file) { return is_there(output_directory, file); })) {
        blocks_[payload.at("block").get<int>()] = payload.at("report");
      }
    } else if (record.type == "done") {
      is_finished_ = true;
    }
  }
  if (!is_resumed_) append("run", {{"fingerprint", fingerprint}});
}

void RunState::append(const std::string& type, const json& payload) {
  journal_->append({type, 1, payload.dump()});
}

void RunState::record_outer(const FileRecord& file) {
  append("outer", as_json(file));
  std::lock_guard lock(mutex_);
  has_outer_ = true;
}

void RunState::record_boundary(Boundary boundary, const FileRecord& file) {
  append("boundary", {{"stream", boundary.stream == Stream::kDense ? "dense" : "propagated"},
                      {"half", boundary.half},
                      {"file", as_json(file)}});
  std::lock_guard lock(mutex_);
  boundaries_.insert(boundary);
}

void RunState::record_block(int block, const std::vector<FileRecord>& files, const json& report) {
  json records = json::array();
  for (const FileRecord& file : files) records.push_back(as_json(file));
  append("block", {{"block", block}, {"files", records}, {"report", report}});
  std::lock_guard lock(mutex_);
  blocks_[block] = report;
}

void RunState::record_finished() {
  append("done", json::object());
  std::lock_guard lock(mutex_);
  is_finished_ = true;
}

}  // namespace coppice
