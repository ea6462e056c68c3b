#include "storage/cache/token_file.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "storage/cache/hdf5_handle.h"  // HDF5 calls checked, identifiers closed
#include "storage/errors.h"
#include "storage/io/file.h"  // ReadFile

namespace coppice {
namespace {

constexpr char kDataset[] = "/input_ids";
constexpr char kObject[] = "dataset /input_ids";
constexpr hsize_t kIdsPerStep = hsize_t{1} << 20;  // 8 MiB while converting

std::string shape_text(const std::vector<hsize_t>& dims) {
  return dims.size() == 1 ? fmt::format("[{}]", dims[0])
                          : fmt::format("[{}, {}]", dims[0], dims[1]);
}

/// Refuses what is no table of integers, before anything is allocated for it.
std::vector<hsize_t> checked_dims(const Hdf5Calls& hdf5, hid_t dataset) {
  const std::string path = hdf5.path().string();
  const Hdf5Handle type = hdf5.own(H5Dget_type(dataset), H5Tclose, kObject);
  if (H5Tget_class(type.get()) != H5T_INTEGER) {
    throw CorruptionError(path, 0, "integers in /input_ids",
                          "another type: store the token ids as int32");
  }
  std::vector<hsize_t> dims = hdf5.dims_of(dataset, kObject);
  if (dims.size() != 1 && dims.size() != 2) {
    throw CorruptionError(path, 0, "/input_ids of [tokens] or [windows, seqlen]",
                          fmt::format("{} dimensions", dims.size()));
  }
  constexpr hsize_t kMaxIds = std::numeric_limits<int64_t>::max() / sizeof(int64_t);
  const hsize_t row = dims.size() == 2 ? dims[1] : 1;
  if (row != 0 && dims[0] > kMaxIds / row) {
    throw CorruptionError(path, 0, fmt::format("/input_ids of at most {} ids", kMaxIds),
                          shape_text(dims));
  }
  // A header may announce what the file does not hold, and reading would fill memory with nothing.
  if (dims[0] * row != 0 && H5Dget_storage_size(dataset) == 0) {
    throw CorruptionError(path, 0, fmt::format("the data of {} ids", dims[0] * row),
                          "/input_ids without data");
  }
  return dims;
}

/// Appends rows [first, first + count), each id checked to fit.
void read_rows(const Hdf5Calls& hdf5, hid_t dataset, const std::vector<hsize_t>& dims,
               hsize_t first, hsize_t count, std::vector<int32_t>& ids) {
  std::vector<hsize_t> start(dims.size(), 0);
  std::vector<hsize_t> extent = dims;
  start[0] = first;
  extent[0] = count;
  const Hdf5Handle in_file = hdf5.own(H5Dget_space(dataset), H5Sclose, kObject);
  hdf5.check(H5Sselect_hyperslab(in_file.get(), H5S_SELECT_SET, start.data(), nullptr,
                                 extent.data(), nullptr),
             kObject);
  const Hdf5Handle in_memory = hdf5.make_space(extent);

  // Through int64: HDF5 clips what does not fit its target, and a clipped id looks like a good one.
  std::vector<int64_t> wide(dims.size() == 2 ? count * dims[1] : count);
  hdf5.check(
      H5Dread(dataset, H5T_NATIVE_INT64, in_memory.get(), in_file.get(), H5P_DEFAULT, wide.data()),
      kObject);
  for (const int64_t id : wide) {
    if (!std::in_range<int32_t>(id)) {
      throw CorruptionError(hdf5.path().string(), 0, "token ids that fit int32",
                            fmt::format("{} as id {} of /input_ids", id, ids.size()));
    }
    ids.push_back(static_cast<int32_t>(id));
  }
}

/// Attribute `xxh3` of files written here; those of other tools go without.
constexpr char kChecksum[] = "xxh3";

uint64_t checksum_of(const std::vector<int32_t>& ids) {
  return XXH3_64bits(ids.data(), ids.size() * sizeof(int32_t));
}

void check_ids(const Hdf5Calls& hdf5, hid_t dataset, const std::vector<int32_t>& ids) {
  const htri_t has_checksum = H5Aexists(dataset, kChecksum);
  hdf5.check(has_checksum, kObject);
  if (has_checksum == 0) return;
  uint64_t recorded = 0;
  hdf5.read_attribute(dataset, kChecksum, H5T_NATIVE_UINT64, 1, &recorded);
  const uint64_t found = checksum_of(ids);
  if (found != recorded) {
    const haddr_t offset = H5Dget_offset(dataset);
    throw CorruptionError(hdf5.path().string(), offset == HADDR_UNDEF ? 0 : offset,
                          fmt::format("XXH3-64 {:016x} over /input_ids", recorded),
                          fmt::format("{:016x}", found));
  }
}

void write_ids(const Hdf5StagedFile& file, const TokenFile& tokens) {
  const Hdf5Calls& hdf5 = file.calls();
  std::vector<hsize_t> dims{tokens.ids.size()};
  if (tokens.seqlen > 0) {
    const auto seqlen = static_cast<hsize_t>(tokens.seqlen);
    dims = {tokens.ids.size() / seqlen, seqlen};
  }
  const Hdf5Handle space = hdf5.make_space(dims);
  const Hdf5Handle dataset = hdf5.own(H5Dcreate2(file.id(), kDataset, H5T_STD_I32LE, space.get(),
                                                 H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT),
                                      H5Dclose, kObject);
  hdf5.check(
      H5Dwrite(dataset.get(), H5T_NATIVE_INT32, H5S_ALL, H5S_ALL, H5P_DEFAULT, tokens.ids.data()),
      kObject);
  const uint64_t checksum = checksum_of(tokens.ids);
  hdf5.write_attribute(dataset.get(), kChecksum, H5T_STD_U64LE, {}, &checksum);
}

}  // namespace

TokenFile read_token_file(const std::filesystem::path& path) {
  { const ReadFile present(path, ReadFile::Direct::kNever); }  // absent: the clearer message
  const Hdf5Calls hdf5(path, Hdf5Access::kRead);
  const Hdf5Handle file = hdf5.open_file();
  const Hdf5Handle dataset =
      hdf5.own(H5Dopen2(file.get(), kDataset, H5P_DEFAULT), H5Dclose, kObject);
  const std::vector<hsize_t> dims = checked_dims(hdf5, dataset.get());

  TokenFile tokens;
  const hsize_t row_ids = dims.size() == 2 ? dims[1] : 1;
  if (dims.size() == 2) tokens.seqlen = static_cast<int64_t>(dims[1]);
  const hsize_t rows_per_step = std::max<hsize_t>(1, kIdsPerStep / std::max<hsize_t>(1, row_ids));
  const hsize_t rows = row_ids == 0 ? 0 : dims[0];
  for (hsize_t first = 0; first < rows; first += rows_per_step) {
    read_rows(hdf5, dataset.get(), dims, first, std::min(rows_per_step, rows - first), tokens.ids);
  }
  check_ids(hdf5, dataset.get(), tokens.ids);
  return tokens;
}

void write_token_file(const std::filesystem::path& path, const TokenFile& tokens) {
  if (tokens.seqlen < 0 ||
      (tokens.seqlen > 0 && tokens.ids.size() % static_cast<size_t>(tokens.seqlen) != 0)) {
    throw std::invalid_argument(fmt::format("{}: {} ids are no whole number of rows of {}",
                                            path.string(), tokens.ids.size(), tokens.seqlen));
  }
  Hdf5StagedFile file(path);
  write_ids(file, tokens);
  file.publish();
}

}  // namespace coppice
