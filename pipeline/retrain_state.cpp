#include "pipeline/retrain_state.h"

#include <fmt/format.h>

#include <utility>

#include "pipeline/resident_tensors.h"
#include "pipeline/telemetry/json_text.h"
#include "storage/io/file.h"  // make_directories

namespace coppice {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

json as_json(const RetrainProgress& progress) {
  const auto maybe = [](const std::optional<double>& value) {
    return value ? json(*value) : json();
  };
  return {{"step", progress.step},
          {"tokens", progress.tokens},
          {"step_loss", progress.step_loss},
          {"epoch_loss", progress.epoch_loss},
          {"losses", progress.losses},
          {"validations", progress.validations},
          {"best", progress.best},
          {"loss_pruned", maybe(progress.loss_pruned)},
          {"loss_retrained", maybe(progress.loss_retrained)},
          {"fallback", progress.fallback}};
}

RetrainProgress progress_of(const json& record) {
  const auto maybe = [&](const char* key) {
    return record.at(key).is_null() ? std::nullopt : std::optional(record.at(key).get<double>());
  };
  RetrainProgress progress;
  progress.step = record.at("step");
  progress.tokens = record.at("tokens");
  progress.step_loss = record.at("step_loss");
  progress.epoch_loss = record.at("epoch_loss");
  progress.losses = record.at("losses").get<std::vector<double>>();
  progress.validations = record.at("validations").get<std::vector<double>>();
  progress.best = record.at("best");
  progress.loss_pruned = maybe("loss_pruned");
  progress.loss_retrained = maybe("loss_retrained");
  progress.fallback = record.at("fallback").get<std::string>();
  return progress;
}

}  // namespace

RetrainState::RetrainState(fs::path work_directory, const fs::path& output,
                           const Fingerprint& fingerprint, Resume resume,
                           const std::string& resume_command)
    : work_directory_(std::move(work_directory)) {
  require_resumable(work_directory_, resume, resume_command);
  make_directories(work_directory_);
  journal_ = std::make_unique<RunJournal>(work_directory_ / "journal.bin");
  const json outputs = canonical({output});
  bool is_started = false;
  for (const JournalRecord& record : journal_->records()) {
    const json payload = json::parse(record.payload);
    if (record.type == "run") {
      is_started = true;
      require_same_run(work_directory_, payload.at("fingerprint").get<Fingerprint>(), fingerprint);
      is_output_begun_ = payload.at("outputs") == outputs;
    } else if (record.type == "state") {
      number_ = payload.at("number");
      if (is_whole(path_of(payload), payload.at("file"))) saved_ = payload;
    } else if (record.type == "done" || record.type == "reopened") {
      is_finished_ = record.type == "done";
      side_files_ = payload.value("side_files", std::vector<std::string>());
    }
  }
  remove_others();
  if (is_started) return;
  journal_->append({"run", 1, json_text({{"fingerprint", fingerprint}, {"outputs", outputs}})});
}

// Killed between a record and the removal of what it replaced, a process leaves two files.
void RetrainState::remove_others() const {
  for (const fs::directory_entry& entry : fs::directory_iterator(work_directory_)) {
    const bool counts = saved_ && entry.path() == path_of(*saved_);
    if (entry.path().extension() == ".safetensors" && !counts) fs::remove(entry.path());
  }
}

fs::path RetrainState::path_of(const json& record) const {
  return work_directory_ / fmt::format("state.{}.safetensors", record.at("number").get<int64_t>());
}

void RetrainState::restore(Retrainer& trainer) const {
  trainer.restore(progress_of(saved_->at("progress")), read_tensors(path_of(*saved_)));
}

void RetrainState::save(const Retrainer& trainer, double seconds) {
  // A new file beside the old one: whichever record is the latest, its file is there.
  json record = {{"number", ++number_}, {"seconds", seconds}};
  const FileRecord file = write_tensors(path_of(record), trainer.state());
  record["file"] = {{"bytes", file.bytes}, {"xxh3_128", file.xxh3_128}};
  record["progress"] = as_json(trainer.progress());
  journal_->append({"state", 1, json_text(record)});
  if (saved_) fs::remove(path_of(*saved_));
  saved_ = std::move(record);
}

void RetrainState::record_finished(const std::vector<std::string>& side_files) {
  journal_->append({"done", 1, json_text({{"side_files", side_files}})});
  side_files_ = side_files;
  is_finished_ = true;
  remove_saved();
}

void RetrainState::record_reopened() {
  journal_->append({"reopened", 1, "{}"});
  is_finished_ = false;
}

void RetrainState::remove_saved() {
  if (saved_) fs::remove(path_of(*saved_));
  saved_.reset();
}

}  // namespace coppice
