#include "pipeline/run_state.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "configs/errors.h"  // ConfigError
#include "pipeline/telemetry/json_text.h"
#include "storage/io/file.h"  // make_directories, hash_file

namespace coppice {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

json as_json(const FileRecord& file) {
  return {{"name", file.name}, {"bytes", file.bytes}, {"xxh3_128", file.xxh3_128}};
}

fs::path path_of(const fs::path& directory, const json& file) {
  return directory / file.at("name").get<std::string>();
}

bool has_its_size(const fs::path& path, const json& file) {
  std::error_code error;
  const auto bytes = fs::file_size(path, error);
  return !error && bytes == file.at("bytes").get<uint64_t>();
}

bool is_there(const fs::path& directory, const json& file) {
  return has_its_size(path_of(directory, file), file);
}

bool is_whole_in(const fs::path& directory, const json& file) {
  return is_whole(path_of(directory, file), file);
}

Boundary boundary_of(const json& payload) {
  const bool dense = payload.at("stream") == "dense";
  return {dense ? Stream::kDense : Stream::kPropagated, payload.at("half").get<int>()};
}

// Tokens may be there before a run starts: they are kept when a run is refused for another reason.
// So may trials, which are a run of their own and are resumed as one.
bool holds_more_than_tokens(const fs::path& directory) {
  if (!fs::exists(directory)) return false;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory)) {
    const fs::path name = entry.path().filename();
    if (name != "tokens" && name != kTrialsDirectory) return true;
  }
  return false;
}

}  // namespace

bool is_whole(const fs::path& path, const json& file) {
  return has_its_size(path, file) &&
         hash_file(path).xxh3_128 == file.at("xxh3_128").get<std::string>();
}

json canonical(const std::vector<fs::path>& directories) {
  json paths = json::array();
  for (const fs::path& directory : directories) {
    paths.push_back(fs::weakly_canonical(fs::absolute(directory)).string());
  }
  return json::parse(json_text(paths));
}

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

RunState::RunState(const fs::path& work_directory, const std::vector<fs::path>& output_directories,
                   const Fingerprint& fingerprint, Resume resume, const std::string& resume_command)
    : work_directory_(work_directory),
      output_directories_(output_directories),
      blocks_(output_directories.size()) {
  require_resumable(work_directory, resume, resume_command);
  make_directories(work_directory);
  journal_ = std::make_unique<RunJournal>(work_directory / "journal.bin");
  const json outputs = canonical(output_directories);
  for (const JournalRecord& record : journal_->records()) {
    take(record.type, json::parse(record.payload), fingerprint);
  }
  if (is_resumed_) {
    require_own_outputs(outputs);
  } else {
    append("run", {{"fingerprint", fingerprint}, {"outputs", outputs}});
  }
}

// An output may have been moved with what is in it; what lies elsewhere is somebody else's.
void RunState::require_own_outputs(const json& outputs) const {
  for (size_t recipe = 0; recipe < output_directories_.size(); ++recipe) {
    const fs::path& directory = output_directories_[recipe];
    if (outputs.at(recipe) == started_outputs_.at(recipe)) continue;
    if (!fs::exists(directory) || fs::is_empty(directory)) continue;
    if (has_outer(recipe) || !blocks_.at(recipe).empty()) continue;
    throw ConfigError(
        fmt::format("--output-dir: {}: not empty, and not what the run in {} made, which writes to "
                    "{}; continue "
                    "it there, or in a directory that is empty",
                    directory.string(), work_directory_.string(),
                    started_outputs_.at(recipe).get<std::string>()));
  }
}

// The run's own record is the first, so what comes after it is of the same recipes.
void RunState::take(const std::string& type, const json& payload, const Fingerprint& fingerprint) {
  const auto recipe = [&] { return payload.at("recipe").get<size_t>(); };
  if (type == "run") {
    is_resumed_ = true;
    require_same_run(work_directory_, payload.at("fingerprint").get<Fingerprint>(), fingerprint);
    started_outputs_ = payload.at("outputs");
  } else if (type == "outer") {
    if (is_there(output_directories_.at(recipe()), payload.at("file"))) outer_.insert(recipe());
  } else if (type == "boundary") {
    if (is_there(work_directory_, payload.at("file"))) boundaries_.insert(boundary_of(payload));
  } else if (type == "held out") {
    if (is_whole_in(work_directory_, payload.at("file"))) {
      held_out_.insert(payload.at("half").get<int>());
    }
  } else if (type == "block") {
    const json& files = payload.at("files");
    const fs::path& directory = output_directories_.at(recipe());
    if (std::all_of(files.begin(), files.end(),
                    [&](const json& file) { return is_there(directory, file); })) {
      blocks_[recipe()][payload.at("block").get<int>()] = payload.at("report");
    }
  } else if (type == "survey") {
    surveys_[payload.at("block").get<int>()] = payload.at("found");
  } else if (type == "judged") {
    judged_ = payload;
  } else if (type == "unit scores") {
    has_unit_scores_ = is_whole_in(work_directory_, payload.at("file"));
  } else if (type == "done" || type == "reopened") {
    is_finished_ = type == "done";
    side_files_ = payload.value("side_files", std::vector<std::string>());
  }
}

void RunState::append(const std::string& type, const json& payload) {
  journal_->append({type, 1, json_text(payload)});
}

void RunState::record_outer(size_t recipe, const FileRecord& file) {
  append("outer", {{"recipe", recipe}, {"file", as_json(file)}});
  std::lock_guard lock(mutex_);
  outer_.insert(recipe);
}

void RunState::record_boundary(Boundary boundary, const FileRecord& file) {
  append("boundary", {{"stream", boundary.stream == Stream::kDense ? "dense" : "propagated"},
                      {"half", boundary.half},
                      {"file", as_json(file)}});
  std::lock_guard lock(mutex_);
  boundaries_.insert(boundary);
}

void RunState::record_block(size_t recipe, int block, const std::vector<FileRecord>& files,
                            const json& report) {
  json records = json::array();
  for (const FileRecord& file : files) records.push_back(as_json(file));
  append("block", {{"recipe", recipe}, {"block", block}, {"files", records}, {"report", report}});
  std::lock_guard lock(mutex_);
  blocks_.at(recipe)[block] = report;
}

void RunState::record_survey(int block, const json& found) {
  append("survey", {{"block", block}, {"found", found}});
  std::lock_guard lock(mutex_);
  surveys_[block] = found;
}

void RunState::record_held_out(int half, const FileRecord& file) {
  append("held out", {{"half", half}, {"file", as_json(file)}});
  std::lock_guard lock(mutex_);
  held_out_.insert(half);
}

void RunState::record_judged(const json& losses) {
  append("judged", losses);
  std::lock_guard lock(mutex_);
  judged_ = losses;
}

void RunState::record_unit_scores(const FileRecord& file) {
  append("unit scores", {{"file", as_json(file)}});
  has_unit_scores_ = true;
}

void RunState::record_reopened() {
  append("reopened", json::object());
  std::lock_guard lock(mutex_);
  is_finished_ = false;
}

void RunState::record_finished(const std::vector<std::string>& side_files) {
  append("done", {{"side_files", side_files}});
  std::lock_guard lock(mutex_);
  side_files_ = side_files;
  is_finished_ = true;
}

}  // namespace coppice
