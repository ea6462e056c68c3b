#include "storage/cache/token_file.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <memory>
#include <new>
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
constexpr hsize_t kIdsPerStep = hsize_t{1} << 20;  // 8 MiB while converting, 4 MiB afterwards

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

/// Values of a table that HDF5 reads at once: whole rows, or a part of one.
struct Piece {
  std::vector<hsize_t> start;
  std::vector<hsize_t> extent;
  hsize_t num_values() const {
    return std::accumulate(extent.begin(), extent.end(), hsize_t{1}, std::multiplies<>());
  }
};

/// The next piece of a table in its order, from value number `at` on.
Piece piece_at(const std::vector<hsize_t>& dims, hsize_t at) {
  if (dims.size() == 1) return {{at}, {std::min(kIdsPerStep, dims[0] - at)}};
  const hsize_t row = at / dims[1], column = at % dims[1];
  if (column != 0 || dims[1] > kIdsPerStep) {
    return {{row, column}, {1, std::min(kIdsPerStep, dims[1] - column)}};
  }
  return {{row, 0}, {std::min(kIdsPerStep / dims[1], dims[0] - row), dims[1]}};
}

hsize_t num_values(const std::vector<hsize_t>& dims) {
  return dims.size() == 2 ? dims[0] * dims[1] : dims[0];
}

/// Through int64: HDF5 clips what does not fit its target, and a clipped id looks like a good one.
void read_piece(const Hdf5Calls& hdf5, const Table& table, const Piece& piece,
                std::vector<int64_t>& wide) {
  const hid_t dataset = table.dataset.get();
  const std::string object = table.object();
  const Hdf5Handle in_file = hdf5.own(H5Dget_space(dataset), H5Sclose, object);
  hdf5.check(H5Sselect_hyperslab(in_file.get(), H5S_SELECT_SET, piece.start.data(), nullptr,
                                 piece.extent.data(), nullptr),
             object);
  const Hdf5Handle in_memory = hdf5.make_space(piece.extent);
  wide.resize(piece.num_values());
  hdf5.check(
      H5Dread(dataset, H5T_NATIVE_INT64, in_memory.get(), in_file.get(), H5P_DEFAULT, wide.data()),
      object);
}

/// Each integer checked to fit; the first is number `first` of its table.
void narrow(const Hdf5Calls& hdf5, const Table& table, hsize_t first,
            const std::vector<int64_t>& wide, std::vector<int32_t>& values) {
  values.clear();
  for (const int64_t value : wide) {
    if (!std::in_range<int32_t>(value)) {
      throw CorruptionError(
          hdf5.path().string(), 0, "integers that fit int32",
          fmt::format("{} as number {} of {}", value, first + values.size(), table.name));
    }
    values.push_back(static_cast<int32_t>(value));
  }
}

/// Attribute `xxh3` of files written here; those of other tools go without.
constexpr char kChecksum[] = "xxh3";

uint64_t checksum_of(const std::vector<int32_t>& ids) {
  return XXH3_64bits(ids.data(), ids.size() * sizeof(int32_t));
}

/// checksum_of() of values that come in pieces.
class Checksum {
 public:
  Checksum() : state_(XXH3_createState()) {
    if (state_ == nullptr) throw std::bad_alloc();
    XXH3_64bits_reset(state_.get());
  }
  void add(const std::vector<int32_t>& values) {
    XXH3_64bits_update(state_.get(), values.data(), values.size() * sizeof(int32_t));
  }
  uint64_t digest() const { return XXH3_64bits_digest(state_.get()); }

 private:
  struct Free {
    void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
  };
  std::unique_ptr<XXH3_state_t, Free> state_;
};

void check_sum(const Hdf5Calls& hdf5, const Table& table, uint64_t found) {
  const hid_t dataset = table.dataset.get();
  const htri_t has_checksum = H5Aexists(dataset, kChecksum);
  hdf5.check(has_checksum, table.object());
  if (has_checksum == 0) return;
  uint64_t recorded = 0;
  hdf5.read_attribute(dataset, kChecksum, H5T_NATIVE_UINT64, 1, &recorded);
  if (found != recorded) {
    const haddr_t offset = H5Dget_offset(dataset);
    throw CorruptionError(hdf5.path().string(), offset == HADDR_UNDEF ? 0 : offset,
                          fmt::format("XXH3-64 {:016x} over {}", recorded, table.name),
                          fmt::format("{:016x}", found));
  }
}

/// Hands all values of a table to `take`, in order and piece by piece; then checks their sum.
template <typename Take>
void read_pieces(const Hdf5Calls& hdf5, const Table& table, const std::vector<hsize_t>& dims,
                 Take take) {
  std::vector<int64_t> wide;
  std::vector<int32_t> values;
  Checksum checksum;
  const hsize_t end = num_values(dims);
  for (hsize_t at = 0; at < end; at += values.size()) {
    read_piece(hdf5, table, piece_at(dims, at), wide);
    narrow(hdf5, table, at, wide, values);
    checksum.add(values);
    take(static_cast<int64_t>(at), values);
  }
  check_sum(hdf5, table, checksum.digest());
}

/// Puts ids that come in the order of the file into the order of the ranges.
class RangesFilled {
 public:
  explicit RangesFilled(std::span<const TokenRange> ranges) {
    size_t end = 0;
    for (const TokenRange& range : ranges) {
      waiting_.push_back({range, end});
      end += static_cast<size_t>(range.count);
    }
    ids_.resize(end);
    std::sort(waiting_.begin(), waiting_.end(),
              [](const Placed& a, const Placed& b) { return a.range.first < b.range.first; });
  }

  void add(int64_t first, std::span<const int32_t> ids) {
    const int64_t end = first + std::ssize(ids);
    for (; begun_ < waiting_.size() && waiting_[begun_].range.first < end; ++begun_) {
      open_.push_back(waiting_[begun_]);
    }
    for (const auto& [range, place] : open_) {
      const int64_t from = std::max(first, range.first);
      const int64_t to = std::min(end, range.first + range.count);
      if (from >= to) continue;
      std::copy_n(ids.begin() + (from - first), to - from,
                  ids_.begin() + static_cast<int64_t>(place) + (from - range.first));
    }
    std::erase_if(open_, [end](const Placed& placed) {
      return placed.range.first + placed.range.count <= end;
    });
  }

  std::vector<int32_t> take() && { return std::move(ids_); }

 private:
  struct Placed {
    TokenRange range;
    size_t place;  // of its first id among all that are returned
  };
  std::vector<int32_t> ids_;
  std::vector<Placed> waiting_;  // by their first id
  size_t begun_ = 0;             // of those
  std::vector<Placed> open_;     // begun and not ended
};

void check_ranges(const std::filesystem::path& path, std::span<const TokenRange> ranges,
                  int64_t num_ids) {
  for (const TokenRange& range : ranges) {
    if (range.first >= 0 && range.count >= 0 && range.first <= num_ids &&
        range.count <= num_ids - range.first) {
      continue;
    }
    throw std::out_of_range(fmt::format("{}: {} ids from number {} on, it has {}", path.string(),
                                        range.count, range.first, num_ids));
  }
}

void check_lengths(const std::filesystem::path& path, const TokenShape& shape) {
  int64_t sum = 0;
  for (size_t i = 0; i < shape.lengths.size(); ++i) {
    if (shape.lengths[i] < 1) {
      throw CorruptionError(path.string(), 0, "sequences of at least one token",
                            fmt::format("{} as length {}", shape.lengths[i], i));
    }
    sum += shape.lengths[i];
  }
  if (sum == shape.num_ids && shape.seqlen == 0) return;
  throw CorruptionError(path.string(), 0,
                        fmt::format("/lengths that sum to the {} ids of one stream", shape.num_ids),
                        fmt::format("a sum of {}", sum));
}

std::vector<int32_t> read_lengths(const Hdf5Calls& hdf5, hid_t file) {
  const Table table = open_table(hdf5, file, kLengths);
  std::vector<int32_t> lengths;
  read_pieces(hdf5, table, checked_dims(hdf5, table),
              [&](int64_t, const std::vector<int32_t>& piece) {
                lengths.insert(lengths.end(), piece.begin(), piece.end());
              });
  return lengths;
}

Hdf5Handle open_file(const Hdf5Calls& hdf5) {
  { const ReadFile present(hdf5.path(), ReadFile::Direct::kNever); }  // absent: the clearer message
  return hdf5.open_file();
}

/// Int32, of these dimensions, with a checksum.
void write_table(const Hdf5StagedFile& file, const char* name, const std::vector<hsize_t>& dims,
                 const std::vector<int32_t>& values) {
  const Hdf5Calls& hdf5 = file.calls();
  const std::string object = std::string("dataset ") + name;
  const Hdf5Handle space = hdf5.make_space(dims);
  Hdf5Handle dataset = hdf5.own(H5Dcreate2(file.id(), name, H5T_STD_I32LE, space.get(), H5P_DEFAULT,
                                           H5P_DEFAULT, H5P_DEFAULT),
                                H5Dclose, object);
  hdf5.check(
      H5Dwrite(dataset.get(), H5T_NATIVE_INT32, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()),
      object);
  const uint64_t checksum = checksum_of(values);
  hdf5.write_attribute(dataset.get(), kChecksum, H5T_STD_U64LE, {}, &checksum);
  hdf5.check(dataset.close(), object);
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

TokenShape read_token_shape(const std::filesystem::path& path) {
  const Hdf5Calls hdf5(path, Hdf5Access::kRead);
  const Hdf5Handle file = open_file(hdf5);
  const std::vector<hsize_t> dims = checked_dims(hdf5, open_table(hdf5, file.get(), kIds));
  TokenShape shape;
  shape.num_ids = static_cast<int64_t>(num_values(dims));
  if (dims.size() == 2) shape.seqlen = static_cast<int64_t>(dims[1]);
  const htri_t has_lengths = H5Lexists(file.get(), kLengths, H5P_DEFAULT);
  hdf5.check(has_lengths, kLengths);
  if (has_lengths == 0) return shape;
  shape.lengths = read_lengths(hdf5, file.get());
  check_lengths(path, shape);
  return shape;
}

std::vector<int32_t> read_token_ranges(const std::filesystem::path& path,
                                       std::span<const TokenRange> ranges,
                                       const TokenCheck& check) {
  const Hdf5Calls hdf5(path, Hdf5Access::kRead);
  const Hdf5Handle file = open_file(hdf5);
  const Table ids = open_table(hdf5, file.get(), kIds);
  const std::vector<hsize_t> dims = checked_dims(hdf5, ids);
  check_ranges(path, ranges, static_cast<int64_t>(num_values(dims)));
  RangesFilled filled(ranges);
  read_pieces(hdf5, ids, dims, [&](int64_t first, const std::vector<int32_t>& piece) {
    if (check) check(first, piece);
    filled.add(first, piece);
  });
  return std::move(filled).take();
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
