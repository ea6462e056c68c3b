#include "storage/io/ring_tables.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <liburing.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include <cerrno>
#include <map>

#include "storage/io/file.h"

namespace coppice {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr size_t kGiB = size_t{1} << 30;

/// A kernel that writes down what it is told, and refuses the n-th entry.
struct PaperKernel {
  std::map<unsigned, std::span<std::byte>> buffers;
  std::map<unsigned, int> files;
  int entries_until_refusal = -1;

  RingRegister tell() {
    return [this](unsigned, unsigned opcode, const void* argument, unsigned) {
      if (opcode == IORING_REGISTER_BUFFERS2 || opcode == IORING_REGISTER_FILES2) return 0;
      if (entries_until_refusal-- == 0) return -ENOMEM;
      const auto& update = *static_cast<const io_uring_rsrc_update2*>(argument);
      if (opcode == IORING_REGISTER_BUFFERS_UPDATE) {
        const auto& entry = *reinterpret_cast<const iovec*>(update.data);
        buffers[update.offset] = {static_cast<std::byte*>(entry.iov_base), entry.iov_len};
        if (entry.iov_base == nullptr) buffers.erase(update.offset);
      } else {
        const int fd = *reinterpret_cast<const int*>(update.data);
        files[update.offset] = fd;
        if (fd < 0) files.erase(update.offset);
      }
      return 1;
    };
  }
};

/// Addresses without memory behind them.
class Addresses {
 public:
  explicit Addresses(size_t bytes)
      : span_(static_cast<std::byte*>(mmap(nullptr, bytes, PROT_NONE,
                                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)),
              bytes) {}
  ~Addresses() { munmap(span_.data(), span_.size()); }
  Addresses(const Addresses&) = delete;
  Addresses& operator=(const Addresses&) = delete;
  std::span<std::byte> span() const { return span_; }

 private:
  std::span<std::byte> span_;
};

TEST(RingTables, MemoryIsCutIntoPiecesTheKernelTakes) {
  const Addresses memory(2 * kGiB + 5000);
  PaperKernel kernel;
  RingTables tables(kernel.tell());
  EXPECT_EQ(tables.add({.memory = {memory.span()}, .files = {}}).memory_bytes,
            memory.span().size());
  std::vector<size_t> sizes;
  for (const auto& [index, piece] : kernel.buffers) sizes.push_back(piece.size());
  EXPECT_THAT(sizes, ElementsAre(kGiB, kGiB, 5000));
}

TEST(RingTables, ABufferIsNamedForReadsInsideOnePiece) {
  const Addresses memory(2 * kGiB);
  PaperKernel kernel;
  RingTables tables(kernel.tell());
  EXPECT_EQ(tables.buffer_of(memory.span().first(1)), std::nullopt);
  tables.add({.memory = {memory.span().subspan(4096)}, .files = {}});
  const size_t cut = 4096 + kGiB;
  EXPECT_EQ(tables.buffer_of(memory.span().subspan(4096, 4096)), 0u);
  EXPECT_EQ(tables.buffer_of(memory.span().subspan(cut - 4096, 4096)), 0u);
  EXPECT_EQ(tables.buffer_of(memory.span().subspan(cut, 4096)), 1u);
  EXPECT_EQ(tables.buffer_of(memory.span().subspan(2 * kGiB - 1, 1)), 1u);
  EXPECT_EQ(tables.buffer_of(memory.span().subspan(cut - 1, 2)), std::nullopt) << "across a cut";
  EXPECT_EQ(tables.buffer_of(memory.span().subspan(4095, 2)), std::nullopt) << "begins before";
}

TEST(RingTables, WhatOneOwnerGivesBackIsUsedByTheNext) {
  const Addresses memory(3 * 4096);
  const ReadFile file("/dev/null");
  PaperKernel kernel;
  RingTables tables(kernel.tell());
  const auto page = [&](size_t i) { return memory.span().subspan(i * 4096, 4096); };
  const auto first = tables.add({.memory = {page(0)}, .files = {&file}});
  const auto second = tables.add({.memory = {page(1)}, .files = {&file}});
  tables.remove(first.owner);
  EXPECT_EQ(tables.buffer_of(page(0)), std::nullopt);
  EXPECT_EQ(tables.buffer_of(page(1)), 1u);
  EXPECT_EQ(tables.file_of(file.fd()), 1u) << "the second owner still holds it";
  tables.add({.memory = {page(2)}, .files = {}});
  EXPECT_EQ(tables.buffer_of(page(2)), 0u);
  tables.remove(second.owner);
  EXPECT_EQ(tables.file_of(file.fd()), std::nullopt);
  EXPECT_THAT(kernel.files, IsEmpty());
}

TEST(RingTables, ARefusalKeepsWhatWasTakenBefore) {
  const Addresses memory(3 * kGiB);
  const ReadFile file("/dev/null");
  PaperKernel kernel;
  kernel.entries_until_refusal = 2;
  RingTables tables(kernel.tell());
  const auto taken = tables.add({.memory = {memory.span()}, .files = {&file}});
  EXPECT_EQ(taken.memory_bytes, 2 * kGiB);
  EXPECT_EQ(taken.memory_error, ENOMEM);
  EXPECT_EQ(taken.files, 1u);
  EXPECT_EQ(taken.file_error, 0);
  EXPECT_EQ(tables.buffer_of(memory.span().subspan(kGiB, 10)), 1u);
  EXPECT_EQ(tables.buffer_of(memory.span().subspan(2 * kGiB, 10)), std::nullopt);
}

TEST(RingTables, AFullTableIsARefusal) {
  const Addresses memory(4096 * 4096);
  PaperKernel kernel;
  RingTables tables(kernel.tell());
  LongLived many;
  for (size_t i = 0; i < 4096; ++i) many.memory.push_back(memory.span().subspan(i * 4096, 4096));
  const auto taken = tables.add(many);
  EXPECT_EQ(taken.memory_error, ENOSPC);
  EXPECT_EQ(taken.memory_bytes, kernel.buffers.size() * 4096);
}

}  // namespace
}  // namespace coppice
