// What of a run is durable: an append-only, checksummed set of records.
#pragma once

#include <cstdint>
#include <filesystem>
#include <mutex>
#include <string>
#include <vector>

#include "storage/io/file.h"

namespace coppice {

/// `payload` is JSON text whose meaning belongs to `type` and `version`.
struct JournalRecord {
  std::string type;  // "run", "boundary", "block"; later "window", "step", "done"
  uint32_t version = 1;
  std::string payload;

  bool operator==(const JournalRecord&) const = default;
};

/// The records form a set: what has no record is done again, in any order. Appending is durable
/// when it returns. Thread-safe. Throws IoError; a failed sync must end the process (every later
/// append throws). A failed write leaves no trace: the next append may succeed.
class RunJournal {
 public:
  /// Opens or creates. A torn tail (power failure while appending) is cut off and ignored; damage
  /// before the tail, another magic or a newer format version is a CorruptionError. The file stays
  /// locked while open: a second process gets an IoError that names the first.
  explicit RunJournal(std::filesystem::path path);

  const std::vector<JournalRecord>& records() const { return records_; }  // as found at opening
  void append(const JournalRecord& record);

 private:
  void cut_tail();

  std::filesystem::path path_;
  UniqueFd fd_;
  std::vector<JournalRecord> records_;
  std::mutex mutex_;  // guards what follows
  uint64_t end_ = 0;  // of the last whole record
  bool sync_failed_ = false;
};

}  // namespace coppice
