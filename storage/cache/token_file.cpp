#include "storage/cache/token_file.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "storage/cache/hdf5_handle.h"  // HDF5 calls checked, identifiers closed
#include "storage/errors.h"
#include "storage/io/file.h"  // ReadFile

namespace coppice {
namespace {

constexpr char kIds[] = "/input_ids";
constexpr char kLengths[] = "/lengths";
constexpr hsize_t kIdsPerStep = hsize_t{1} << 20;  // 8 MiB while converting

std::string shape_text(const std::vector<hsize_t>& dims) {
  return dims.size() == 1 ? fmt::format("[{}]", dims[0])
                          : fmt::format("[{}, {}]", dims[0], dims[1]);
}

/// A dataset of integers, open.
struct Table {
  std::string name;
  Hdf5Handle dataset;
  std::string object() const { return "dataset " + name; }
};

Table open_table(const Hdf5Calls& hdf5, hid_t file, const char* name) {
  Hdf5Handle dataset =
      hdf5.own(H5Dopen2(file, name, H5P_DEFAULT), H5Dclose, std::string("dataset ") + name);
  return {name, std::move(dataset)};
}

/// Refuses what is no table of integers, before anything is allocated for it.
std::vector<hsize_t> checked_dims(const Hdf5Calls& hdf5, const Table& table) {
  const std::string path = hdf5.path().string();
  const Hdf5Handle type = hdf5.own(H5Dget_type(table.dataset.get()), H5Tclose, table.object());
  if (H5Tget_class(type.get()) != H5T_INTEGER) {
    throw CorruptionError(path, 0, "integers in " + table.name, "another type: store int32");
  }
  std::vector<hsize_t> dims = hdf5.dims_of(table.dataset.get(), table.object());
  if (table.name == kLengths && dims.size() != 1) {
    throw CorruptionError(path, 0, "/lengths of [sequences]",
                          fmt::format("{} dimensions", dims.size()));
  }
  if (dims.size() != 1 && dims.size() != 2) {
    throw CorruptionError(path, 0, "/input_ids of [tokens] or [windows, seqlen]",
                          fmt::format("{} dimensions", dims.size()));
  }
  constexpr hsize_t kMaxIds = std::numeric_limits<int64_t>::max() / sizeof(int64_t);
  const hsize_t row = dims.size() == 2 ? dims[1] : 1;
  if (row != 0 && dims[0] > kMaxIds / row) {
    throw CorruptionError(path, 0, fmt::format("{} of at most {} integers", table.name, kMaxIds),
                          shape_text(dims));
  }
  // A header may announce what the file does not hold, and reading would fill memory with nothing.
  if (dims[0] * row != 0 && H5Dget_storage_size(table.dataset.get()) == 0) {
    throw CorruptionError(path, 0, fmt::format("the data of {} integers", dims[0] * row),
                          table.name + " without data");
  }
  return dims;
}

/// Appends rows [first, first + count), each integer checked to fit.
void read_rows(const Hdf5Calls& hdf5, const Table& table, const std::vector<hsize_t>& dims,
               hsize_t first, hsize_t count, std::vector<int32_t>& values) {
  const hid_t dataset = table.dataset.get();
  const std::string object = table.object();
  std::vector<hsize_t> start(dims.size(), 0);
  std::vector<hsize_t> extent = dims;
  start[0] = first;
  extent[0] = count;
  const Hdf5Handle in_file = hdf5.own(H5Dget_space(dataset), H5Sclose, object);
  hdf5.check(H5Sselect_hyperslab(in_file.get(), H5S_SELECT_SET, start.data(), nullptr,
                                 extent.data(), nullptr),
             object);
  const Hdf5Handle in_memory = hdf5.make_space(extent);

  // Through int64: HDF5 clips what does not fit its target, and a clipped id looks like a good one.
  std::vector<int64_t> wide(dims.size() == 2 ? count * dims[1] : count);
  hdf5.check(
      H5Dread(dataset, H5T_NATIVE_INT64, in_memory.get(), in_file.get(), H5P_DEFAULT, wide.data()),
      object);
  for (const int64_t value : wide) {
    if (!std::in_range<int32_t>(value)) {
      throw CorruptionError(hdf5.path().string(), 0, "integers that fit int32",
                            fmt::format("{} as number {} of {}", value, values.size(), table.name));
    }
    values.push_back(static_cast<int32_t>(value));
  }
}

std::vector<int32_t> read_all(const Hdf5Calls& hdf5, const Table& table,
                              const std::vector<hsize_t>& dims) {
  std::vector<int32_t> values;
  const hsize_t row_values = dims.size() == 2 ? dims[1] : 1;
  const hsize_t rows_per_step =
      std::max<hsize_t>(1, kIdsPerStep / std::max<hsize_t>(1, row_values));
  const hsize_t rows = row_values == 0 ? 0 : dims[0];
  for (hsize_t first = 0; first < rows; first += rows_per_step) {
    read_rows(hdf5, table, dims, first, std::min(rows_per_step, rows - first), values);
  }
  return values;
}

/// Attribute `xxh3` of files written here; those of other tools go without.
constexpr char kChecksum[] = "xxh3";

uint64_t checksum_of(const std::vector<int32_t>& ids) {
  return XXH3_64bits(ids.data(), ids.size() * sizeof(int32_t));
}

void check_sum(const Hdf5Calls& hdf5, const Table& table, const std::vector<int32_t>& ids) {
  const hid_t dataset = table.dataset.get();
  const htri_t has_checksum = H5Aexists(dataset, kChecksum);
  hdf5.check(has_checksum, table.object());
  if (has_checksum == 0) return;
  uint64_t recorded = 0;
  hdf5.read_attribute(dataset, kChecksum, H5T_NATIVE_UINT64, 1, &recorded);
  const uint64_t found = checksum_of(ids);
  if (found != recorded) {
    const haddr_t offset = H5Dget_offset(dataset);
    throw CorruptionError(hdf5.path().string(), offset == HADDR_UNDEF ? 0 : offset,
                          fmt::format("XXH3-64 {:016x} over {}", recorded, table.name),
                          fmt::format("{:016x}", found));
  }
}

void check_lengths(const std::filesystem::path& path, const TokenFile& tokens) {
  int64_t sum = 0;
  for (size_t i = 0; i < tokens.lengths.size(); ++i) {
    if (tokens.lengths[i] < 1) {
      throw CorruptionError(path.string(), 0, "sequences of at least one token",
                            fmt::format("{} as length {}", tokens.lengths[i], i));
    }
    sum += tokens.lengths[i];
  }
  if (sum == static_cast<int64_t>(tokens.ids.size()) && tokens.seqlen == 0) return;
  throw CorruptionError(
      path.string(), 0,
      fmt::format("/lengths that sum to the {} ids of one stream", tokens.ids.size()),
      fmt::format("a sum of {}", sum));
}

/// Int32, of these dimensions, with a checksum.
void write_table(const Hdf5StagedFile& file, const char* name, const std::vector<hsize_t>& dims,
                 const std::vector<int32_t>& values) {
  const Hdf5Calls& hdf5 = file.calls();
  const std::string object = std::string("dataset ") + name;
  const Hdf5Handle space = hdf5.make_space(dims);
  const Hdf5Handle dataset = hdf5.own(H5Dcreate2(file.id(), name, H5T_STD_I32LE, space.get(),
                                                 H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT),
                                      H5Dclose, object);
  hdf5.check(
      H5Dwrite(dataset.get(), H5T_NATIVE_INT32, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()),
      object);
  const uint64_t checksum = checksum_of(values);
  hdf5.write_attribute(dataset.get(), kChecksum, H5T_STD_U64LE, {}, &checksum);
}

void write_tables(const Hdf5StagedFile& file, const TokenFile& tokens) {
  std::vector<hsize_t> dims{tokens.ids.size()};
  if (tokens.seqlen > 0) {
    const auto seqlen = static_cast<hsize_t>(tokens.seqlen);
    dims = {tokens.ids.size() / seqlen, seqlen};
  }
  write_table(file, kIds, dims, tokens.ids);
  if (!tokens.lengths.empty()) write_table(file, kLengths, {tokens.lengths.size()}, tokens.lengths);
}

}  // namespace

TokenFile read_token_file(const std::filesystem::path& path) {
  { const ReadFile present(path, ReadFile::Direct::kNever); }  // absent: the clearer message
  const Hdf5Calls hdf5(path, Hdf5Access::kRead);
  const Hdf5Handle file = hdf5.open_file();
  const Table ids = open_table(hdf5, file.get(), kIds);
  const std::vector<hsize_t> dims = checked_dims(hdf5, ids);

  TokenFile tokens;
  if (dims.size() == 2) tokens.seqlen = static_cast<int64_t>(dims[1]);
  tokens.ids = read_all(hdf5, ids, dims);
  check_sum(hdf5, ids, tokens.ids);
  const htri_t has_lengths = H5Lexists(file.get(), kLengths, H5P_DEFAULT);
  hdf5.check(has_lengths, kLengths);
  if (has_lengths == 0) return tokens;
  const Table lengths = open_table(hdf5, file.get(), kLengths);
  tokens.lengths = read_all(hdf5, lengths, checked_dims(hdf5, lengths));
  check_sum(hdf5, lengths, tokens.lengths);
  check_lengths(path, tokens);
  return tokens;
}

void write_token_file(const std::filesystem::path& path, const TokenFile& tokens) {
  if (tokens.seqlen < 0 ||
      (tokens.seqlen > 0 && tokens.ids.size() % static_cast<size_t>(tokens.seqlen) != 0)) {
    throw std::invalid_argument(fmt::format("{}: {} ids are no whole number of rows of {}",
                                            path.string(), tokens.ids.size(), tokens.seqlen));
  }
  const auto in_sequences =
      std::accumulate(tokens.lengths.begin(), tokens.lengths.end(), size_t{0});
  if (!tokens.lengths.empty() && (tokens.seqlen > 0 || in_sequences != tokens.ids.size())) {
    throw std::invalid_argument(fmt::format("{}: {} ids, sequences of {} together", path.string(),
                                            tokens.ids.size(), in_sequences));
  }
  Hdf5StagedFile file(path);
  write_tables(file, tokens);
  file.publish();
}

}  // namespace coppice
