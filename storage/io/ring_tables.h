// What a ring knows in advance: memory pinned once, files looked up once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "storage/io/io_engine.h"  // LongLived

struct io_uring;
struct io_uring_params;

namespace coppice {

/// Creates a ring: 0 or -errno, as io_uring_queue_init_params does.
using RingSetup = std::function<int(unsigned entries, io_uring* ring, io_uring_params* params)>;
/// Changes what a ring knows: a count or -errno, as io_uring_register does.
using RingRegister =
    std::function<int(unsigned ring_fd, unsigned opcode, const void* argument, unsigned count)>;

/// The kernel's answers. A test passes some of its own.
struct RingCalls {
  RingCalls();  // the kernel
  RingSetup setup;
  RingRegister tell;
};

/// The tables of registered buffers and files of one ring. Everything on the ring's thread; nothing
/// of it while entries wait for submission, because they hold indices. What is in flight when its
/// memory or file is removed ends undisturbed: the kernel keeps both until then.
class RingTables {
 public:
  explicit RingTables(RingRegister tell) : tell_(std::move(tell)) {}
  /// Needs Linux 5.19: tables are made empty and filled one entry at a time, so that no change
  /// waits for reads in flight.
  void attach(unsigned ring_fd) { ring_fd_ = ring_fd; }

  using Owner = uint64_t;
  struct Taken {
    Owner owner = 0;
    uint64_t memory_bytes = 0;
    size_t files = 0;
    int memory_error = 0;  // errno of the first refusal, 0 if all was taken
    int file_error = 0;
  };
  /// Takes what the kernel lets it, memory in pieces of at most 1 GiB (the kernel's limit), and
  /// stops at the first refusal.
  Taken add(const LongLived& what);
  void remove(Owner owner);

  /// The registered buffer that holds all of `bytes`: none for a read across two pieces.
  std::optional<unsigned> buffer_of(std::span<const std::byte> bytes) const;
  std::optional<unsigned> file_of(int fd) const;

 private:
  struct Buffer {
    Owner owner = 0;  // 0: free
    std::span<std::byte> memory = {};
  };
  struct File {
    Owner owner = 0;
    int fd = -1;
  };
  int add_buffer(Owner owner, std::span<std::byte> piece);
  int add_file(Owner owner, int fd);
  int put_buffer(size_t index, std::span<std::byte> memory);
  int put_file(size_t index, int fd);

  RingRegister tell_;
  unsigned ring_fd_ = 0;
  Owner last_owner_ = 0;
  std::vector<Buffer> buffers_;  // as in the kernel's table; empty until first needed
  std::vector<File> files_;
};

}  // namespace coppice
