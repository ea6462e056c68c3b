// Hashes of bytes that arrive in pieces.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

struct XXH3_state_s;
struct evp_md_ctx_st;

namespace coppice {

/// XXH3-128: whether bytes are the same ones; no defence against malice. One thread.
class ContentHash {
 public:
  ContentHash();
  void add(std::span<const std::byte> bytes);
  std::string hex() const;  // 32 digits, as xxhsum -H2 prints them; more may be added afterwards

 private:
  struct Free {
    void operator()(XXH3_state_s* state) const;
  };
  std::unique_ptr<XXH3_state_s, Free> state_;
};

/// SHA-256, for people and other tools. One thread.
class Sha256 {
 public:
  Sha256();
  void add(std::span<const std::byte> bytes);
  std::string hex() const;  // 64 digits, as sha256sum prints them; more may be added afterwards

 private:
  struct Free {
    void operator()(evp_md_ctx_st* context) const;
  };
  std::unique_ptr<evp_md_ctx_st, Free> context_;
};

}  // namespace coppice
