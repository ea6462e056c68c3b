// Headers that lie, one row each, and headers written by ourselves.
#include "storage/checkpoint/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "storage/errors.h"
#include "storage/io/file.h"
#include "tests/support/temp_dir.h"

namespace coppice {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::TempDir;

/// Parses a header in front of `data_bytes` of data.
SafetensorsHeader parse(std::string_view json, uint64_t data_bytes) {
  return parse_safetensors_header("shard", json, 8 + json.size() + data_bytes);
}

std::string complaint(std::string_view json, uint64_t data_bytes) {
  try {
    parse(json, data_bytes);
  } catch (const CorruptionError& error) {
    return error.what();
  }
  return "";
}

/// A file that announces `length` header bytes and then holds `rest`.
std::string complaint_about_file(uint64_t length, std::string_view rest) {
  const TempDir directory;
  std::string bytes(sizeof length, '\0');
  std::memcpy(bytes.data(), &length, sizeof length);
  write_file(directory / "shard", bytes.append(rest));
  try {
    read_safetensors_header(directory / "shard");
  } catch (const CorruptionError& error) {
    return error.what();
  }
  return "";
}

TEST(Safetensors, TensorsComeInTheOrderOfTheirBytes) {
  const std::string json =
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[6,30]},)"
      R"("z":{"dtype":"BF16","shape":[3],"data_offsets":[0,6]}})";
  const SafetensorsHeader header = parse(json, 30);
  ASSERT_EQ(header.tensors.size(), 2u);
  EXPECT_EQ(header.data_offset, 8 + json.size());
  EXPECT_THAT(header.metadata, ElementsAre(std::pair("format", "pt")));
  const TensorInfo& first = header.tensors[0];
  EXPECT_EQ(first.name, "z");
  EXPECT_EQ(first.offset, header.data_offset);
  EXPECT_EQ(first.bytes, 6u);
  const TensorInfo& second = header.tensors[1];
  EXPECT_EQ(second.name, "a");
  EXPECT_EQ(second.dtype, "F32");
  EXPECT_THAT(second.shape, ElementsAre(2, 3));
  EXPECT_EQ(second.num_elements(), 6);
  EXPECT_EQ(second.offset, header.data_offset + 6);
}

TEST(Safetensors, ScalarsEmptyTensorsAndEmptyFilesAreFine) {
  EXPECT_EQ(parse("{}", 0).tensors.size(), 0u);
  const SafetensorsHeader header =
      parse(R"({"empty":{"dtype":"F32","shape":[0,5],"data_offsets":[0,0]},)"
            R"("scalar":{"dtype":"I64","shape":[],"data_offsets":[0,8]}}   )",
            8);
  EXPECT_EQ(header.tensors[0].num_elements(), 0);
  EXPECT_EQ(header.tensors[1].num_elements(), 1);
}

TEST(Safetensors, KnownDtypesHaveTheirSizes) {
  const std::map<std::string, uint64_t> sizes{
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1},
      {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},
      {"U32", 4},  {"F32", 4}, {"F64", 8}, {"I64", 8},     {"U64", 8}};
  for (const auto& [dtype, bytes] : sizes) EXPECT_EQ(element_bytes(dtype), bytes) << dtype;
  EXPECT_EQ(element_bytes("F4"), 0u);
  EXPECT_EQ(element_bytes(""), 0u);
}

TEST(Safetensors, AnUnknownDtypeKeepsTheBytesOfItsHeader) {
  const SafetensorsHeader header =
      parse(R"({"a":{"dtype":"F4","shape":[10],"data_offsets":[0,5]}})", 5);
  EXPECT_EQ(header.tensors[0].dtype, "F4");
  EXPECT_EQ(header.tensors[0].bytes, 5u);
}

TEST(Safetensors, HeaderLengthsThatLieAreRefused) {
  EXPECT_THAT(complaint_about_file(uint64_t{1} << 63, "{}"), HasSubstr("9223372036854775808"));
  EXPECT_THAT(complaint_about_file(~uint64_t{0}, "{}"), HasSubstr("18446744073709551615"));
  EXPECT_THAT(complaint_about_file(3, "{}"), AllOf(HasSubstr("at most 2"), HasSubstr("found 3")));
  EXPECT_EQ(complaint_about_file(2, "{}"), "");
}

TEST(Safetensors, HeadersAbove100MegabytesAreRefused) {
  const TempDir directory;
  const uint64_t length = 100'000'001;
  std::string prefix(sizeof length, '\0');
  std::memcpy(prefix.data(), &length, sizeof length);
  write_file(directory / "shard", prefix);
  std::filesystem::resize_file(directory / "shard", 200'000'000);  // sparse
  EXPECT_THROW(read_safetensors_header(directory / "shard"), CorruptionError);
}

TEST(Safetensors, AFileTooShortForItsPrefixIsTruncated) {
  const TempDir directory;
  write_file(directory / "shard", "1234567");
  EXPECT_THROW(read_safetensors_header(directory / "shard"), CorruptionError);
  write_file(directory / "shard", "");
  EXPECT_THROW(read_safetensors_header(directory / "shard"), CorruptionError);
}

TEST(Safetensors, AnAbsentFileIsAnIoError) {
  const TempDir directory;
  EXPECT_THROW(read_safetensors_header(directory / "absent"), IoError);
}

TEST(Safetensors, AHeaderLargerThanItsFileIsRefused) {
  EXPECT_THROW(parse_safetensors_header("shard", "{}", 9), CorruptionError);
  EXPECT_THROW(parse_safetensors_header("shard", "{}", 0), CorruptionError);
}

struct Hostile {
  const char* name;
  std::string json;
  uint64_t data_bytes;
  const char* says;
};

std::string one(const std::string& entry) { return R"({"w":)" + entry + "}"; }
std::string f32(const std::string& shape, const std::string& offsets) {
  return R"({"dtype":"F32","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
}

class HostileHeader : public ::testing::TestWithParam<Hostile> {};

TEST_P(HostileHeader, IsACorruptionErrorThatSaysWhy) {
  EXPECT_THAT(complaint(GetParam().json, GetParam().data_bytes),
              AllOf(HasSubstr("shard"), HasSubstr(GetParam().says)));
}

const std::vector<Hostile> kHostileHeaders{
    {"NotJson", "{\"w\":", 0, "valid JSON"},
    {"Empty", "", 0, "valid JSON"},
    {"NotAnObject", "[1]", 0, "array"},
    {"TooDeep", std::string(100'000, '['), 0, "deeper nesting"},
    {"NameTwice", R"({"w":)" + f32("[1]", "[0,4]") + R"(,"w":)" + f32("[1]", "[4,8]") + "}", 8,
     "'w' twice"},
    {"EntryNoObject", one("7"), 0, "'w' as an object"},
    {"NoDtype", one(R"({"shape":[1],"data_offsets":[0,4]})"), 4, "key 'dtype'"},
    {"NoShape", one(R"({"dtype":"F32","data_offsets":[0,4]})"), 4, "key 'shape'"},
    {"NoOffsets", one(R"({"dtype":"F32","shape":[1]})"), 4, "key 'data_offsets'"},
    {"DtypeNoString", one(R"({"dtype":4,"shape":[1],"data_offsets":[0,4]})"), 4, "string 'dtype'"},
    {"ShapeNoArray", one(f32("1", "[0,4]")), 4, "array 'shape'"},
    {"NegativeShape", one(f32("[-1]", "[0,4]")), 4, "found -1"},
    {"FractionalShape", one(f32("[1.5]", "[0,4]")), 4, "found 1.5"},
    {"ShapeAbove2To63", one(f32("[9223372036854775808]", "[0,4]")), 4, "9223372036854775808"},
    {"ShapeAbove2To64", one(f32("[99999999999999999999]", "[0,4]")), 4, "natural numbers"},
    {"ShapeProductOverflows", one(f32("[4294967296,4294967296]", "[0,0]")), 0, "2^63 elements"},
    {"BytesOverflow", one(f32("[4611686018427387904]", "[0,0]")), 0, "over 2^64"},
    {"OneOffset", one(f32("[1]", "[4]")), 4, "two data_offsets"},
    {"NegativeOffset", one(f32("[1]", "[-4,0]")), 4, "found -4"},
    {"OffsetIsText", one(f32("[1]", R"(["0",4])")), 4, "natural numbers"},
    {"BeginAfterEnd", one(f32("[1]", "[4,0]")), 4, "begin before it ends"},
    {"EndOutsideTheFile", one(f32("[2]", "[0,8]")), 7, "inside the file of"},
    {"HugeEnd", one(f32("[1]", "[9223372036854775803,9223372036854775807]")), 4, "inside the file"},
    {"SizeIsNotShape", one(f32("[2]", "[0,4]")), 4, "have 8 bytes, found 4 bytes"},
    {"Overlap", R"({"a":)" + f32("[2]", "[0,8]") + R"(,"w":)" + f32("[2]", "[4,12]") + "}", 12,
     "an overlap"},
    {"Hole", R"({"a":)" + f32("[1]", "[0,4]") + R"(,"w":)" + f32("[1]", "[5,9]") + "}", 9,
     "a hole"},
    {"HoleAtTheStart", one(f32("[1]", "[1,5]")), 5, "a hole"},
    {"BytesOfNoTensor", one(f32("[1]", "[0,4]")), 6, "2 bytes that belong to no tensor"},
    {"MetadataNoObject", R"({"__metadata__":[]})", 0, "__metadata__"},
    {"MetadataNoStrings", R"({"__metadata__":{"a":1}})", 0, "__metadata__"},
};

INSTANTIATE_TEST_SUITE_P(Safetensors, HostileHeader, ::testing::ValuesIn(kHostileHeaders),
                         [](const auto& hostile) { return hostile.param.name; });

TEST(Safetensors, AWrittenHeaderReadsBackAsItWasMeant) {
  const std::vector<TensorSpec> specs{
      {"b \"quoted\"", "BF16", {3, 5}}, {"a", "F32", {}}, {"none", "U8", {0}}};
  const std::string bytes = make_safetensors_header(specs);
  EXPECT_EQ(bytes.size() % 8, 0u);
  const SafetensorsHeader header =
      parse_safetensors_header("shard", std::string_view(bytes).substr(8), bytes.size() + 34);
  EXPECT_EQ(header.data_offset, bytes.size());
  EXPECT_THAT(header.metadata, ElementsAre(std::pair("format", "pt")));
  ASSERT_EQ(header.tensors.size(), 3u);
  EXPECT_EQ(header.tensors[0].name, "b \"quoted\"");
  EXPECT_THAT(header.tensors[0].shape, ElementsAre(3, 5));
  EXPECT_EQ(header.tensors[1].name, "a");
  EXPECT_EQ(header.tensors[1].offset, bytes.size() + 30);
  EXPECT_EQ(header.tensors[2].name, "none");
}

TEST(Safetensors, AWrittenHeaderIsThisText) {
  EXPECT_EQ(make_copy_header({{"b \"é\n\"", "F4", {6, 0}, 7, 3}, {"a", "F32", {}, 0, 4}}).substr(8),
            R"({"__metadata__":{"format":"pt"},)"
            R"("b \"é\n\"":{"dtype":"F4","shape":[6,0],"data_offsets":[0,3]},)"
            R"("a":{"dtype":"F32","shape":[],"data_offsets":[3,7]}})"
            "     ");
  EXPECT_EQ(make_copy_header({}).substr(8), R"({"__metadata__":{"format":"pt"}})");
}

// Experts of their own tensors make checkpoints of hundreds of thousands: what looks every name up
// among all before it takes minutes.
TEST(Safetensors, AHeaderOfManyTensorsIsWrittenInASecondOrTwo) {
  std::vector<TensorInfo> tensors(150'000);
  for (size_t i = 0; i < tensors.size(); ++i) tensors[i] = {std::to_string(i), "U8", {1}, 0, 1};
  const auto begin = std::chrono::steady_clock::now();
  const std::string header = make_copy_header(tensors);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(8));
  EXPECT_THAT(header,
              HasSubstr(R"("149999":{"dtype":"U8","shape":[1],"data_offsets":[149999,150000]}})"));
}

TEST(Safetensors, TheLengthPrefixIsLittleEndian) {
  const std::string bytes = make_safetensors_header({});
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | static_cast<unsigned char>(bytes[i]);
  EXPECT_EQ(length, bytes.size() - 8);
}

TEST(Safetensors, SpecsThatCannotBeWrittenAreRefused) {
  EXPECT_THROW((TensorSpec{"w", "F4", {2}}.bytes()), std::invalid_argument);
  EXPECT_THROW((TensorSpec{"w", "F32", {-2}}.bytes()), std::invalid_argument);
  EXPECT_THROW((TensorSpec{"w", "F32", {int64_t{1} << 40, int64_t{1} << 40}}.bytes()),
               std::invalid_argument);
  const TensorSpec tensor{"w", "F32", {2}};
  EXPECT_THROW(make_safetensors_header({tensor, tensor}), std::invalid_argument);
  EXPECT_THROW(make_safetensors_header({{"__metadata__", "F32", {2}}}), std::invalid_argument);
}

}  // namespace
}  // namespace coppice
