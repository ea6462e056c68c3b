#include "storage/cache/hdf5_handle.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <system_error>
#include <utility>

#include "storage/errors.h"
#include "storage/io/file.h"         // UniqueFd, publish_file
#include "storage/io/file_writer.h"  // throw_write_error

namespace coppice {
namespace {

// HDF5's file drivers put "errno = 28" into their messages; by the time the call returns, errno
// itself may have been overwritten. 0 where the message names none.
int errno_in(std::string_view message) {
  constexpr std::string_view kLabel = "errno = ";
  const size_t at = message.find(kLabel);
  if (at == std::string_view::npos) return 0;
  return std::atoi(std::string(message.substr(at + kLabel.size(), 10)).c_str());
}

// The innermost message, or the innermost that names an errno: below it may lie what HDF5 stumbled
// over earlier in the same call and got over, such as a filter that it does not have.
herr_t keep_reason(unsigned depth, const H5E_error2_t* error, void* message) noexcept {
  if (error->desc == nullptr) return 0;
  std::string& kept = *static_cast<std::string*>(message);
  if (depth == 0 || (errno_in(kept) == 0 && errno_in(error->desc) != 0)) kept = error->desc;
  return 0;
}

std::string innermost_message() {
  std::string message;
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, keep_reason, &message);
  H5Eclear2(H5E_DEFAULT);
  // Its file drivers append addresses of buffers, and break the line after the time.
  message.resize(std::min(message.size(), message.find(", buf = ")));
  std::erase(message, '\n');
  return message.empty() ? "HDF5 gives no reason" : "HDF5: " + message;
}

Hdf5Handle make_text_type(const Hdf5Calls& hdf5, size_t bytes) {
  Hdf5Handle type = hdf5.own(H5Tcopy(H5T_C_S1), H5Tclose, "text type");
  hdf5.check(H5Tset_size(type.get(), bytes), "text type");
  return type;
}

}  // namespace

Hdf5Handle::Hdf5Handle(Hdf5Handle&& other) noexcept
    : id_(std::exchange(other.id_, H5I_INVALID_HID)), close_(other.close_) {}

Hdf5Handle& Hdf5Handle::operator=(Hdf5Handle&& other) noexcept {
  std::swap(id_, other.id_);
  std::swap(close_, other.close_);
  return *this;
}

herr_t Hdf5Handle::close() noexcept {
  const hid_t id = std::exchange(id_, H5I_INVALID_HID);
  return id < 0 ? 0 : close_(id);
}

Hdf5Calls::Hdf5Calls(std::filesystem::path path, Hdf5Access access)
    : path_(std::move(path)), access_(access) {
  // Closing at exit what could not be closed before is where HDF5 1.10 crashes after a disk ran
  // full. Everything here closes itself, so the exit handler is not needed. Must precede other
  // calls.
  [[maybe_unused]] static const herr_t no_exit_handler = H5dont_atexit();
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
}

void Hdf5Calls::check(herr_t status, const std::string& object) const {
  if (status >= 0) return;
  const std::string reason = innermost_message();
  const int error_number = errno_in(reason);
  if (access_ == Hdf5Access::kWrite) {
    throw IoError("writing " + object + " (" + reason + ")", path_.string(),
                  error_number != 0 ? error_number : EIO);
  }
  if (error_number != 0) {
    throw IoError("reading " + object + " (" + reason + ")", path_.string(), error_number);
  }
  throw CorruptionError(path_.string(), 0, "a readable " + object, reason);
}

Hdf5Handle Hdf5Calls::own(hid_t id, Hdf5Handle::Close close, const std::string& object) const {
  check(id < 0 ? -1 : 0, object);
  return Hdf5Handle(id, close);
}

Hdf5Handle Hdf5Calls::open_file() const {
  const Hdf5Handle access = own(H5Pcreate(H5P_FILE_ACCESS), H5Pclose, "file access properties");
  check(H5Pset_fclose_degree(access.get(), H5F_CLOSE_STRONG), "close degree");
  check(H5Pset_file_locking(access.get(), 0, 1), "file locking");
  return own(H5Fopen(path_.c_str(), H5F_ACC_RDONLY, access.get()), H5Fclose, "HDF5 file");
}

Hdf5Handle Hdf5Calls::make_space(const std::vector<hsize_t>& dims) const {
  const int rank = static_cast<int>(dims.size());
  return own(rank == 0 ? H5Screate(H5S_SCALAR) : H5Screate_simple(rank, dims.data(), nullptr),
             H5Sclose, "dataspace");
}

std::vector<hsize_t> Hdf5Calls::dims_of(hid_t dataset, const std::string& object) const {
  const Hdf5Handle space = own(H5Dget_space(dataset), H5Sclose, object);
  const int rank = H5Sget_simple_extent_ndims(space.get());
  check(rank, object);
  std::vector<hsize_t> dims(static_cast<size_t>(rank));
  check(H5Sget_simple_extent_dims(space.get(), dims.data(), nullptr), object);
  return dims;
}

void Hdf5Calls::write_attribute(hid_t owner, const std::string& name, hid_t type,
                                const std::vector<hsize_t>& dims, const void* value) const {
  const std::string object = "attribute " + name;
  const Hdf5Handle space = make_space(dims);
  const Hdf5Handle attribute =
      own(H5Acreate2(owner, name.c_str(), type, space.get(), H5P_DEFAULT, H5P_DEFAULT), H5Aclose,
          object);
  check(H5Awrite(attribute.get(), type, value), object);
}

void Hdf5Calls::write_text(hid_t owner, const std::string& name, const std::string& text) const {
  const Hdf5Handle type = make_text_type(*this, text.size() + 1);
  write_attribute(owner, name, type.get(), {}, text.c_str());
}

void Hdf5Calls::read_attribute(hid_t owner, const std::string& name, hid_t type,
                               int64_t num_elements, void* value) const {
  const std::string object = "attribute " + name;
  const Hdf5Handle attribute = own(H5Aopen(owner, name.c_str(), H5P_DEFAULT), H5Aclose, object);
  const Hdf5Handle space = own(H5Aget_space(attribute.get()), H5Sclose, object);
  const hssize_t found = H5Sget_simple_extent_npoints(space.get());
  if (found != num_elements) {
    throw CorruptionError(path_.string(), 0,
                          fmt::format("{} with {} elements", object, num_elements),
                          fmt::format("{}", found));
  }
  check(H5Aread(attribute.get(), type, value), object);
}

std::string Hdf5Calls::read_text(hid_t owner, const std::string& name) const {
  char text[64] = {};
  const Hdf5Handle type = make_text_type(*this, sizeof text);
  read_attribute(owner, name, type.get(), 1, text);
  return std::string(text, strnlen(text, sizeof text));
}

namespace {

std::filesystem::path with_tmp_suffix(std::filesystem::path path) { return path += ".tmp"; }

Hdf5Handle create_file(const Hdf5Calls& hdf5) {
  const Hdf5Handle access =
      hdf5.own(H5Pcreate(H5P_FILE_ACCESS), H5Pclose, "file access properties");
  // Chunks begin where O_DIRECT can read them; small objects are not worth the padding.
  hdf5.check(H5Pset_alignment(access.get(), 65536, 4096), "file alignment");
  // From 1.8 on superblock and object headers carry checksums, so a flipped bit in them is an error
  // message and not a crash inside HDF5. 1.10 chunk indices are not wanted: asking one for an
  // address was measured six times slower (16,384 chunks: 17 s, not 2.9 s).
  hdf5.check(H5Pset_libver_bounds(access.get(), H5F_LIBVER_V18, H5F_LIBVER_V110), "format version");
  hdf5.check(H5Pset_fclose_degree(access.get(), H5F_CLOSE_STRONG), "close degree");
  // Values go to the disk in the call that writes them, however few they are: one that finds the
  // disk full when it is closed cannot be closed any more.
  hdf5.check(H5Pset_sieve_buf_size(access.get(), 0), "sieve buffer");
  // Locks are the journal's business; HDF5's own only keep files from network file systems.
  hdf5.check(H5Pset_file_locking(access.get(), 0, 1), "file locking");
  return hdf5.own(H5Fcreate(hdf5.path().c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access.get()),
                  H5Fclose, "a new HDF5 file");
}

}  // namespace

Hdf5StagedFile::Hdf5StagedFile(std::filesystem::path path)
    : path_(std::move(path)),
      calls_(with_tmp_suffix(path_), Hdf5Access::kWrite),
      file_(create_file(calls_)),
      write_behind_(calls_.path()) {}

Hdf5StagedFile::~Hdf5StagedFile() {
  if (!published_) abandon();
}

int* Hdf5StagedFile::descriptor() const noexcept {
  void* descriptor = nullptr;
  const bool known =
      file_.get() >= 0 && H5Fget_vfd_handle(file_.get(), H5P_DEFAULT, &descriptor) >= 0;
  return known ? static_cast<int*>(descriptor) : nullptr;
}

namespace {

/// Blocks beyond the end of the file, which stays as it is. Who cannot keeps them.
void give_unused_back(const std::filesystem::path& path) noexcept {
  struct stat status {};
  if (stat(path.c_str(), &status) != 0) return;
  [[maybe_unused]] const int given = truncate(path.c_str(), status.st_size);
}

}  // namespace

void Hdf5StagedFile::reserve(uint64_t bytes) {
  const int* fd = descriptor();
  if (fd == nullptr) return;
  hsize_t size = 0;
  calls_.check(H5Fget_filesize(file_.get(), &size), "size of the HDF5 file");
  const uint64_t begin = reserved_bytes_, end = size + bytes;
  if (end <= begin) return;
  while (fallocate(*fd, FALLOC_FL_KEEP_SIZE, off_t(begin), off_t(end - begin)) != 0) {
    if (errno == EINTR) continue;
    const int error_number = errno;
    if (error_number != ENOSPC && error_number != EDQUOT) return;  // then a write will tell
    give_unused_back(calls_.path());  // some file systems keep what they had found
    reserved_bytes_ = 0;
    throw_write_error("reserving", calls_.path(), error_number, begin, end - begin);
  }
  reserved_bytes_ = end;
}

void Hdf5StagedFile::wrote(uint64_t offset, uint64_t bytes) {
  if (const int* fd = descriptor()) write_behind_.wrote(*fd, offset, bytes);
}

uint64_t Hdf5StagedFile::publish() {
  // The flush is what may find the disk full: while it fails, the file can still be abandoned.
  calls_.check(H5Fflush(file_.get(), H5F_SCOPE_LOCAL), "HDF5 file");
  calls_.check(file_.close(), "HDF5 file");
  give_unused_back(calls_.path());
  const uint64_t bytes = publish_file(calls_.path(), path_);
  published_ = true;
  return bytes;
}

// Closing writes. If the disk refuses, HDF5 1.10 frees the file but keeps its identifier, and
// crashes when it meets it again. So the last writes go to memory: HDF5's descriptor is made to
// mean an empty memory file, sparse like the writes themselves.
void Hdf5StagedFile::abandon() noexcept {
  if (const int* fd = descriptor()) {
    const UniqueFd memory(memfd_create("abandoned", MFD_CLOEXEC));
    if (memory.get() >= 0) dup3(memory.get(), *fd, O_CLOEXEC);
  }
  file_.close();
  std::error_code ignored;
  std::filesystem::remove(calls_.path(), ignored);
}

}  // namespace coppice
