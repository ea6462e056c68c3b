// Every system call on a file that is not a batched read.
#include "storage/io/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <future>
#include <utility>
#include <vector>

#include "storage/errors.h"
#include "storage/io/content_hash.h"  // XXH3-128, SHA-256
#include "storage/io/direct_io.h"
#include "storage/io/file_writer.h"

namespace coppice {
namespace {

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

uint64_t size_of(int fd, const std::filesystem::path& path) {
  struct stat facts {};
  if (fstat(fd, &facts) != 0) throw IoError("asking for the size", path.string(), errno);
  if (S_ISDIR(facts.st_mode)) throw IoError("opening for reading", path.string(), EISDIR);
  return static_cast<uint64_t>(facts.st_size);
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
  bytes_ = size_of(fd_.get(), path_);
  if (direct == Direct::kNever) return;
  alignment_ = make_direct(fd_.get());
}

StagedFile::StagedFile(std::filesystem::path path, uint64_t expected_bytes)
    : path_(std::move(path)),
      tmp_path_(path_.string() + ".tmp"),
      fd_(open_file(tmp_path_, O_WRONLY | O_CREAT | O_TRUNC, "opening for writing")),
      reserved_(expected_bytes) {
  try {
    hash_ = std::make_unique<ContentHash>();
    writer_ = std::make_unique<FileWriter>(fd_.get(), tmp_path_, expected_bytes);
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
  // Hashing a shard takes a tenth of the time that writing it does: beside, not before.
  const auto hash = [&] { hash_->add(bytes); };
  const auto when = bytes.size() < kPieceBytes ? std::launch::deferred
                                               : std::launch::async | std::launch::deferred;
  std::future<void> hashed = std::async(when, hash);
  writer_->append(bytes);
  hashed.get();
}

FileRecord StagedFile::publish() {
  writer_->flush();
  const uint64_t written = writer_->bytes();
  if (written < reserved_ &&
      retry_interrupted([&] { return ftruncate(fd_.get(), static_cast<off_t>(written)); }) != 0) {
    throw IoError("giving reserved space back", tmp_path_.string(), errno, written,
                  reserved_ - written);
  }
  sync_data(fd_.get(), tmp_path_, written);
  // What is durable is seldom read again soon; the page cache has better uses.
  posix_fadvise(fd_.get(), 0, 0, POSIX_FADV_DONTNEED);
  fd_ = UniqueFd();
  rename_durably(tmp_path_, path_);
  published_ = true;
  return {path_.filename().string(), written, hash_->hex()};
}

uint64_t publish_file(const std::filesystem::path& tmp_path, const std::filesystem::path& path) {
  const UniqueFd fd = open_file(tmp_path, O_RDONLY, "opening for syncing");
  const uint64_t bytes = size_of(fd.get(), tmp_path);
  sync_data(fd.get(), tmp_path, bytes);
  rename_durably(tmp_path, path);
  return bytes;
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

void make_directories(const std::filesystem::path& directory) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) throw IoError("making the directory", directory.string(), error.value());
}

void sync_directory(const std::filesystem::path& directory) {
  const std::filesystem::path named = directory.empty() ? "." : directory;
  const UniqueFd fd = open_file(named, O_RDONLY | O_DIRECTORY, "opening the directory");
  if (fsync(fd.get()) != 0) throw IoError("syncing the directory", named.string(), errno);
}

}  // namespace coppice
