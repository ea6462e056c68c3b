#include "storage/cache/activation_cache.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>
#include <xxhash.h>

#include <cerrno>
#include <cstddef>
#include <limits>
#include <stdexcept>
#include <utility>

#include "storage/cache/hdf5_handle.h"  // HDF5 calls checked, identifiers closed
#include "storage/errors.h"
#include "storage/io/content_hash.h"

namespace coppice {
namespace {

// The byte tables are in storage/FORMATS.md, "Activation cache".
constexpr char kMagic[] = "coppice.activations";
constexpr uint32_t kVersion = 1;
constexpr uint64_t kMaxChunkBytes = std::numeric_limits<uint32_t>::max();  // HDF5's limit
constexpr H5Z_filter_t kZstdFilter = 32015;  // as registered with The HDF Group
// What HDF5 adds beside chunks and index before the next chunk: nodes of its tree, padding.
constexpr uint64_t kMetadataBytes = uint64_t{256} << 10;
constexpr uint32_t kEveryFilterApplied = 0;
constexpr uint32_t kEveryFilterSkipped = 0b11;  // shuffle, zstd

/// A row of `/index`.
struct IndexRow {
  uint64_t offset;
  uint64_t stored_bytes;
  uint64_t xxh3;
  uint32_t compressed;
  uint32_t reserved;  // 0
};
static_assert(sizeof(IndexRow) == 32);

std::string description_of(const ActivationShape& shape) {
  return fmt::format("{} {} {} {} {}", kVersion, shape.dtype, shape.windows, shape.seqlen,
                     shape.hidden);
}

/// Covers all the reader believes: the description as text seeds the hash of the rows.
uint64_t index_checksum(const ActivationShape& shape, std::span<const IndexRow> rows) {
  const std::string description = description_of(shape);
  const uint64_t seed = XXH3_64bits(description.data(), description.size());
  return XXH3_64bits_withSeed(rows.data(), rows.size_bytes(), seed);
}

/// The rows hold a checksum of every chunk, so hashing them with the description covers the file.
FileRecord record_of(const std::filesystem::path& path, uint64_t file_bytes,
                     const ActivationShape& shape, std::span<const IndexRow> rows) {
  ContentHash hash;
  const std::string description = description_of(shape);
  hash.add(std::as_bytes(std::span(description)));
  hash.add(std::as_bytes(rows));
  return {path.filename().string(), file_bytes, hash.hex()};
}

Hdf5Handle make_element_type(const Hdf5Calls& hdf5, const std::string& dtype) {
  const hid_t base = dtype == "F32"   ? H5T_IEEE_F32LE
                     : dtype == "F16" ? H5T_IEEE_F32LE
                                      : H5T_STD_U16LE;  // HDF5 has no bfloat16: its bits
  Hdf5Handle type = hdf5.own(H5Tcopy(base), H5Tclose, "element type");
  if (dtype == "F16") {  // IEEE binary16, for which 1.10 has no name; h5py shows it as float16
    hdf5.check(H5Tset_fields(type.get(), 15, 10, 5, 0, 10), "element type");
    hdf5.check(H5Tset_size(type.get(), 2), "element type");
    hdf5.check(H5Tset_ebias(type.get(), 15), "element type");
  }
  return type;
}

Hdf5Handle make_index_type(const Hdf5Calls& hdf5) {
  Hdf5Handle type = hdf5.own(H5Tcreate(H5T_COMPOUND, sizeof(IndexRow)), H5Tclose, "type of /index");
  const auto insert = [&](const char* name, size_t offset, hid_t member) {
    hdf5.check(H5Tinsert(type.get(), name, offset, member), "type of /index");
  };
  insert("offset", offsetof(IndexRow, offset), H5T_STD_U64LE);
  insert("stored_bytes", offsetof(IndexRow, stored_bytes), H5T_STD_U64LE);
  insert("xxh3", offsetof(IndexRow, xxh3), H5T_STD_U64LE);
  insert("compressed", offsetof(IndexRow, compressed), H5T_STD_U32LE);
  insert("reserved", offsetof(IndexRow, reserved), H5T_STD_U32LE);
  return type;
}

/// The reason why no cache can have this shape; empty for a good one.
std::string complaint_about(const ActivationShape& shape) {
  if (shape.dtype != "BF16" && shape.dtype != "F16" && shape.dtype != "F32") {
    return fmt::format("dtype '{}', not BF16, F16 or F32", shape.dtype);
  }
  if (shape.windows < 1 || shape.seqlen < 1 || shape.hidden < 1) {
    return fmt::format("shape [{}, {}, {}] with a dimension below 1", shape.windows, shape.seqlen,
                       shape.hidden);
  }
  const uint64_t max_elements = kMaxChunkBytes / static_cast<uint64_t>(shape.element_bytes());
  if (static_cast<uint64_t>(shape.seqlen) > max_elements / static_cast<uint64_t>(shape.hidden)) {
    return fmt::format("windows of [{}, {}] {}, above HDF5's {} bytes a chunk", shape.seqlen,
                       shape.hidden, shape.dtype, kMaxChunkBytes);
  }
  return {};
}

Hdf5Handle create_hidden(const Hdf5Calls& hdf5, hid_t file, const ActivationShape& shape) {
  const Hdf5Handle layout = hdf5.own(H5Pcreate(H5P_DATASET_CREATE), H5Pclose, "layout of /hidden");
  const hsize_t chunk[3] = {1, static_cast<hsize_t>(shape.seqlen),
                            static_cast<hsize_t>(shape.hidden)};
  hdf5.check(H5Pset_chunk(layout.get(), 3, chunk), "chunks of /hidden");
  hdf5.check(H5Pset_shuffle(layout.get()), "shuffle filter of /hidden");
  // Optional: the file names the filter without this process having it; the codec does its work.
  hdf5.check(H5Pset_filter(layout.get(), kZstdFilter, H5Z_FLAG_OPTIONAL, 0, nullptr),
             "zstd filter of /hidden");
  hdf5.check(H5Pset_fill_time(layout.get(), H5D_FILL_TIME_NEVER), "fill time of /hidden");

  const Hdf5Handle access = hdf5.own(H5Pcreate(H5P_DATASET_ACCESS), H5Pclose, "cache of /hidden");
  // No chunk cache: chunks are written whole, and memory must not grow with them.
  hdf5.check(H5Pset_chunk_cache(access.get(), 1, 0, 1.0), "cache of /hidden");

  const Hdf5Handle type = make_element_type(hdf5, shape.dtype);
  const Hdf5Handle space =
      hdf5.make_space({static_cast<hsize_t>(shape.windows), chunk[1], chunk[2]});
  Hdf5Handle hidden = hdf5.own(
      H5Dcreate2(file, "/hidden", type.get(), space.get(), H5P_DEFAULT, layout.get(), access.get()),
      H5Dclose, "dataset /hidden");
  hdf5.write_text(hidden.get(), "dtype", shape.dtype);
  return hidden;
}

void read_at(const ReadFile& file, uint64_t offset, std::span<std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t count =
        ::pread(file.fd(), bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) {
      throw IoError("reading", file.path().string(), count < 0 ? errno : EIO, offset, bytes.size());
    }
    bytes = bytes.subspan(static_cast<size_t>(count));
    offset += static_cast<uint64_t>(count);
  }
}

}  // namespace

int ActivationShape::element_bytes() const { return dtype == "F32" ? 4 : 2; }

uint64_t ActivationShape::chunk_bytes() const {
  return static_cast<uint64_t>(seqlen) * static_cast<uint64_t>(hidden) *
         static_cast<uint64_t>(element_bytes());
}

struct ActivationCacheWriter::State {
  State(std::filesystem::path path, const ActivationShape& wanted)
      : shape(wanted), file(std::move(path)), rows(static_cast<size_t>(shape.windows)) {}

  ActivationShape shape;
  Hdf5StagedFile file;
  Hdf5Handle hidden;           // closed before the file
  std::vector<IndexRow> rows;  // stored_bytes 0: not written yet
  uint64_t stored_bytes = 0;
};

ActivationCacheWriter::ActivationCacheWriter(std::filesystem::path path,
                                             const ActivationShape& shape) {
  if (const std::string complaint = complaint_about(shape); !complaint.empty()) {
    throw std::invalid_argument("activation cache " + path.string() + ": " + complaint);
  }
  state_ = std::make_unique<State>(std::move(path), shape);
  const Hdf5Calls& hdf5 = state_->file.calls();
  const hid_t file = state_->file.id();
  hdf5.write_text(file, "magic", kMagic);
  hdf5.write_attribute(file, "version", H5T_STD_U32LE, {}, &kVersion);
  const int64_t dims[3] = {shape.windows, shape.seqlen, shape.hidden};
  hdf5.write_attribute(file, "shape", H5T_STD_I64LE, {3}, dims);
  state_->hidden = create_hidden(hdf5, file, shape);
}

ActivationCacheWriter::~ActivationCacheWriter() = default;

uint64_t ActivationCacheWriter::stored_bytes() const { return state_->stored_bytes; }

void ActivationCacheWriter::reserve(uint64_t chunk_bytes) {
  state_->file.reserve(chunk_bytes + state_->rows.size() * sizeof(IndexRow) + kMetadataBytes);
}

void ActivationCacheWriter::write(int64_t window, const EncodedChunk& chunk) {
  State& state = *state_;
  const auto object = [&] {
    return fmt::format("window {} of {}", window, state.file.path().string());
  };
  if (state.file.is_published()) throw std::logic_error(object() + ": the cache is finished");
  if (window < 0 || window >= state.shape.windows) {
    throw std::out_of_range(fmt::format("{}: it has {} windows", object(), state.shape.windows));
  }
  IndexRow& row = state.rows[static_cast<size_t>(window)];
  if (row.stored_bytes != 0) throw std::logic_error(object() + ": written twice");
  const uint64_t raw_bytes = state.shape.chunk_bytes();
  if (chunk.compressed ? chunk.bytes.empty() || chunk.bytes.size() >= raw_bytes
                       : chunk.bytes.size() != raw_bytes) {
    throw std::invalid_argument(fmt::format("{}: {} {} bytes for a window of {}", object(),
                                            chunk.bytes.size(),
                                            chunk.compressed ? "compressed" : "raw", raw_bytes));
  }

  const hsize_t corner[3] = {static_cast<hsize_t>(window), 0, 0};
  state.file.calls().check(
      H5Dwrite_chunk(state.hidden.get(), H5P_DEFAULT,
                     chunk.compressed ? kEveryFilterApplied : kEveryFilterSkipped, corner,
                     chunk.bytes.size(), chunk.bytes.data()),
      fmt::format("window {}", window));
  // Asked here and not in finish(): HDF5 walks all chunks to find one. Measured 3 s in sum over
  // 16,384 windows, which would otherwise stall the serial place in one piece.
  unsigned filter_mask = 0;
  haddr_t offset = HADDR_UNDEF;
  hsize_t stored = 0;
  state.file.calls().check(
      H5Dget_chunk_info_by_coord(state.hidden.get(), corner, &filter_mask, &offset, &stored),
      fmt::format("address of window {}", window));
  row = {offset, stored, chunk.xxh3, chunk.compressed ? 1U : 0U, 0};
  state.stored_bytes += stored;
  state.file.wrote(offset, stored);
}

FileRecord ActivationCacheWriter::finish() {
  State& state = *state_;
  const std::string path = state.file.path().string();
  if (state.file.is_published()) throw std::logic_error(path + ": finished twice");
  for (size_t window = 0; window < state.rows.size(); ++window) {
    if (state.rows[window].stored_bytes == 0) {
      throw std::logic_error(
          fmt::format("{}: window {} of {} is missing", path, window, state.rows.size()));
    }
  }

  const Hdf5Calls& hdf5 = state.file.calls();
  {
    const Hdf5Handle type = make_index_type(hdf5);
    const Hdf5Handle space = hdf5.make_space({state.rows.size()});
    Hdf5Handle index = hdf5.own(H5Dcreate2(state.file.id(), "/index", type.get(), space.get(),
                                           H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT),
                                H5Dclose, "dataset /index");
    hdf5.check(H5Dwrite(index.get(), type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, state.rows.data()),
               "dataset /index");
    hdf5.check(index.close(), "dataset /index");
  }
  const uint64_t checksum = index_checksum(state.shape, state.rows);
  hdf5.write_attribute(state.file.id(), "index_xxh3", H5T_STD_U64LE, {}, &checksum);
  hdf5.check(state.hidden.close(), "dataset /hidden");
  const uint64_t file_bytes = state.file.publish();
  return record_of(state.file.path(), file_bytes, state.shape, state.rows);
}

namespace {

ActivationShape read_shape(const Hdf5Calls& hdf5, hid_t file, hid_t hidden) {
  const std::string path = hdf5.path().string();
  const std::string magic = hdf5.read_text(file, "magic");
  if (magic != kMagic) throw CorruptionError(path, 0, fmt::format("magic '{}'", kMagic), magic);
  uint32_t version = 0;
  hdf5.read_attribute(file, "version", H5T_NATIVE_UINT32, 1, &version);
  if (version != kVersion) {
    throw CorruptionError(
        path, 0, fmt::format("format version {}", kVersion),
        fmt::format("{}: delete the file and run again to make it anew", version));
  }
  int64_t dims[3] = {};
  hdf5.read_attribute(file, "shape", H5T_NATIVE_INT64, 3, dims);
  ActivationShape shape{dims[0], dims[1], dims[2], hdf5.read_text(hidden, "dtype")};
  if (const std::string complaint = complaint_about(shape); !complaint.empty()) {
    throw CorruptionError(path, 0, "the shape of an activation cache", complaint);
  }
  const std::vector<hsize_t> found = hdf5.dims_of(hidden, "dataset /hidden");
  if (found != std::vector<hsize_t>(dims, dims + 3)) {
    throw CorruptionError(
        path, 0,
        fmt::format("/hidden of [{}, {}, {}], as attribute shape says", dims[0], dims[1], dims[2]),
        fmt::format("[{}]", fmt::join(found, ", ")));
  }
  return shape;
}

std::vector<IndexRow> read_index(const Hdf5Calls& hdf5, hid_t file, const ActivationShape& shape,
                                 uint64_t file_bytes) {
  const std::string path = hdf5.path().string();
  const auto windows = static_cast<uint64_t>(shape.windows);
  const Hdf5Handle index =
      hdf5.own(H5Dopen2(file, "/index", H5P_DEFAULT), H5Dclose, "dataset /index");
  const std::vector<hsize_t> dims = hdf5.dims_of(index.get(), "dataset /index");
  if (dims != std::vector<hsize_t>{windows} || windows > file_bytes / sizeof(IndexRow)) {
    throw CorruptionError(
        path, 0, fmt::format("/index of [{}] rows in {} bytes of file", windows, file_bytes),
        fmt::format("[{}]", fmt::join(dims, ", ")));
  }

  std::vector<IndexRow> rows(windows);
  const Hdf5Handle type = make_index_type(hdf5);
  hdf5.check(H5Dread(index.get(), type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, rows.data()),
             "dataset /index");
  uint64_t recorded = 0;
  hdf5.read_attribute(file, "index_xxh3", H5T_NATIVE_UINT64, 1, &recorded);
  const uint64_t found = index_checksum(shape, rows);
  if (found != recorded) {
    const haddr_t offset = H5Dget_offset(index.get());
    throw CorruptionError(path, offset == HADDR_UNDEF ? 0 : offset,
                          fmt::format("XXH3-64 {:016x} over /index and the attributes", recorded),
                          fmt::format("{:016x}", found));
  }
  return rows;
}

}  // namespace

ActivationCacheReader::ActivationCacheReader(std::filesystem::path path)
    : path_(std::move(path)), file_(std::make_unique<ReadFile>(path_)) {
  const Hdf5Calls hdf5(path_, Hdf5Access::kRead);
  const Hdf5Handle file = hdf5.open_file();
  const Hdf5Handle hidden =
      hdf5.own(H5Dopen2(file.get(), "/hidden", H5P_DEFAULT), H5Dclose, "dataset /hidden");
  shape_ = read_shape(hdf5, file.get(), hidden.get());

  const std::vector<IndexRow> rows = read_index(hdf5, file.get(), shape_, file_->bytes());
  record_ = record_of(path_, file_->bytes(), shape_, rows);
  chunks_.reserve(rows.size());
  for (const IndexRow& row : rows) {
    if (row.stored_bytes > file_->bytes() || row.offset > file_->bytes() - row.stored_bytes) {
      throw CorruptionError(path_.string(), row.offset,
                            fmt::format("{} bytes of window {}", row.stored_bytes, chunks_.size()),
                            fmt::format("end of file at byte {}", file_->bytes()));
    }
    if (row.stored_bytes > shape_.chunk_bytes()) {
      throw CorruptionError(
          path_.string(), row.offset,
          fmt::format("at most {} bytes of window {}", shape_.chunk_bytes(), chunks_.size()),
          fmt::format("{}", row.stored_bytes));
    }
    chunks_.push_back({row.offset, row.stored_bytes, row.compressed != 0, row.xxh3});
  }
}

void ActivationCacheReader::decode(int64_t window, std::span<const std::byte> stored,
                                   std::span<std::byte> elements, ChunkLayout layout) const {
  const ChunkLocation& location = chunk(window);
  if (stored.size() != location.stored_bytes || elements.size() != shape_.chunk_bytes()) {
    throw std::invalid_argument(fmt::format(
        "window {} of {}: {} stored bytes into {}, it has {} and {}", window, path_.string(),
        stored.size(), elements.size(), location.stored_bytes, shape_.chunk_bytes()));
  }
  try {
    decode_chunk(stored, location.compressed, location.xxh3, shape_.element_bytes(), elements,
                 layout);
  } catch (const std::runtime_error& difference) {
    throw CorruptionError(path_.string(), location.offset,
                          fmt::format("the {} bytes written for window {}", stored.size(), window),
                          difference.what());
  }
}

void ActivationCacheReader::verify() const {
  const ReadFile file(path_, ReadFile::Direct::kNever);
  std::vector<std::byte> stored;
  for (size_t window = 0; window < chunks_.size(); ++window) {
    const ChunkLocation& chunk = chunks_[window];
    stored.resize(chunk.stored_bytes);
    read_at(file, chunk.offset, stored);
    const uint64_t found = XXH3_64bits(stored.data(), stored.size());
    if (found == chunk.xxh3) continue;
    throw CorruptionError(path_.string(), chunk.offset,
                          fmt::format("XXH3-64 {:016x} over window {}", chunk.xxh3, window),
                          fmt::format("{:016x}", found));
  }
}

}  // namespace coppice
