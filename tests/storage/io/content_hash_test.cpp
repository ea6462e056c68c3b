#include "storage/io/content_hash.h"

#include <gtest/gtest.h>

#include <string_view>

namespace coppice {
namespace {

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

TEST(ContentHash, EqualsThePublishedValues) {
  EXPECT_EQ(ContentHash().hex(), "99aa06d3014798d86001c324468d497f");
  Sha256 sha;
  EXPECT_EQ(sha.hex(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  sha.add(bytes_of("abc"));
  EXPECT_EQ(sha.hex(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(ContentHash, PiecesMakeNoDifference) {
  ContentHash whole;
  whole.add(bytes_of("one two three"));
  ContentHash pieces;
  pieces.add(bytes_of("one "));
  EXPECT_NE(pieces.hex(), whole.hex());
  pieces.add(bytes_of("two three"));  // asking in between does not end the hash
  EXPECT_EQ(pieces.hex(), whole.hex());
}

}  // namespace
}  // namespace coppice
