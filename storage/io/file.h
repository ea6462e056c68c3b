// Files as this program uses them: opened for aligned direct reads, or written so that nothing half
// done ever looks finished.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace coppice {

class ContentHash;
class FileWriter;

/// Owns a file descriptor.
class UniqueFd {
 public:
  explicit UniqueFd(int fd = -1) : fd_(fd) {}
  ~UniqueFd();
  UniqueFd(UniqueFd&& other) noexcept;
  UniqueFd& operator=(UniqueFd&& other) noexcept;
  int get() const { return fd_; }

 private:
  int fd_;
};

/// A file open for reading; O_DIRECT where the file system allows it, buffered elsewhere.
/// Offsets, lengths and addresses of direct reads must be multiples of `alignment()`
/// (STATX_DIOALIGN, 4096 where the kernel does not tell, 1 when buffered). Immutable: any thread.
class ReadFile {
 public:
  enum class Direct { kWherePossible, kNever };
  /// Throws IoError if the file is absent or unreadable.
  explicit ReadFile(std::filesystem::path path, Direct direct = Direct::kWherePossible);

  int fd() const { return fd_.get(); }
  const std::filesystem::path& path() const { return path_; }
  uint64_t bytes() const { return bytes_; }
  uint32_t alignment() const { return alignment_; }
  bool is_direct() const { return alignment_ > 1; }

 private:
  std::filesystem::path path_;
  UniqueFd fd_;
  uint64_t bytes_ = 0;
  uint32_t alignment_ = 1;
};

/// A finished file as the journal remembers it.
struct FileRecord {
  std::string name;  // relative to the directory it lies in
  uint64_t bytes = 0;
  /// 32 hex digits over the whole file; of an activation cache over its index, which has a checksum
  /// of every chunk: a file that another library wrote is not read again only to be hashed.
  std::string xxh3_128;

  bool operator==(const FileRecord&) const = default;
};

/// Writes `<path>.tmp` in order and renames it when complete; large files bypass the page cache
/// (FileWriter). A destroyed, unpublished file leaves nothing behind. One thread. Throws IoError;
/// an error of a sync must end the process, it is never retried (Linux marks the pages clean);
/// only a disk found full may be, by a new file with everything written again.
class StagedFile {
 public:
  /// `expected_bytes` are reserved at once (fallocate), so that a full disk is found before the
  /// work.
  StagedFile(std::filesystem::path path, uint64_t expected_bytes);
  ~StagedFile();
  StagedFile(const StagedFile&) = delete;
  StagedFile& operator=(const StagedFile&) = delete;

  void append(std::span<const std::byte> bytes);
  /// fdatasync → rename → fsync of the directory. Nothing may be appended afterwards.
  FileRecord publish();

 private:
  std::filesystem::path path_;
  std::filesystem::path tmp_path_;
  UniqueFd fd_;
  uint64_t reserved_ = 0;
  bool published_ = false;
  std::unique_ptr<ContentHash> hash_;  // over what was appended
  std::unique_ptr<FileWriter> writer_;
};

/// Publishes the file that another library wrote at `tmp_path`: fdatasync → rename → directory
/// sync. Returns its size.
uint64_t publish_file(const std::filesystem::path& tmp_path, const std::filesystem::path& path);

/// Writes a small file durably through StagedFile.
FileRecord write_file(const std::filesystem::path& path, std::string_view text);

/// The whole of a small file. Throws IoError.
std::string read_file(const std::filesystem::path& path);

/// XXH3-128 of a file as 32 hex digits, read in pieces. Throws IoError.
FileRecord hash_file(const std::filesystem::path& path);

/// SHA-256 of a file as 64 hex digits (for people and other tools). Throws IoError.
std::string sha256_file(const std::filesystem::path& path);

/// The directory, and those above it that are missing. Throws IoError.
void make_directories(const std::filesystem::path& directory);

void sync_directory(const std::filesystem::path& directory);

}  // namespace coppice
