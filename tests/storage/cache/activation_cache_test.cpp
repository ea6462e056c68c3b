// What was written for a window is what is read for it, or the reader says why not.
#include "storage/cache/activation_cache.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <random>
#include <stdexcept>

#include "storage/cache/hdf5_handle.h"
#include "storage/errors.h"
#include "storage/io/file.h"  // UniqueFd
#include "tests/support/hdf5_leaks.h"
#include "tests/support/small_disk.h"
#include "tests/support/temp_dir.h"

namespace coppice {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Bytes = std::vector<std::byte>;

const ActivationShape kShape{5, 7, 64, "BF16"};

/// Elements of a window. Odd windows are noise (stored raw), even ones compress.
Bytes elements_of(const ActivationShape& shape, int64_t window) {
  std::mt19937_64 random(static_cast<uint64_t>(window) + 1);
  Bytes bytes(shape.chunk_bytes());
  const auto width = static_cast<size_t>(shape.element_bytes());
  for (size_t i = 0; i < bytes.size(); ++i) {
    const bool exponent = i % width == width - 1;
    bytes[i] = static_cast<std::byte>(exponent && window % 2 == 0 ? 0x3C + random() % 4 : random());
  }
  return bytes;
}

EncodedChunk chunk_of(const ActivationShape& shape, int64_t window) {
  return encode_chunk(elements_of(shape, window), shape.element_bytes());
}

FileRecord write_cache(const std::filesystem::path& path, const ActivationShape& shape) {
  ActivationCacheWriter writer(path, shape);
  for (int64_t window = 0; window < shape.windows; ++window) {
    writer.write(window, chunk_of(shape, window));
  }
  return writer.finish();
}

/// The stored bytes of a window, read as the I/O engine would: from the file, not through HDF5.
Bytes stored_bytes(const ActivationCacheReader& reader, int64_t window) {
  const ChunkLocation& chunk = reader.chunk(window);
  const ReadFile file(reader.file().path(), ReadFile::Direct::kNever);
  Bytes bytes(chunk.stored_bytes);
  EXPECT_EQ(pread(file.fd(), bytes.data(), bytes.size(), static_cast<off_t>(chunk.offset)),
            static_cast<ssize_t>(bytes.size()));
  return bytes;
}

Bytes read_window(const ActivationCacheReader& reader, int64_t window) {
  Bytes elements(reader.shape().chunk_bytes());
  reader.decode(window, stored_bytes(reader, window), elements);
  return elements;
}

void put_byte(const std::filesystem::path& path, size_t offset, char byte) {
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  file.seekp(static_cast<std::streamoff>(offset));
  file.put(byte);
}

std::string corruption_in(const std::filesystem::path& path) {
  try {
    const ActivationCacheReader reader(path);
  } catch (const CorruptionError& error) {
    return error.what();
  }
  return "no CorruptionError";
}

std::vector<std::string> names_in(const std::filesystem::path& directory) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    names.push_back(entry.path().filename());
  }
  return names;
}

/// Changes a finished file through HDF5, as a forger or another version would.
template <typename Change>
void tamper(const std::filesystem::path& path, Change change) {
  const Hdf5Handle file(H5Fopen(path.c_str(), H5F_ACC_RDWR, H5P_DEFAULT), H5Fclose);
  ASSERT_GE(file.get(), 0);
  change(file.get());
}

void set_attribute(hid_t owner, const char* name, hid_t type, const void* value) {
  const Hdf5Handle attribute(H5Aopen(owner, name, H5P_DEFAULT), H5Aclose);
  ASSERT_GE(H5Awrite(attribute.get(), type, value), 0);
}

class ActivationCacheOfDtype : public ::testing::TestWithParam<std::string> {};

TEST_P(ActivationCacheOfDtype, EveryWindowComesBackBitForBit) {
  const testing::TempDir dir;
  const ActivationShape shape{5, 7, 64, GetParam()};
  write_cache(dir / "x.h5", shape);
  const ActivationCacheReader reader(dir / "x.h5");
  EXPECT_EQ(reader.shape(), shape);
  for (int64_t window = 0; window < shape.windows; ++window) {
    EXPECT_EQ(read_window(reader, window), elements_of(shape, window)) << window;
    EXPECT_EQ(reader.chunk(window).compressed, window % 2 == 0) << window;
  }
}

std::string python_interpreter() {
  if (const char* chosen = std::getenv("COPPICE_PYTHON")) return chosen;
#ifdef COPPICE_PYTHON
  return COPPICE_PYTHON;
#else
  return {};
#endif
}

TEST_P(ActivationCacheOfDtype, H5pyReadsTheSameElements) {
  const std::string python = python_interpreter();
  if (python.empty() || access(python.c_str(), X_OK) != 0) {
    GTEST_SKIP() << "no Python with h5py and hdf5plugin: set COPPICE_PYTHON";
  }
  if (std::system((python + " -c 'import h5py, hdf5plugin'").c_str()) != 0) {
    GTEST_SKIP() << python << " has no h5py or no hdf5plugin";
  }
  const testing::TempDir dir;
  const ActivationShape shape{4, 33, 2048,
                              GetParam()};  // planes of more than a zstd block, aligned
  write_cache(dir / "x.h5", shape);
  std::ofstream raw(dir / "x.raw", std::ios::binary);
  for (int64_t window = 0; window < shape.windows; ++window) {
    const Bytes elements = elements_of(shape, window);
    raw.write(reinterpret_cast<const char*>(elements.data()),
              static_cast<std::streamsize>(elements.size()));
  }
  raw.close();
  const std::filesystem::path script =
      std::filesystem::path(__FILE__).parent_path() / "read_cache_with_h5py.py";
  const std::string command = python + " '" + script.string() + "' '" + (dir / "x.h5").string() +
                              "' '" + (dir / "x.raw").string() + "'";
  EXPECT_EQ(std::system(command.c_str()), 0);
}

INSTANTIATE_TEST_SUITE_P(ActivationCache, ActivationCacheOfDtype,
                         ::testing::Values("BF16", "F16", "F32"),
                         [](const auto& param_info) { return param_info.param; });

TEST(ActivationCache, WindowsMayComeInAnyOrder) {
  const testing::TempDir dir;
  {
    ActivationCacheWriter writer(dir / "x.h5", kShape);
    for (const int64_t window : {3, 0, 4, 1, 2}) writer.write(window, chunk_of(kShape, window));
    writer.finish();
  }
  const ActivationCacheReader reader(dir / "x.h5");
  for (int64_t window = 0; window < kShape.windows; ++window) {
    EXPECT_EQ(read_window(reader, window), elements_of(kShape, window)) << window;
  }
}

TEST(ActivationCache, ChunksBeginWhereDirectReadsMay) {
  const testing::TempDir dir;
  const ActivationShape shape{3, 64, 1024, "BF16"};
  write_cache(dir / "x.h5", shape);
  const ActivationCacheReader reader(dir / "x.h5");
  for (int64_t window = 0; window < shape.windows; ++window) {
    EXPECT_EQ(reader.chunk(window).offset % 4096, 0U) << window;
  }
}

TEST(ActivationCache, TheRecordDescribesTheFinishedFile) {
  const testing::TempDir dir;
  const FileRecord record = write_cache(dir / "x.h5", kShape);
  EXPECT_EQ(record.name, "x.h5");
  EXPECT_EQ(record.bytes, std::filesystem::file_size(dir / "x.h5"));
  EXPECT_EQ(record, ActivationCacheReader(dir / "x.h5").record());
}

TEST(ActivationCache, TheRecordsHashChangesWithOneElementAndWithTheShape) {
  const testing::TempDir dir;
  const ActivationShape shape{1, 4, 8, "BF16"};
  const auto hash_of = [&](const ActivationShape& described, std::byte last) {
    std::vector<std::byte> elements(64);
    elements[63] = last;
    ActivationCacheWriter writer(dir / "x.h5", described);
    writer.write(0, encode_chunk(elements, 2));
    return writer.finish().xxh3_128;
  };
  const std::string hash = hash_of(shape, std::byte{0});
  EXPECT_EQ(hash.size(), 32u);
  EXPECT_EQ(hash, hash_of(shape, std::byte{0}));
  EXPECT_NE(hash, hash_of(shape, std::byte{1}));
  EXPECT_NE(hash, hash_of({1, 8, 4, "BF16"}, std::byte{0}));
}

TEST(ActivationCache, StoredBytesAreThoseOfTheChunks) {
  const testing::TempDir dir;
  ActivationCacheWriter writer(dir / "x.h5", kShape);
  uint64_t expected = 0;
  for (int64_t window = 0; window < kShape.windows; ++window) {
    const EncodedChunk chunk = chunk_of(kShape, window);
    writer.write(window, chunk);
    expected += chunk.bytes.size();
    EXPECT_EQ(writer.stored_bytes(), expected);
  }
}

TEST(ActivationCache, UntilFinishedThereIsNoFile) {
  const testing::TempDir dir;
  {
    ActivationCacheWriter writer(dir / "x.h5", kShape);
    writer.write(0, chunk_of(kShape, 0));
    EXPECT_FALSE(std::filesystem::exists(dir / "x.h5"));
  }
  EXPECT_THAT(names_in(dir.path()), IsEmpty());
}

TEST(ActivationCache, OnceFinishedThereIsNothingElse) {
  const testing::TempDir dir;
  write_cache(dir / "x.h5", kShape);
  EXPECT_THAT(names_in(dir.path()), ::testing::ElementsAre("x.h5"));
}

TEST(ActivationCache, AMissingWindowIsNamedAndNothingIsPublished) {
  const testing::TempDir dir;
  ActivationCacheWriter writer(dir / "x.h5", kShape);
  for (const int64_t window : {0, 1, 2, 4}) writer.write(window, chunk_of(kShape, window));
  try {
    writer.finish();
    FAIL() << "finished without window 3";
  } catch (const std::logic_error& error) {
    EXPECT_THAT(error.what(), HasSubstr("window 3 of 5"));
  }
  EXPECT_FALSE(std::filesystem::exists(dir / "x.h5"));
}

TEST(ActivationCache, AWindowIsWrittenOnce) {
  const testing::TempDir dir;
  ActivationCacheWriter writer(dir / "x.h5", kShape);
  writer.write(2, chunk_of(kShape, 2));
  EXPECT_THROW(writer.write(2, chunk_of(kShape, 2)), std::logic_error);
}

TEST(ActivationCache, AChunkThatCannotBeAWindowIsRefused) {
  const testing::TempDir dir;
  ActivationCacheWriter writer(dir / "x.h5", kShape);
  EncodedChunk chunk = chunk_of(kShape, 1);
  EXPECT_THROW(writer.write(5, chunk), std::out_of_range);
  EXPECT_THROW(writer.write(-1, chunk), std::out_of_range);
  chunk.bytes.pop_back();
  EXPECT_THROW(writer.write(0, chunk), std::invalid_argument);
  EXPECT_THROW(writer.write(0, EncodedChunk{{}, true, 0}), std::invalid_argument);
}

TEST(ActivationCache, AnImpossibleShapeIsRefused) {
  const testing::TempDir dir;
  for (const ActivationShape& shape :
       {ActivationShape{0, 7, 64, "BF16"}, ActivationShape{5, -7, 64, "BF16"},
        ActivationShape{5, 7, 64, "F64"}, ActivationShape{1, 1 << 20, 1 << 20, "F32"},
        ActivationShape{1, INT64_MAX, INT64_MAX, "F32"}}) {
    EXPECT_THROW(ActivationCacheWriter(dir / "x.h5", shape), std::invalid_argument);
  }
  EXPECT_THAT(names_in(dir.path()), IsEmpty());
}

TEST(ActivationCache, AnAbsentPlaceIsAnIoError) {
  const testing::TempDir dir;
  EXPECT_THROW(ActivationCacheReader(dir / "absent.h5"), IoError);
  try {
    const ActivationCacheWriter writer(dir / "absent" / "x.h5", kShape);
    FAIL() << "created";
  } catch (const IoError& error) {
    EXPECT_EQ(error.error_number(), ENOENT);
    EXPECT_THAT(error.what(), HasSubstr("absent/x.h5"));
  }
}

/// Takes room for the first `bytes` of a file, whose size stays.
void hold(const std::filesystem::path& path, uint64_t bytes) {
  const UniqueFd file(open(path.c_str(), O_WRONLY | O_CLOEXEC));
  fallocate(file.get(), FALLOC_FL_KEEP_SIZE, 0, static_cast<off_t>(bytes));
}

/// The disk has room for the first `pages` of the file and no more: 0 if that was refused and left
/// nothing, kFits if the file is whole, else what is wrong.
constexpr int kFits = 50;
int finish_with_room_for(uint64_t pages, const std::filesystem::path& directory) {
  const ActivationShape shape{300, 1, 2, "F32"};  // an index of 9600 bytes
  try {
    ActivationCacheWriter writer(directory / "x.h5", shape);
    for (int64_t window = 0; window < shape.windows; ++window) {
      writer.write(window, chunk_of(shape, window));
    }
    if (pages > 0) hold(directory / "x.h5.tmp", pages * testing::kDiskPage);
    testing::fill(directory);
    writer.finish();
  } catch (const IoError& error) {
    if (error.error_number() != ENOSPC) return 1;
    return names_in(directory) == std::vector<std::string>{"filler"} ? 0 : 2;
  }
  return corruption_in(directory / "x.h5") == "no CorruptionError" ? kFits : 3;
}

// HDF5 can keep a small table in memory until it closes it, and then not say so loudly.
TEST(ActivationCache, WhereverTheDiskEndsTheFileIsWholeOrRefused) {
  const testing::TempDir dir;
  int status = 0;
  for (uint64_t pages = 0; status != kFits; ++pages) {
    status = testing::exit_status_on_a_small_disk(
        dir.path(), [&] { return finish_with_room_for(pages, dir.path()); });
    if (status == testing::kNotAllowed) GTEST_SKIP() << "mounting a file system is not allowed";
    ASSERT_THAT(status, AnyOf(0, kFits)) << pages << " pages";
  }
}

TEST(ActivationCache, AFlippedBitAnywhereIsNeverUsed) {
  const testing::Hdf5LeaksAllowed refusals_leak;
  const testing::TempDir dir;
  const ActivationShape shape{2, 3, 16, "BF16"};
  write_cache(dir / "x.h5", shape);
  const std::string good = read_file(dir / "x.h5");
  size_t refused = 0;
  for (size_t i = 0; i < good.size(); ++i) {
    put_byte(dir / "x.h5", i, static_cast<char>(good[i] ^ (1 << (i % 8))));
    try {
      const ActivationCacheReader reader(dir / "x.h5");
      EXPECT_EQ(reader.shape(), shape) << "byte " << i;  // a byte that nobody reads
      for (int64_t window = 0; window < shape.windows; ++window) {
        EXPECT_EQ(read_window(reader, window), elements_of(shape, window)) << "byte " << i;
      }
    } catch (const CorruptionError&) {
      ++refused;
    }
    put_byte(dir / "x.h5", i, good[i]);
  }
  EXPECT_EQ(H5Fget_obj_count(static_cast<hid_t>(H5F_OBJ_ALL), H5F_OBJ_ALL), 0);
  EXPECT_GT(refused, 2 * shape.chunk_bytes() / 2);
}

TEST(ActivationCache, CutAnywhereItIsRefused) {
  const testing::TempDir dir;
  write_cache(dir / "x.h5", ActivationShape{2, 3, 16, "BF16"});
  const std::string good = read_file(dir / "x.h5");
  for (size_t bytes = good.size(); bytes-- > 0;) {
    std::filesystem::resize_file(dir / "x.h5", bytes);
    EXPECT_THROW(ActivationCacheReader(dir / "x.h5"), CorruptionError) << bytes;
  }
}

TEST(ActivationCache, DamageInAChunkNamesFileAndOffset) {
  const testing::TempDir dir;
  write_cache(dir / "x.h5", kShape);
  const ActivationCacheReader reader(dir / "x.h5");
  Bytes stored = stored_bytes(reader, 2);
  stored[10] ^= std::byte{1};
  Bytes elements(kShape.chunk_bytes());
  try {
    reader.decode(2, stored, elements);
    FAIL() << "decoded";
  } catch (const CorruptionError& error) {
    EXPECT_THAT(error.what(), HasSubstr("x.h5"));
    EXPECT_THAT(error.what(), HasSubstr("window 2"));
    EXPECT_THAT(error.what(), HasSubstr("byte " + std::to_string(reader.chunk(2).offset)));
  }
}

TEST(ActivationCache, BytesOfAnotherWindowAreRefused) {
  const testing::TempDir dir;
  write_cache(dir / "x.h5", kShape);
  const ActivationCacheReader reader(dir / "x.h5");
  Bytes elements(kShape.chunk_bytes());
  EXPECT_THROW(reader.decode(3, stored_bytes(reader, 1), elements), CorruptionError);
}

TEST(ActivationCache, BuffersOfAnotherSizeAreTheCallersError) {
  const testing::TempDir dir;
  write_cache(dir / "x.h5", kShape);
  const ActivationCacheReader reader(dir / "x.h5");
  Bytes stored = stored_bytes(reader, 1);
  Bytes elements(kShape.chunk_bytes() - 2);
  EXPECT_THROW(reader.decode(1, stored, elements), std::invalid_argument);
  elements.resize(kShape.chunk_bytes());
  stored.pop_back();
  EXPECT_THROW(reader.decode(1, stored, elements), std::invalid_argument);
  EXPECT_THROW(reader.chunk(5), std::out_of_range);
}

TEST(ActivationCache, WhatIsNoCacheIsRefused) {
  const testing::TempDir dir;
  write_file(dir / "text.h5", "not HDF5 at all");
  Hdf5StagedFile(dir / "empty.h5").publish();
  EXPECT_THAT(corruption_in(dir / "text.h5"), HasSubstr("signature"));
  EXPECT_THAT(corruption_in(dir / "empty.h5"), HasSubstr("hidden"));
}

TEST(ActivationCache, AnotherMagicVersionOrShapeIsRefusedByItsValue) {
  const testing::TempDir dir;
  const uint32_t version = 2;
  const int64_t shape[3] = {5, 8, 64};
  write_cache(dir / "version.h5", kShape);
  write_cache(dir / "shape.h5", kShape);
  write_cache(dir / "magic.h5", kShape);
  tamper(dir / "version.h5",
         [&](hid_t file) { set_attribute(file, "version", H5T_NATIVE_UINT32, &version); });
  tamper(dir / "shape.h5",
         [&](hid_t file) { set_attribute(file, "shape", H5T_NATIVE_INT64, shape); });
  tamper(dir / "magic.h5", [&](hid_t file) {
    const Hdf5Handle type(H5Tcopy(H5T_C_S1), H5Tclose);
    H5Tset_size(type.get(), 20);
    set_attribute(file, "magic", type.get(), "coppice.somethings\0\0");
  });
  EXPECT_THAT(corruption_in(dir / "version.h5"), HasSubstr("expected format version 1, found 2"));
  EXPECT_THAT(corruption_in(dir / "shape.h5"), HasSubstr("[5, 8, 64]"));
  EXPECT_THAT(corruption_in(dir / "magic.h5"), HasSubstr("coppice.somethings"));
}

TEST(ActivationCache, AnIndexThatWasNotWrittenByUsIsRefused) {
  const testing::TempDir dir;
  write_cache(dir / "x.h5", kShape);
  tamper(dir / "x.h5", [](hid_t file) {
    const Hdf5Handle index(H5Dopen2(file, "/index", H5P_DEFAULT), H5Dclose);
    const Hdf5Handle type(H5Dget_type(index.get()), H5Tclose);
    std::vector<uint64_t> rows(5 * 4);
    ASSERT_GE(H5Dread(index.get(), type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, rows.data()), 0);
    std::swap(rows[0], rows[4]);  // the offsets of windows 0 and 1
    ASSERT_GE(H5Dwrite(index.get(), type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, rows.data()), 0);
  });
  EXPECT_THAT(corruption_in(dir / "x.h5"), HasSubstr("over /index"));
}

TEST(ActivationCache, ReadersLeaveNoHdf5ObjectOpen) {
  const testing::TempDir dir;
  write_cache(dir / "x.h5", kShape);
  const ActivationCacheReader reader(dir / "x.h5");
  write_file(dir / "text.h5", "not HDF5 at all");
  EXPECT_THROW(ActivationCacheReader(dir / "text.h5"), CorruptionError);
  EXPECT_EQ(H5Fget_obj_count(static_cast<hid_t>(H5F_OBJ_ALL), H5F_OBJ_ALL), 0);
}

}  // namespace
}  // namespace coppice
