// HDF5 without its C manners: identifiers that close themselves, refusals that become exceptions.
#pragma once

#include <hdf5.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "storage/io/write_behind.h"

namespace coppice {

/// Owns an HDF5 identifier together with the function that closes its kind. Move-only.
class Hdf5Handle {
 public:
  using Close = herr_t (*)(hid_t);

  Hdf5Handle() = default;
  Hdf5Handle(hid_t id, Close closer) : id_(id), close_(closer) {}
  ~Hdf5Handle() { close(); }
  Hdf5Handle(Hdf5Handle&& other) noexcept;
  Hdf5Handle& operator=(Hdf5Handle&& other) noexcept;

  hid_t get() const { return id_; }
  /// Closes now, for whoever wants the status: HDF5 writes late, so closing a file can find the
  /// disk full. Closing an empty handle succeeds.
  herr_t close() noexcept;

 private:
  hid_t id_ = H5I_INVALID_HID;
  Close close_ = nullptr;
};

/// Whose fault a refusal is, unless HDF5 names an errno (then it is always the system's: IoError).
enum class Hdf5Access {
  kRead,   // the file's bytes: CorruptionError
  kWrite,  // the system's: IoError
};

/// Checks the calls made about one file. HDF5 is one critical region: whoever holds an Hdf5Calls
/// holds the program's serial HDF5 place. Silences HDF5's own printing of errors.
class Hdf5Calls {
 public:
  Hdf5Calls(std::filesystem::path path, Hdf5Access access);

  /// `object` says what is read or written, e.g. "dataset /index"; messages are built from it and
  /// from the innermost message of HDF5's error stack. Both throw IoError or CorruptionError.
  void check(herr_t status, const std::string& object) const;
  Hdf5Handle own(hid_t id, Hdf5Handle::Close close, const std::string& object) const;

  Hdf5Handle open_file() const;

  /// No dimensions: a scalar.
  Hdf5Handle make_space(const std::vector<hsize_t>& dims) const;
  std::vector<hsize_t> dims_of(hid_t dataset, const std::string& object) const;

  /// `value` holds the elements of `dims` in `type`, which is also the type in the file.
  void write_attribute(hid_t owner, const std::string& name, hid_t type,
                       const std::vector<hsize_t>& dims, const void* value) const;
  void write_text(hid_t owner, const std::string& name, const std::string& text) const;
  /// Reads exactly `num_elements` elements, converted to `type`. CorruptionError for another
  /// number.
  void read_attribute(hid_t owner, const std::string& name, hid_t type, int64_t num_elements,
                      void* value) const;
  /// Of a text longer than 63 bytes, the first 63.
  std::string read_text(hid_t owner, const std::string& name) const;

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  Hdf5Access access_;
};

/// A new HDF5 file, written as `<path>.tmp` and renamed when complete. Destroyed unpublished, it
/// leaves nothing behind, however full the disk is. Objects in it are closed before it is.
class Hdf5StagedFile {
 public:
  /// Whatever lies at `<path>.tmp` is replaced. Large objects are laid out for direct reads.
  explicit Hdf5StagedFile(std::filesystem::path path);
  ~Hdf5StagedFile();
  Hdf5StagedFile(const Hdf5StagedFile&) = delete;
  Hdf5StagedFile& operator=(const Hdf5StagedFile&) = delete;

  hid_t id() const { return file_.get(); }
  const Hdf5Calls& calls() const { return calls_; }
  const std::filesystem::path& path() const { return path_; }

  /// Takes room on the disk for `bytes` more than the file has now, so that no write within them
  /// finds the disk full. Throws IoError (ENOSPC), after which nothing is held and it is to be
  /// called again before the next write. Nothing where the file system cannot.
  void reserve(uint64_t bytes);

  /// Tells of raw data that HDF5 has written and will not touch again, so that it goes to the disk
  /// now and not at the end.
  void wrote(uint64_t offset, uint64_t bytes);

  /// Flush → close → give unused room back → fdatasync → rename → directory sync. Once. Returns the
  /// size of the file.
  uint64_t publish();
  bool is_published() const { return published_; }

 private:
  /// HDF5's own descriptor, where it can be had.
  int* descriptor() const noexcept;
  void abandon() noexcept;

  std::filesystem::path path_;
  Hdf5Calls calls_;  // about the tmp file
  Hdf5Handle file_;
  WriteBehind write_behind_;
  uint64_t reserved_bytes_ = 0;  // from the beginning of the file
  bool published_ = false;
};

}  // namespace coppice
