#include "storage/journal/run_journal.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include <xxhash.h>

#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "storage/errors.h"

namespace coppice {
namespace {

static_assert(std::endian::native == std::endian::little, "the journal is little-endian");

// The byte table is in storage/FORMATS.md, "Journal".
constexpr std::string_view kMagic = "COPPJRNL";
constexpr uint32_t kVersion = 1;
constexpr size_t kHeaderBytes = 16;
constexpr size_t kRecordHeadBytes = 12;
constexpr size_t kChecksumBytes = 8;

template <typename Integer>
void put(std::string& out, Integer value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

template <typename Integer>
Integer get(std::string_view bytes, size_t offset) {
  Integer value;
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

std::string header_bytes() {
  std::string header(kMagic);
  put(header, kVersion);
  put(header, uint32_t{0});
  return header;
}

std::string to_bytes(const JournalRecord& record) {
  const uint64_t body_bytes = uint64_t{record.type.size()} + record.payload.size();
  if (body_bytes > std::numeric_limits<uint32_t>::max()) {
    throw std::invalid_argument(fmt::format("journal record '{}' of {} bytes, a record holds 4 GiB",
                                            record.type, body_bytes));
  }
  std::string bytes;
  bytes.reserve(kRecordHeadBytes + body_bytes + kChecksumBytes);
  put(bytes, static_cast<uint32_t>(body_bytes));
  put(bytes, static_cast<uint32_t>(record.type.size()));
  put(bytes, record.version);
  bytes += record.type;
  bytes += record.payload;
  put(bytes, uint64_t{XXH3_64bits(bytes.data(), bytes.size())});
  return bytes;
}

struct ParsedRecord {
  JournalRecord record;
  size_t bytes = 0;
};

/// The record that begins at the first byte; nothing if what stands there is not a whole one.
std::optional<ParsedRecord> parse_record(std::string_view bytes) {
  if (bytes.size() < kRecordHeadBytes + kChecksumBytes) return std::nullopt;
  const size_t body_bytes = get<uint32_t>(bytes, 0);
  const size_t type_bytes = get<uint32_t>(bytes, 4);
  if (type_bytes > body_bytes) return std::nullopt;
  if (body_bytes > bytes.size() - kRecordHeadBytes - kChecksumBytes) return std::nullopt;

  const size_t hashed_bytes = kRecordHeadBytes + body_bytes;
  if (XXH3_64bits(bytes.data(), hashed_bytes) != get<uint64_t>(bytes, hashed_bytes)) {
    return std::nullopt;
  }
  ParsedRecord parsed;
  parsed.record.version = get<uint32_t>(bytes, 8);
  parsed.record.type = bytes.substr(kRecordHeadBytes, type_bytes);
  parsed.record.payload = bytes.substr(kRecordHeadBytes + type_bytes, body_bytes - type_bytes);
  parsed.bytes = hashed_bytes + kChecksumBytes;
  return parsed;
}

void check_header(const std::string& path, std::string_view bytes) {
  if (bytes.substr(0, kMagic.size()) != kMagic) {
    throw CorruptionError(path, 0, fmt::format("magic '{}' of a journal", kMagic),
                          "other bytes: give this run a work directory of its own");
  }
  const auto version = get<uint32_t>(bytes, 8);
  if (version != kVersion) {
    throw CorruptionError(path, 8, fmt::format("format version {}", kVersion),
                          fmt::format("{}: continue with the program that wrote it, or start anew "
                                      "in another work directory",
                                      version));
  }
  if (const auto reserved = get<uint32_t>(bytes, 12); reserved != 0) {
    throw CorruptionError(path, 12, "0 (reserved)", fmt::format("{}", reserved));
  }
}

/// The records of a file with a whole header, and where they end. A broken record is the torn tail
/// if no whole one follows: appends are serial, so only the last can be half written. The search
/// goes byte by byte because a broken length says nothing about where the next record begins.
size_t parse_records(const std::string& path, std::string_view bytes,
                     std::vector<JournalRecord>& records) {
  size_t end = kHeaderBytes;
  while (end < bytes.size()) {
    std::optional<ParsedRecord> parsed = parse_record(bytes.substr(end));
    if (!parsed) break;
    records.push_back(std::move(parsed->record));
    end += parsed->bytes;
  }
  for (size_t later = end + 1; later < bytes.size(); ++later) {
    if (parse_record(bytes.substr(later))) {
      throw CorruptionError(
          path, end, fmt::format("journal record {} with its checksum", records.size()),
          fmt::format("damaged bytes, with a whole record after them at byte {}: restore the "
                      "journal from a copy, or start anew in another work directory",
                      later));
    }
  }
  return end;
}

/// "process 4711", as far as the kernel tells.
std::string lock_holder(int fd) {
  struct stat status {};
  if (fstat(fd, &status) != 0) return "another process";
  const std::string file =
      fmt::format("{:02x}:{:02x}:{}", major(status.st_dev), minor(status.st_dev), status.st_ino);
  // 1: FLOCK  ADVISORY  WRITE 4711 fd:01:131074 0 EOF
  std::ifstream locks("/proc/locks");
  for (std::string line; std::getline(locks, line);) {
    std::istringstream fields(line);
    std::string number, kind, advice, access, pid, locked;
    if (fields >> number >> kind >> advice >> access >> pid >> locked && kind == "FLOCK" &&
        locked == file) {
      return "process " + pid;
    }
  }
  return "another process";
}

void lock(int fd, const std::string& path) {
  if (flock(fd, LOCK_EX | LOCK_NB) == 0) return;
  const int error_number = errno;
  if (error_number == EWOULDBLOCK) {
    throw IoError(fmt::format("locking the journal ({} is at work in this directory: wait until it "
                              "ends, stop it, or choose another work directory)",
                              lock_holder(fd)),
                  path, error_number);
  }
  throw IoError("locking the journal (choose a work directory on a file system that knows flock)",
                path, error_number);
}

void write_at(int fd, const std::string& path, std::string_view bytes, uint64_t offset) {
  while (!bytes.empty()) {
    const ssize_t written = pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) throw IoError("writing the journal", path, errno, offset, bytes.size());
    bytes.remove_prefix(static_cast<size_t>(written));
    offset += static_cast<uint64_t>(written);
  }
}

void sync(int fd, const std::string& path) {
  if (fdatasync(fd) != 0) throw IoError("syncing the journal", path, errno);
}

std::filesystem::path directory_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
}

}  // namespace

RunJournal::RunJournal(std::filesystem::path path)
    : path_(std::move(path)), fd_(::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644)) {
  const std::string name = path_.string();
  if (fd_.get() < 0) throw IoError("opening the journal", name, errno);
  lock(fd_.get(), name);

  const std::string bytes = read_file(path_);
  const std::string header = header_bytes();
  if (bytes.size() < header.size() && header.starts_with(bytes)) {
    // New, or the process ended while creating it.
    write_at(fd_.get(), name, header, 0);
    sync(fd_.get(), name);
    end_ = header.size();
  } else {
    check_header(name, bytes);
    end_ = parse_records(name, bytes, records_);
    if (end_ < bytes.size()) cut_tail();
  }
  // Always: the process that created the file may have ended before its name was durable.
  sync_directory(directory_of(path_));
}

void RunJournal::cut_tail() {
  if (ftruncate(fd_.get(), static_cast<off_t>(end_)) != 0) {
    throw IoError("cutting the torn tail off the journal", path_.string(), errno, end_);
  }
  sync(fd_.get(), path_.string());
}

void RunJournal::append(const JournalRecord& record) {
  const std::string bytes = to_bytes(record);
  const std::lock_guard<std::mutex> guard(mutex_);
  if (sync_failed_) {
    throw IoError("appending to the journal (an earlier sync failed: end the process and resume)",
                  path_.string(), EIO, end_);
  }
  try {
    write_at(fd_.get(), path_.string(), bytes, end_);
  } catch (const IoError&) {
    // Half a record may stand there now. Should cutting it off fail too, the next append begins at
    // the same byte, and what then remains behind it is a torn tail like any other.
    [[maybe_unused]] const int cut = ftruncate(fd_.get(), static_cast<off_t>(end_));
    throw;
  }
  try {
    sync(fd_.get(), path_.string());
  } catch (const IoError&) {
    sync_failed_ =
        true;  // the kernel may have marked the pages clean: nothing later can be trusted
    throw;
  }
  end_ += bytes.size();
}

}  // namespace coppice
