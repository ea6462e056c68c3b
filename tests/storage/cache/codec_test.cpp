// Chunks come back bit for bit, shrink where they can, and never lie.
#include "storage/cache/codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <xxhash.h>
#include <zstd.h>

#include <cmath>
#include <cstring>
#include <random>
#include <stdexcept>
#include <thread>

namespace coppice {
namespace {

using Bytes = std::vector<std::byte>;

/// Normally distributed elements with a scale per column, as hidden states have: the upper
/// `element_bytes` of each float32, that is bfloat16 or float32.
Bytes activations(size_t num_elements, int element_bytes, uint64_t seed = 1) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> column_scale(64);
  for (float& scale : column_scale) scale = std::exp(0.7F * normal(random));
  Bytes bytes(num_elements * element_bytes);
  for (size_t i = 0; i < num_elements; ++i) {
    const float value = normal(random) * column_scale[i % column_scale.size()];
    const std::byte* low = reinterpret_cast<const std::byte*>(&value);
    std::memcpy(bytes.data() + i * element_bytes, low + 4 - element_bytes, element_bytes);
  }
  return bytes;
}

Bytes noise(size_t bytes) {
  std::mt19937_64 random(7);
  Bytes out(bytes);
  for (std::byte& byte : out) byte = static_cast<std::byte>(random());
  return out;
}

Bytes decoded(const EncodedChunk& chunk, int element_bytes, size_t bytes) {
  Bytes elements(bytes, std::byte{0xAA});
  decode_chunk(chunk.bytes, chunk.compressed, chunk.xxh3, element_bytes, elements);
  return elements;
}

uint64_t checksum(const Bytes& bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

class CodecOfElementBytes : public ::testing::TestWithParam<int> {};

// Around the boundaries of a block (128 KiB of one plane) and of an element.
TEST_P(CodecOfElementBytes, EveryLengthComesBackBitForBit) {
  for (const size_t num_elements : {1, 2, 63, 255, 256, 4096, 131071, 131072, 131073, 400001}) {
    const Bytes elements = activations(num_elements, GetParam());
    const EncodedChunk chunk = encode_chunk(elements, GetParam());
    EXPECT_EQ(decoded(chunk, GetParam(), elements.size()), elements) << num_elements;
    EXPECT_EQ(chunk.xxh3, checksum(chunk.bytes)) << num_elements;
    EXPECT_LE(chunk.bytes.size(), elements.size()) << num_elements;
  }
}

TEST_P(CodecOfElementBytes, TheFrameIsOrdinaryZstdOverShuffledBytes) {
  const size_t num_elements = 300000;
  const int width = GetParam();
  const Bytes elements = activations(num_elements, width);
  const EncodedChunk chunk = encode_chunk(elements, width);
  ASSERT_TRUE(chunk.compressed);

  Bytes shuffled(elements.size());
  for (size_t i = 0; i < num_elements; ++i) {
    for (int plane = 0; plane < width; ++plane) {
      shuffled[plane * num_elements + i] = elements[i * width + plane];
    }
  }
  Bytes found(elements.size());
  ASSERT_EQ(ZSTD_getFrameContentSize(chunk.bytes.data(), chunk.bytes.size()), elements.size());
  ASSERT_EQ(ZSTD_decompress(found.data(), found.size(), chunk.bytes.data(), chunk.bytes.size()),
            elements.size());
  EXPECT_EQ(found, shuffled);
}

TEST_P(CodecOfElementBytes, NoiseIsStoredRaw) {
  const Bytes elements = noise(1 << 18);
  const EncodedChunk chunk = encode_chunk(elements, GetParam());
  EXPECT_FALSE(chunk.compressed);
  EXPECT_EQ(chunk.bytes, elements);
  EXPECT_EQ(decoded(chunk, GetParam(), elements.size()), elements);
}

/// The elements' bytes plane by plane.
Bytes planes_of(const Bytes& elements, size_t width) {
  const size_t count = elements.size() / width;
  Bytes planes(elements.size());
  for (size_t i = 0; i < elements.size(); ++i) planes[i % width * count + i / width] = elements[i];
  return planes;
}

// Around the boundaries of a block, compressed and raw.
TEST_P(CodecOfElementBytes, PlanesAreStoredAsTheirElementsAreAndComeBack) {
  for (const size_t num_elements : {1, 63, 4096, 131071, 131072, 131073, 400001}) {
    for (const Bytes& elements :
         {activations(num_elements, GetParam()), noise(num_elements * size_t(GetParam()))}) {
      const Bytes planes = planes_of(elements, size_t(GetParam()));
      const EncodedChunk chunk = encode_chunk(planes, GetParam(), ChunkLayout::kPlanes);
      EXPECT_EQ(chunk.bytes, encode_chunk(elements, GetParam()).bytes) << num_elements;
      EXPECT_EQ(decoded(chunk, GetParam(), elements.size()), elements) << num_elements;
      Bytes back(planes.size());
      decode_chunk(chunk.bytes, chunk.compressed, chunk.xxh3, GetParam(), back,
                   ChunkLayout::kPlanes);
      EXPECT_EQ(back, planes) << num_elements;
    }
  }
}

TEST_P(CodecOfElementBytes, NothingStaysNothing) {
  const EncodedChunk chunk = encode_chunk({}, GetParam());
  EXPECT_FALSE(chunk.compressed);
  EXPECT_THAT(chunk.bytes, ::testing::IsEmpty());
  EXPECT_THAT(decoded(chunk, GetParam(), 0), ::testing::IsEmpty());
}

TEST_P(CodecOfElementBytes, AChunkOfOneValueComesBack) {
  const Bytes elements(size_t{1} << 20, std::byte{0});
  const EncodedChunk chunk = encode_chunk(elements, GetParam());
  EXPECT_TRUE(chunk.compressed);
  EXPECT_EQ(decoded(chunk, GetParam(), elements.size()), elements);
}

INSTANTIATE_TEST_SUITE_P(Codec, CodecOfElementBytes, ::testing::Values(2, 4));

TEST(Codec, Bfloat16ActivationsShrinkByFourTenths) {
  const Bytes elements = activations(1 << 21, 2);
  const double ratio =
      static_cast<double>(elements.size()) / encode_chunk(elements, 2).bytes.size();
  EXPECT_GT(ratio, 1.4);
  EXPECT_LT(ratio,
            1.6);  // more than the entropy allows would mean that the data is not what it says
}

// Mantissa noise under a constant exponent plane whose share decides the ratio: 2 / 1 is far above
// 1.05, noise in every plane is below; the same bytes tell the two sides apart.
TEST(Codec, CompressionThatDoesNotPayIsNotUsed) {
  Bytes elements = noise(1 << 20);
  EXPECT_FALSE(encode_chunk(elements, 2).compressed);
  // 240 of 256 values in the high plane: 0.1 bits saved of 16, ratio 1.006.
  for (size_t i = 1; i < elements.size(); i += 2) {
    elements[i] = static_cast<std::byte>(std::to_integer<int>(elements[i]) % 240);
  }
  EXPECT_FALSE(encode_chunk(elements, 2).compressed);
  // 64 of 256: 2 bits saved of 16, ratio 1.14.
  for (size_t i = 1; i < elements.size(); i += 2) elements[i] &= std::byte{63};
  EXPECT_TRUE(encode_chunk(elements, 2).compressed);
}

TEST(Codec, RaggedLengthsAndOtherWidthsAreRefused) {
  const Bytes five(5);
  Bytes out(5);
  EXPECT_THROW(encode_chunk(five, 2), std::invalid_argument);
  EXPECT_THROW(encode_chunk(five, 4), std::invalid_argument);
  EXPECT_THROW(encode_chunk(five, 1), std::invalid_argument);
  EXPECT_THROW(encode_chunk(five, 0), std::invalid_argument);
  EXPECT_THROW(decode_chunk(five, false, checksum(five), 2, out), std::invalid_argument);
}

TEST(Codec, AFlippedBitAnywhereIsRefused) {
  const Bytes elements = activations(512, 2);
  EncodedChunk chunk = encode_chunk(elements, 2);
  ASSERT_TRUE(chunk.compressed);
  for (size_t i = 0; i < chunk.bytes.size(); ++i) {
    chunk.bytes[i] ^= std::byte{1} << (i % 8);
    EXPECT_THROW(decoded(chunk, 2, elements.size()), std::runtime_error) << "byte " << i;
    chunk.bytes[i] ^= std::byte{1} << (i % 8);
  }
  EXPECT_EQ(decoded(chunk, 2, elements.size()), elements);
}

// With the checksum made right again, so that zstd and the sizes are what stands in the way: it
// decodes (a mantissa bit) or is refused, and writes nowhere else; sanitizers watch the reads.
TEST(Codec, AForgedFrameNeverLeavesItsBounds) {
  const Bytes elements = activations(512, 2);
  EncodedChunk chunk = encode_chunk(elements, 2);
  ASSERT_TRUE(chunk.compressed);
  constexpr size_t kGuard = 64;
  const Bytes guard(kGuard, std::byte{0x5A});
  size_t refused = 0;
  for (size_t bit = 0; bit < chunk.bytes.size() * 8; ++bit) {
    chunk.bytes[bit / 8] ^= std::byte{1} << (bit % 8);
    Bytes out(elements.size() + 2 * kGuard, std::byte{0x5A});
    try {
      decode_chunk(chunk.bytes, true, checksum(chunk.bytes), 2,
                   std::span(out).subspan(kGuard, elements.size()));
    } catch (const std::runtime_error&) {
      ++refused;
    }
    ASSERT_EQ(Bytes(out.begin(), out.begin() + kGuard), guard) << "bit " << bit;
    ASSERT_EQ(Bytes(out.end() - kGuard, out.end()), guard) << "bit " << bit;
    chunk.bytes[bit / 8] ^= std::byte{1} << (bit % 8);
  }
  EXPECT_GT(refused, 0U);
}

TEST(Codec, ATruncatedFrameIsRefusedAtEveryByte) {
  const Bytes elements = activations(300, 2);
  const EncodedChunk chunk = encode_chunk(elements, 2);
  ASSERT_TRUE(chunk.compressed);
  for (size_t bytes = 0; bytes < chunk.bytes.size(); ++bytes) {
    const Bytes cut(chunk.bytes.begin(), chunk.bytes.begin() + bytes);
    Bytes out(elements.size());
    EXPECT_THROW(decode_chunk(cut, true, checksum(cut), 2, out), std::runtime_error) << bytes;
  }
}

TEST(Codec, AFrameThatAnnouncesATerabyteIsRefusedByItsAnnouncement) {
  const Bytes elements = activations(512, 2);
  EncodedChunk chunk = encode_chunk(elements, 2);
  ASSERT_TRUE(chunk.compressed);
  const uint64_t terabyte = uint64_t{1} << 40;
  std::memcpy(chunk.bytes.data() + 5, &terabyte, sizeof terabyte);  // content size of the frame
  chunk.xxh3 = checksum(chunk.bytes);
  try {
    decoded(chunk, 2, elements.size());
    FAIL() << "decoded";
  } catch (const std::runtime_error& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("announces 1099511627776 bytes"));
    EXPECT_THAT(error.what(), ::testing::HasSubstr("the chunk has 1024"));
  }
}

TEST(Codec, ChecksumErrorsShowBothSides) {
  EncodedChunk chunk = encode_chunk(activations(512, 2), 2);
  chunk.xxh3 = 0xBAD;
  try {
    decoded(chunk, 2, 1024);
    FAIL() << "decoded";
  } catch (const std::runtime_error& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("0000000000000bad"));
  }
}

TEST(Codec, AChunkOfAnotherSizeIsRefused) {
  const EncodedChunk compressed = encode_chunk(activations(512, 2), 2);
  ASSERT_TRUE(compressed.compressed);
  EXPECT_THROW(decoded(compressed, 2, 1022), std::runtime_error);
  EXPECT_THROW(decoded(compressed, 2, 1026), std::runtime_error);
  const EncodedChunk raw = encode_chunk(noise(512), 2);
  ASSERT_FALSE(raw.compressed);
  EXPECT_THROW(decoded(raw, 2, 510), std::runtime_error);
}

TEST(Codec, ThreadsDoNotDisturbEachOther) {
  std::vector<std::thread> threads;
  for (uint64_t seed = 0; seed < 4; ++seed) {
    threads.emplace_back([seed] {
      for (int round = 0; round < 20; ++round) {
        const Bytes elements = activations(3000 + 1000 * seed + round, 2, seed);
        EXPECT_EQ(decoded(encode_chunk(elements, 2), 2, elements.size()), elements);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(Codec, TheSameElementsGiveTheSameBytes) {
  const Bytes elements = activations(200000, 2);
  const Bytes first = encode_chunk(elements, 2).bytes;
  encode_chunk(activations(90000, 4, 9), 4);  // another chunk in between leaves no trace
  EXPECT_EQ(encode_chunk(elements, 2).bytes, first);
}

}  // namespace
}  // namespace coppice
