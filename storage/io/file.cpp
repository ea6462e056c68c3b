// Every system call on a file that is not a batched read.
#include "storage/io/file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>
#include <vector>

#include "storage/errors.h"
#include "storage/io/content_hash.h"  // XXH3-128, SHA-256

namespace coppice {
namespace {

constexpr uint32_t kAssumedAlignment = 4096;  // no device of today asks for more
constexpr size_t kPieceBytes = size_t{1} << 20;

template <class Call>
auto retry_interrupted(Call call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

UniqueFd open_file(const std::filesystem::path& path, int flags, const char* what_was_tried) {
  const int fd = retry_interrupted([&] { return open(path.c_str(), flags | O_CLOEXEC, 0644); });
  if (fd < 0) throw IoError(what_was_tried, path.string(), errno);
  return UniqueFd(fd);
}

bool file_system_ignores_direct(int fd) {
  // A tmpfs accepts O_DIRECT since 6.6 and copies all the same: only the alignment would be left.
  struct statfs file_system {};
  return fstatfs(fd, &file_system) == 0 && file_system.f_type == TMPFS_MAGIC;
}

/// Alignment of direct reads, 0 where they are impossible.
uint32_t direct_alignment(int fd) {
  if (file_system_ignores_direct(fd)) return 0;
#ifdef STATX_DIOALIGN
  struct statx facts {};
  if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &facts) == 0 &&
      (facts.stx_mask & STATX_DIOALIGN) != 0) {
    if (facts.stx_dio_offset_align == 0) return 0;
    return std::max(facts.stx_dio_mem_align, facts.stx_dio_offset_align);
  }
#endif
  return kAssumedAlignment;
}

/// "No space" is the one write error a person can mend at once, so it says how.
[[noreturn]] void throw_write_error(const char* what_was_tried, const std::filesystem::path& path,
                                    int error_number, uint64_t offset, uint64_t bytes) {
  if (error_number != ENOSPC && error_number != EDQUOT) {
    throw IoError(what_was_tried, path.string(), error_number, offset, bytes);
  }
  struct statvfs space {};
  const bool known =
      statvfs(path.parent_path().empty() ? "." : path.parent_path().c_str(), &space) == 0;
  throw IoError(
      fmt::format("no space left while {}: {} bytes needed, {} free; free some space or choose "
                  "another --output-dir",
                  what_was_tried, bytes,
                  known ? fmt::to_string(uint64_t{space.f_bavail} * space.f_frsize) : "unknown"),
      path.string(), error_number, offset, bytes);
}

void reserve(int fd, const std::filesystem::path& path, uint64_t bytes) {
  if (bytes == 0) return;
  const int result =
      retry_interrupted([&] { return fallocate(fd, 0, 0, static_cast<off_t>(bytes)); });
  if (result == 0 || errno == EOPNOTSUPP || errno == ENOSYS) return;
  throw_write_error("reserving space", path, errno, 0, bytes);
}

// Never retried, not even after EINTR: Linux marks the pages clean whatever it answered.
void sync_data(int fd, const std::filesystem::path& path, uint64_t bytes) {
  if (fdatasync(fd) != 0) throw_write_error("syncing", path, errno, 0, bytes);
}

void rename_durably(const std::filesystem::path& from, const std::filesystem::path& to) {
  if (rename(from.c_str(), to.c_str()) != 0) {
    throw IoError("renaming to " + to.string(), from.string(), errno);
  }
  sync_directory(to.parent_path());
}

/// Hands the file to `use` in pieces, in order.
template <class Use>
uint64_t for_each_piece(const std::filesystem::path& path, Use use) {
  const UniqueFd fd = open_file(path, O_RDONLY, "opening for reading");
  posix_fadvise(fd.get(), 0, 0, POSIX_FADV_SEQUENTIAL);
  std::vector<std::byte> piece(kPieceBytes);
  uint64_t offset = 0;
  for (;;) {
    const ssize_t got =
        retry_interrupted([&] { return read(fd.get(), piece.data(), piece.size()); });
    if (got < 0) throw IoError("reading", path.string(), errno, offset, piece.size());
    if (got == 0) return offset;
    use(std::span<const std::byte>(piece).first(static_cast<size_t>(got)));
    offset += static_cast<uint64_t>(got);
  }
}

}  // namespace

UniqueFd::~UniqueFd() {
  if (fd_ >= 0) close(fd_);
}

UniqueFd::UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

UniqueFd& UniqueFd::operator=(UniqueFd&& other) noexcept {
  UniqueFd taken(std::move(other));
  std::swap(fd_, taken.fd_);  // what was owned before is closed with `taken`
  return *this;
}

ReadFile::ReadFile(std::filesystem::path path, Direct direct) : path_(std::move(path)) {
  // Opened buffered, then switched: a file system without O_DIRECT refuses the switch, not the
  // file.
  fd_ = open_file(path_, O_RDONLY, "opening for reading");
  struct stat facts {};
  if (fstat(fd_.get(), &facts) != 0) throw IoError("asking for the size", path_.string(), errno);
  if (S_ISDIR(facts.st_mode)) throw IoError("opening for reading", path_.string(), EISDIR);
  bytes_ = static_cast<uint64_t>(facts.st_size);
  if (direct == Direct::kNever) return;
  const uint32_t alignment = direct_alignment(fd_.get());
  if (alignment > 1 && fcntl(fd_.get(), F_SETFL, O_DIRECT) == 0) alignment_ = alignment;
}

StagedFile::StagedFile(std::filesystem::path path, uint64_t expected_bytes)
    : path_(std::move(path)),
      tmp_path_(path_.string() + ".tmp"),
      fd_(open_file(tmp_path_, O_WRONLY | O_CREAT | O_TRUNC, "opening for writing")),
      reserved_(expected_bytes) {
  try {
    hash_ = std::make_unique<ContentHash>();
    reserve(fd_.get(), tmp_path_, expected_bytes);
  } catch (...) {  // no destructor runs for an object that was never made
    unlink(tmp_path_.c_str());
    throw;
  }
}

StagedFile::~StagedFile() {
  if (!published_) unlink(tmp_path_.c_str());
}

void StagedFile::append(std::span<const std::byte> bytes) {
  std::span<const std::byte> rest = bytes;
  while (!rest.empty()) {
    const ssize_t taken =
        retry_interrupted([&] { return write(fd_.get(), rest.data(), rest.size()); });
    if (taken <= 0) {
      throw_write_error("writing", tmp_path_, taken < 0 ? errno : EIO, written_, rest.size());
    }
    hash_->add(rest.first(static_cast<size_t>(taken)));
    rest = rest.subspan(static_cast<size_t>(taken));
    written_ += static_cast<uint64_t>(taken);
  }
}

FileRecord StagedFile::publish() {
  if (written_ < reserved_ &&
      retry_interrupted([&] { return ftruncate(fd_.get(), static_cast<off_t>(written_)); }) != 0) {
    throw IoError("giving reserved space back", tmp_path_.string(), errno, written_,
                  reserved_ - written_);
  }
  sync_data(fd_.get(), tmp_path_, written_);
  // What is durable is seldom read again soon; the page cache has better uses.
  posix_fadvise(fd_.get(), 0, 0, POSIX_FADV_DONTNEED);
  fd_ = UniqueFd();
  rename_durably(tmp_path_, path_);
  published_ = true;
  return {path_.filename().string(), written_, hash_->hex()};
}

FileRecord publish_file(const std::filesystem::path& tmp_path, const std::filesystem::path& path) {
  const FileRecord content = hash_file(tmp_path);
  sync_data(open_file(tmp_path, O_RDONLY, "opening for syncing").get(), tmp_path, content.bytes);
  rename_durably(tmp_path, path);
  return {path.filename().string(), content.bytes, content.xxh3_128};
}

FileRecord write_file(const std::filesystem::path& path, std::string_view text) {
  StagedFile file(path, text.size());
  file.append(std::as_bytes(std::span(text)));
  return file.publish();
}

std::string read_file(const std::filesystem::path& path) {
  std::string text;
  for_each_piece(path, [&](std::span<const std::byte> piece) {
    text.append(reinterpret_cast<const char*>(piece.data()), piece.size());
  });
  return text;
}

FileRecord hash_file(const std::filesystem::path& path) {
  ContentHash hash;
  const uint64_t bytes =
      for_each_piece(path, [&](std::span<const std::byte> piece) { hash.add(piece); });
  return {path.filename().string(), bytes, hash.hex()};
}

std::string sha256_file(const std::filesystem::path& path) {
  Sha256 hash;
  for_each_piece(path, [&](std::span<const std::byte> piece) { hash.add(piece); });
  return hash.hex();
}

void sync_directory(const std::filesystem::path& directory) {
  const std::filesystem::path named = directory.empty() ? "." : directory;
  const UniqueFd fd = open_file(named, O_RDONLY | O_DIRECTORY, "opening the directory");
  if (fsync(fd.get()) != 0) throw IoError("syncing the directory", named.string(), errno);
}

}  // namespace coppice
