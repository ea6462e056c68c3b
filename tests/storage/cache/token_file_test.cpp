// Token ids survive, and what is no table of token ids is refused.
#include "storage/cache/token_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <numeric>

#include "storage/cache/hdf5_handle.h"
#include "storage/errors.h"
#include "storage/io/file.h"
#include "tests/support/hdf5_leaks.h"
#include "tests/support/small_disk.h"
#include "tests/support/temp_dir.h"

namespace coppice {
namespace {

using ::testing::AnyOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

/// A file as another tool would write it.
template <typename Id>
void write_foreign(const std::filesystem::path& path, const std::string& name, hid_t type,
                   const std::vector<hsize_t>& dims, const std::vector<Id>& ids) {
  Hdf5StagedFile file(path);
  const Hdf5Calls& hdf5 = file.calls();
  const Hdf5Handle space = hdf5.make_space(dims);
  Hdf5Handle dataset = hdf5.own(
      H5Dcreate2(file.id(), name.c_str(), type, space.get(), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT),
      H5Dclose, name);
  hdf5.check(H5Dwrite(dataset.get(), type, H5S_ALL, H5S_ALL, H5P_DEFAULT, ids.data()), name);
  dataset.close();
  file.publish();
}

void put_byte(const std::filesystem::path& path, size_t offset, char byte) {
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  file.seekp(static_cast<std::streamoff>(offset));
  file.put(byte);
}

TokenFile whole_file(const std::filesystem::path& path) {
  TokenShape shape = read_token_shape(path);
  const TokenRange all{0, shape.num_ids};
  return {read_token_ranges(path, {&all, 1}), shape.seqlen, std::move(shape.lengths)};
}

std::string corruption_in(const std::filesystem::path& path) {
  try {
    whole_file(path);
  } catch (const CorruptionError& error) {
    return error.what();
  }
  return "no CorruptionError";
}

TEST(TokenFile, SequencesComeBackWithTheirLengths) {
  const testing::TempDir dir;
  write_token_file(dir / "tokens.h5", {{5, 6, 7, 8, 9, 10}, 0, {2, 1, 3}});
  const TokenFile found = whole_file(dir / "tokens.h5");
  EXPECT_THAT(found.ids, ElementsAre(5, 6, 7, 8, 9, 10));
  EXPECT_THAT(found.lengths, ElementsAre(2, 1, 3));
}

TEST(TokenFile, LengthsThatAreNotThoseOfTheIdsAreRefused) {
  const testing::TempDir dir;
  const auto with_lengths = [&](const std::vector<int32_t>& lengths, std::vector<hsize_t> dims) {
    Hdf5StagedFile file(dir / "tokens.h5");
    const Hdf5Calls& hdf5 = file.calls();
    const std::vector<int32_t> ids = {5, 6, 7, 8};
    const auto put = [&](const char* name, const std::vector<hsize_t>& shape, const auto& values) {
      const Hdf5Handle space = hdf5.make_space(shape);
      Hdf5Handle dataset = hdf5.own(H5Dcreate2(file.id(), name, H5T_STD_I32LE, space.get(),
                                               H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT),
                                    H5Dclose, name);
      hdf5.check(
          H5Dwrite(dataset.get(), H5T_NATIVE_INT32, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()),
          name);
      dataset.close();
    };
    put("input_ids", {4}, ids);
    put("lengths", dims, lengths);
    file.publish();
    return corruption_in(dir / "tokens.h5");
  };
  EXPECT_THAT(with_lengths({1, 2}, {2}), HasSubstr("sum to the 4 ids"));
  EXPECT_THAT(with_lengths({1, 2}, {2}), HasSubstr("found a sum of 3"));
  EXPECT_THAT(with_lengths({4, 0}, {2}), HasSubstr("found 0 as length 1"));
  EXPECT_THAT(with_lengths({1, 3}, {1, 2}), HasSubstr("/lengths of [sequences]"));
  EXPECT_EQ(with_lengths({1, 3}, {2}), "no CorruptionError");
  EXPECT_THROW(write_token_file(dir / "short.h5", {{5, 6}, 0, {1}}), std::invalid_argument);
  EXPECT_THROW(write_token_file(dir / "rows.h5", {{5, 6}, 2, {2}}), std::invalid_argument);
}

TEST(TokenFile, AStreamComesBack) {
  const testing::TempDir dir;
  TokenFile tokens;
  tokens.ids.resize(3'000'000);  // several steps of reading
  std::iota(tokens.ids.begin(), tokens.ids.end(), -5);
  write_token_file(dir / "tokens.h5", tokens);
  const TokenFile found = whole_file(dir / "tokens.h5");
  EXPECT_EQ(found.ids, tokens.ids);
  EXPECT_EQ(found.seqlen, 0);
}

TEST(TokenFile, WindowsComeBackWithTheirLength) {
  const testing::TempDir dir;
  TokenFile tokens{{}, 2049};  // rows that divide no power of two
  tokens.ids.resize(2049 * 1030);
  std::iota(tokens.ids.begin(), tokens.ids.end(), 0);
  write_token_file(dir / "tokens.h5", tokens);
  const TokenFile found = whole_file(dir / "tokens.h5");
  EXPECT_EQ(found.ids, tokens.ids);
  EXPECT_EQ(found.seqlen, 2049);
}

TEST(TokenFile, RangesComeInTheirOrderWhereverTheyLie) {
  const testing::TempDir dir;
  TokenFile tokens;
  tokens.ids.resize(2'000'000);  // several steps of reading
  std::iota(tokens.ids.begin(), tokens.ids.end(), 0);
  const std::vector<TokenRange> ranges = {{1'999'999, 1}, {7, 1'100'000}, {0, 3},      {2, 0},
                                          {1'048'575, 2}, {7, 2},         {500'000, 1}};
  std::vector<int32_t> expected;
  for (const TokenRange& range : ranges) {
    const auto first = tokens.ids.begin() + range.first;
    expected.insert(expected.end(), first, first + range.count);
  }
  for (const int64_t seqlen : {0, 4, 2'000'000}) {  // a stream, rows, one long row
    tokens.seqlen = seqlen;
    write_token_file(dir / "tokens.h5", tokens);
    EXPECT_TRUE(read_token_ranges(dir / "tokens.h5", ranges) == expected) << seqlen;
  }
  EXPECT_THAT(read_token_ranges(dir / "tokens.h5", {}), ElementsAre());
}

TEST(TokenFile, EveryIdIsToldOnceInAFewMiBWhateverIsAskedFor) {
  const testing::TempDir dir;
  TokenFile tokens;
  tokens.ids.resize(2'000'000);
  std::iota(tokens.ids.begin(), tokens.ids.end(), 0);
  for (const int64_t seqlen : {0, 4, 2'000'000}) {
    tokens.seqlen = seqlen;
    write_token_file(dir / "tokens.h5", tokens);
    std::vector<int32_t> told;
    size_t longest = 0;
    read_token_ranges(dir / "tokens.h5", {}, [&](int64_t first, std::span<const int32_t> ids) {
      EXPECT_EQ(size_t(first), told.size());
      told.insert(told.end(), ids.begin(), ids.end());
      longest = std::max(longest, ids.size());
    });
    EXPECT_TRUE(told == tokens.ids) << seqlen;
    EXPECT_LE(longest, size_t{1} << 20) << seqlen;
  }
}

TEST(TokenFile, ARangeBeyondTheIdsIsTheCallersError) {
  const testing::TempDir dir;
  write_token_file(dir / "tokens.h5", {{1, 2, 3}, 0});
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  for (const TokenRange range :
       {TokenRange{0, 4}, {3, 1}, {-1, 1}, {1, -1}, {1, kMax}, {kMax, 1}}) {
    EXPECT_THROW(read_token_ranges(dir / "tokens.h5", {&range, 1}), std::out_of_range)
        << range.first << " " << range.count;
  }
}

TEST(TokenFile, AFlippedBitOutsideOfTheRangesIsFound) {
  const testing::TempDir dir;
  write_token_file(dir / "x.h5", {{11, 22, 0x01020304, 44}, 0});
  const TokenRange first{0, 1};
  EXPECT_THAT(read_token_ranges(dir / "x.h5", {&first, 1}), ElementsAre(11));
  put_byte(dir / "x.h5", read_file(dir / "x.h5").find("\4\3\2\1"), 5);
  EXPECT_THROW(read_token_ranges(dir / "x.h5", {&first, 1}), CorruptionError);
}

TEST(TokenFile, NoTokensAreATokenFile) {
  const testing::TempDir dir;
  write_token_file(dir / "tokens.h5", {});
  EXPECT_THAT(whole_file(dir / "tokens.h5").ids, ElementsAre());
}

TEST(TokenFile, TheExtremesOfInt32Fit) {
  const testing::TempDir dir;
  const TokenFile tokens{
      {std::numeric_limits<int32_t>::min(), 0, std::numeric_limits<int32_t>::max()}, 0};
  write_token_file(dir / "tokens.h5", tokens);
  EXPECT_EQ(whole_file(dir / "tokens.h5").ids, tokens.ids);
}

TEST(TokenFile, EveryIntegerTypeIsConverted) {
  const testing::TempDir dir;
  write_foreign<int64_t>(dir / "i64.h5", "/input_ids", H5T_NATIVE_INT64, {2, 2}, {1, 2, 3, 4});
  write_foreign<uint16_t>(dir / "u16.h5", "/input_ids", H5T_NATIVE_UINT16, {2}, {65535, 7});
  write_foreign<uint8_t>(dir / "big.h5", "/input_ids", H5T_STD_U16BE, {1}, {1, 2});
  EXPECT_THAT(whole_file(dir / "i64.h5").ids, ElementsAre(1, 2, 3, 4));
  EXPECT_EQ(whole_file(dir / "i64.h5").seqlen, 2);
  EXPECT_THAT(whole_file(dir / "u16.h5").ids, ElementsAre(65535, 7));
  EXPECT_THAT(whole_file(dir / "big.h5").ids, ElementsAre(0x0102));
}

TEST(TokenFile, AnIdBeyondInt32IsNamedWithItsPlace) {
  const testing::TempDir dir;
  write_foreign<int64_t>(dir / "above.h5", "/input_ids", H5T_NATIVE_INT64, {3},
                         {1, 2, int64_t{1} << 31});
  write_foreign<int64_t>(dir / "below.h5", "/input_ids", H5T_NATIVE_INT64, {1},
                         {-(int64_t{1} << 31) - 1});
  write_foreign<uint64_t>(dir / "huge.h5", "/input_ids", H5T_NATIVE_UINT64, {1}, {~uint64_t{0}});
  EXPECT_THAT(corruption_in(dir / "above.h5"), HasSubstr("found 2147483648 as number 2"));
  EXPECT_THAT(corruption_in(dir / "below.h5"), HasSubstr("found -2147483649 as number 0"));
  EXPECT_THAT(corruption_in(dir / "huge.h5"), HasSubstr("as number 0"));
}

TEST(TokenFile, WhatIsNoTableOfIntegersIsRefused) {
  const testing::TempDir dir;
  write_foreign<float>(dir / "float.h5", "/input_ids", H5T_NATIVE_FLOAT, {1}, {1.0F});
  write_foreign<int32_t>(dir / "cube.h5", "/input_ids", H5T_NATIVE_INT32, {1, 1, 1}, {1});
  write_foreign<int32_t>(dir / "scalar.h5", "/input_ids", H5T_NATIVE_INT32, {}, {1});
  write_foreign<int32_t>(dir / "other.h5", "/tokens", H5T_NATIVE_INT32, {1}, {1});
  write_file(dir / "text.h5", "not HDF5 at all");
  EXPECT_THAT(corruption_in(dir / "float.h5"), HasSubstr("int32"));
  EXPECT_THAT(corruption_in(dir / "cube.h5"), HasSubstr("3 dimensions"));
  EXPECT_THAT(corruption_in(dir / "scalar.h5"), HasSubstr("0 dimensions"));
  EXPECT_THAT(corruption_in(dir / "other.h5"), HasSubstr("input_ids"));
  EXPECT_THAT(corruption_in(dir / "text.h5"), HasSubstr("signature"));
}

TEST(TokenFile, AnAnnouncedTableWithoutDataIsRefused) {
  const testing::TempDir dir;
  {
    Hdf5StagedFile file(dir / "hollow.h5");
    const Hdf5Calls& hdf5 = file.calls();
    const Hdf5Handle space = hdf5.make_space({hsize_t{1} << 50});
    hdf5.own(H5Dcreate2(file.id(), "/input_ids", H5T_NATIVE_INT32, space.get(), H5P_DEFAULT,
                        H5P_DEFAULT, H5P_DEFAULT),
             H5Dclose, "hollow");
    file.publish();
  }
  EXPECT_THAT(corruption_in(dir / "hollow.h5"), HasSubstr("without data"));
}

TEST(TokenFile, AnAbsentFileIsAnIoError) {
  const testing::TempDir dir;
  EXPECT_THROW(whole_file(dir / "absent.h5"), IoError);
  EXPECT_THROW(write_token_file(dir / "absent" / "tokens.h5", {}), IoError);
}

/// The disk has so many pages left: 0 if that was refused and left nothing, kFits if the file is
/// whole, else what is wrong.
constexpr int kFits = 50;
int write_with_room_for(uint64_t pages, const std::filesystem::path& directory) {
  TokenFile tokens{std::vector<int32_t>(4000), 0, {1000, 3000}};
  std::iota(tokens.ids.begin(), tokens.ids.end(), 0);
  testing::fill(directory, pages);
  try {
    write_token_file(directory / "x.h5", tokens);
  } catch (const IoError& error) {
    if (error.error_number() != ENOSPC) return 1;
    return std::filesystem::exists(directory / "x.h5") ? 2 : 0;
  }
  return corruption_in(directory / "x.h5") == "no CorruptionError" ? kFits : 3;
}

// HDF5 can keep a small table in memory until it closes it, and then not say so loudly.
TEST(TokenFile, WhereverTheDiskEndsTheFileIsWholeOrRefused) {
  const testing::TempDir dir;
  int status = 0;
  for (uint64_t pages = 0; status != kFits; ++pages) {
    status = testing::exit_status_on_a_small_disk(
        dir.path(), [&] { return write_with_room_for(pages, dir.path()); });
    if (status == testing::kNotAllowed) GTEST_SKIP() << "mounting a file system is not allowed";
    ASSERT_THAT(status, AnyOf(0, kFits)) << pages << " pages";
  }
}

TEST(TokenFile, AFlippedBitIsNeverUsed) {
  const testing::Hdf5LeaksAllowed refusals_leak;
  const testing::TempDir dir;
  const TokenFile tokens{{11, 22, 33, 44, 55, 66}, 3};
  write_token_file(dir / "x.h5", tokens);
  const std::string good = read_file(dir / "x.h5");
  size_t refused = 0;
  for (size_t i = 0; i < good.size(); ++i) {
    put_byte(dir / "x.h5", i, static_cast<char>(good[i] ^ (1 << (i % 8))));
    try {
      const TokenFile found = whole_file(dir / "x.h5");
      EXPECT_EQ(found.ids, tokens.ids) << "byte " << i;  // a byte that nobody reads
      EXPECT_EQ(found.seqlen, tokens.seqlen) << "byte " << i;
    } catch (const std::runtime_error&) {
      ++refused;
    }
    put_byte(dir / "x.h5", i, good[i]);
  }
  EXPECT_EQ(H5Fget_obj_count(static_cast<hid_t>(H5F_OBJ_ALL), H5F_OBJ_ALL), 0);
  EXPECT_GT(refused, tokens.ids.size() * sizeof(int32_t));
}

TEST(TokenFile, RowsMustBeWhole) {
  const testing::TempDir dir;
  EXPECT_THROW(write_token_file(dir / "tokens.h5", {{1, 2, 3}, 2}), std::invalid_argument);
  EXPECT_THROW(write_token_file(dir / "tokens.h5", {{1, 2, 3}, -1}), std::invalid_argument);
}

TEST(TokenFile, NothingIsLeftBesideTheFile) {
  const testing::TempDir dir;
  write_token_file(dir / "tokens.h5", {{1}, 0});
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(dir.path())) {
    names.push_back(entry.path().filename());
  }
  EXPECT_THAT(names, ElementsAre("tokens.h5"));
}

}  // namespace
}  // namespace coppice
