// The contract of an engine, run over every engine this machine grants.
#include "storage/io/io_engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <liburing.h>
#include <linux/capability.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iostream>
#include <latch>
#include <mutex>
#include <sstream>
#include <thread>

#include "storage/errors.h"
#include "storage/io/aligned_buffer.h"
#include "storage/io/uring_engine.h"
#include "tests/support/temp_dir.h"

namespace coppice {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::TempDir;

constexpr uint64_t kFileBytes = (uint64_t{3} << 20) + 1234;  // an unaligned tail

std::vector<EngineChoice> available_engines() {
  std::vector<EngineChoice> engines{EngineChoice::kPread};
  try {
    make_io_engine({.engine = EngineChoice::kUring});
    engines.push_back(EngineChoice::kUring);
  } catch (const IoError&) {  // shown by IoEngine.UringIsGrantedHere
  }
  return engines;
}

std::string pattern(uint64_t bytes) {
  std::string text(bytes, '\0');
  for (uint64_t i = 0; i < bytes; ++i) text[i] = static_cast<char>(i * 31 + i / 4096 * 7);
  return text;
}

std::string_view text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// One read into memory of its own.
ReadBatch batch_of(const ReadFile& file, uint64_t offset, uint64_t bytes, uint64_t required) {
  auto memory = std::make_shared<AlignedBuffer>(bytes);
  return {
      .memory = memory,
      .reads = {
          {.file = &file, .offset = offset, .into = memory->span(), .required_bytes = required}}};
}

std::string message_of(IoEngine& engine, ReadBatch batch) {
  try {
    read_now(engine, std::move(batch));
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

/// The kernel, but for the creation of rings.
RingCalls ring_that(RingSetup setup) {
  RingCalls calls;
  calls.setup = std::move(setup);
  return calls;
}

class IoEngineContract : public ::testing::TestWithParam<EngineChoice> {
 protected:
  IoEngineContract() : content_(pattern(kFileBytes)) { write_file(directory_ / "file", content_); }

  std::unique_ptr<IoEngine> make_engine(uint64_t max_bytes_in_flight = 256 << 10,
                                        uint32_t queue_depth = 8) const {
    return make_io_engine({.engine = GetParam(),
                           .max_bytes_in_flight = max_bytes_in_flight,
                           .queue_depth = queue_depth,
                           .pread_threads = 3});
  }

  /// The whole file in reads of `piece` bytes, which need not divide it.
  ReadBatch whole_file(const ReadFile& file, uint64_t piece) const {
    const uint64_t pieces = (kFileBytes + piece - 1) / piece;
    auto memory = std::make_shared<AlignedBuffer>(pieces * piece);
    ReadBatch batch{.memory = memory, .reads = {}};
    for (uint64_t offset = 0; offset < kFileBytes; offset += piece) {
      batch.reads.push_back({.file = &file,
                             .offset = offset,
                             .into = memory->span().subspan(offset, piece),
                             .required_bytes = std::min(piece, kFileBytes - offset)});
    }
    return batch;
  }

  static std::span<std::byte> memory_of(const ReadBatch& batch) {
    return static_cast<const AlignedBuffer*>(batch.memory.get())->span();
  }

  std::string_view arrived(const ReadBatch& batch) const {
    return text_of(memory_of(batch).first(kFileBytes));
  }

  TempDir directory_;
  const std::string content_;
};

TEST_P(IoEngineContract, BytesEqualTheFileToItsUnalignedTail) {
  const ReadFile file(directory_ / "file");
  const auto engine = make_engine();
  for (const uint64_t piece : {uint64_t{4096}, uint64_t{64} << 10, uint64_t{1} << 20}) {
    const ReadBatch batch = whole_file(file, piece);
    read_now(*engine, batch);
    EXPECT_TRUE(arrived(batch) == content_) << piece;
  }
}

TEST_P(IoEngineContract, BufferedFilesTakeAnyOffset) {
  const ReadFile file(directory_ / "file", ReadFile::Direct::kNever);
  const auto engine = make_engine();
  const ReadBatch batch = whole_file(file, 99'991);
  read_now(*engine, batch);
  EXPECT_TRUE(arrived(batch) == content_);
}

TEST_P(IoEngineContract, ATmpfsGivesTheSameBytes) {
  if (!std::filesystem::is_directory("/dev/shm")) GTEST_SKIP() << "no /dev/shm here";
  const std::filesystem::path path = "/dev/shm/coppice_engine_test." + std::to_string(getpid());
  write_file(path, content_);
  const ReadFile file(path);
  std::filesystem::remove(path);
  const auto engine = make_engine();
  const ReadBatch batch = whole_file(file, 64 << 10);
  read_now(*engine, batch);
  EXPECT_TRUE(arrived(batch) == content_);
}

TEST_P(IoEngineContract, ManyBatchesFromSeveralThreadsAllArrive) {
  const ReadFile file(directory_ / "file");
  const auto engine = make_engine();
  constexpr int kThreads = 4;
  constexpr int kBatches = 5;
  std::latch completed(kThreads * kBatches);
  std::atomic<int> num_equal = 0;
  std::vector<std::thread> threads;
  threads.reserve(kThreads);
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      for (int b = 0; b < kBatches; ++b) {
        engine->submit(whole_file(file, 128 << 10), [&](ReadBatch batch, std::exception_ptr) {
          num_equal += arrived(batch) == content_ ? 1 : 0;
          completed.count_down();
        });
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  completed.wait();
  EXPECT_EQ(num_equal, kThreads * kBatches);
}

TEST_P(IoEngineContract, AReadLargerThanTheBoundStillArrives) {
  const ReadFile file(directory_ / "file");
  const auto engine = make_engine(/*max_bytes_in_flight=*/4096, /*queue_depth=*/1);
  const ReadBatch batch = whole_file(file, 1 << 20);
  read_now(*engine, batch);
  EXPECT_TRUE(arrived(batch) == content_);
}

TEST_P(IoEngineContract, ATruncatedFileIsNamedWithWhatWasExpected) {
  const ReadFile file(directory_ / "file");
  const auto engine = make_engine();
  std::filesystem::resize_file(directory_ / "file", 5000);
  EXPECT_THROW(read_now(*engine, batch_of(file, 0, 8192, 8192)), CorruptionError);
  EXPECT_THAT(message_of(*engine, batch_of(file, 4096, 8192, 8000)),
              AllOf(HasSubstr(file.path().string()), HasSubstr("byte 5000"),
                    HasSubstr("8000 bytes from offset 4096"), HasSubstr("found 904 bytes")));
  EXPECT_EQ(message_of(*engine, batch_of(file, 4096, 8192, 904)), "");
}

TEST_P(IoEngineContract, OneFailureFailsTheBatchAndNoOther) {
  const ReadFile file(directory_ / "file");
  const auto engine = make_engine();
  ReadBatch bad = whole_file(file, 64 << 10);
  bad.reads[3].offset = uint64_t{4} << 20;  // beyond the end
  const ReadBatch good = whole_file(file, 64 << 10);
  std::latch completed(2);
  std::exception_ptr bad_failure;
  std::exception_ptr good_failure;
  engine->submit(bad, [&](ReadBatch, std::exception_ptr failure) {
    bad_failure = std::move(failure);
    completed.count_down();
  });
  engine->submit(good, [&](ReadBatch, std::exception_ptr failure) {
    good_failure = std::move(failure);
    completed.count_down();
  });
  completed.wait();
  EXPECT_THROW(std::rethrow_exception(bad_failure), CorruptionError);
  EXPECT_EQ(good_failure, nullptr);
  EXPECT_TRUE(arrived(good) == content_);
}

// A seq_file answers a page or less at a time: real short reads in mid-file.
TEST_P(IoEngineContract, ShortReadsInMidFileAreReadOn) {
  std::ostringstream text;
  text << std::ifstream("/proc/kallsyms").rdbuf();
  const std::string symbols = text.str().substr(0, 200'000);
  if (symbols.size() < 200'000) GTEST_SKIP() << "/proc/kallsyms is hidden here";
  const ReadFile file("/proc/kallsyms");
  const auto engine = make_engine();
  const ReadBatch batch = batch_of(file, 0, symbols.size(), symbols.size());
  read_now(*engine, batch);
  EXPECT_TRUE(text_of(batch.reads[0].into) == symbols);
}

// The page below the lowest address one may map, read as a file, is an EIO without a broken drive.
TEST_P(IoEngineContract, DeviceErrorsCarryPathOffsetBytesAndErrno) {
  const ReadFile file("/proc/self/mem");
  constexpr uint64_t kHole = 4096;
  char byte = 0;
  if (pread(file.fd(), &byte, 1, kHole) != -1 || errno != EIO) {
    GTEST_SKIP() << "/proc/self/mem gives no EIO here";
  }
  const auto engine = make_engine();
  EXPECT_THROW(read_now(*engine, batch_of(file, kHole, 100, 100)), IoError);
  EXPECT_THAT(message_of(*engine, batch_of(file, kHole, 100, 100)),
              AllOf(HasSubstr("/proc/self/mem"), HasSubstr("EIO"),
                    HasSubstr("100 bytes at offset " + std::to_string(kHole))));
}

TEST_P(IoEngineContract, AnUnalignedDirectReadIsToldTheAlignment) {
  const ReadFile file(directory_ / "file");
  if (!file.is_direct()) GTEST_SKIP() << "no O_DIRECT in " << directory_.path();
  const auto engine = make_engine();
  EXPECT_THAT(message_of(*engine, batch_of(file, 3, 4096, 4096)),
              AllOf(HasSubstr("EINVAL"), HasSubstr("must be multiples of")));
}

TEST_P(IoEngineContract, EmptyBatchesAndEmptyReadsComplete) {
  const ReadFile file(directory_ / "file");
  const auto engine = make_engine();
  EXPECT_EQ(message_of(*engine, {}), "");
  EXPECT_EQ(message_of(*engine, {.memory = nullptr, .reads = {{.file = &file}}}), "");
}

TEST_P(IoEngineContract, ACompletionMaySubmitTheNextBatch) {
  const ReadFile file(directory_ / "file");
  const auto engine = make_engine();
  std::latch completed(2);
  engine->submit(whole_file(file, 1 << 20), [&](ReadBatch batch, std::exception_ptr) {
    engine->submit(std::move(batch),
                   [&](ReadBatch, std::exception_ptr) { completed.count_down(); });
    completed.count_down();
  });
  completed.wait();
}

TEST_P(IoEngineContract, MemoryLivesUntilTheBatchIsReaped) {
  const ReadFile file(directory_ / "file");
  const auto engine = make_engine();
  auto memory = std::make_shared<AlignedBuffer>(1 << 20);
  const std::weak_ptr<AlignedBuffer> watch = memory;
  ReadBatch batch{.memory = memory,
                  .reads = {{.file = &file, .offset = 0, .into = memory->span()}}};
  memory.reset();
  std::latch completed(1);
  bool alive = false;
  engine->submit(std::move(batch), [&](ReadBatch, std::exception_ptr) {
    alive = !watch.expired();
    completed.count_down();
  });
  completed.wait();
  EXPECT_TRUE(alive);
}

TEST_P(IoEngineContract, DestructionCompletesEveryBatchExactlyOnce) {
  constexpr size_t kBatches = 40;
  const ReadFile file(directory_ / "file");
  std::mutex mutex;
  std::vector<int> completions(kBatches);
  std::vector<std::string> wrong;
  auto engine = make_engine();
  for (size_t i = 0; i < kBatches; ++i) {
    engine->submit(whole_file(file, 64 << 10), [&, i](ReadBatch batch, std::exception_ptr failure) {
      const std::lock_guard lock(mutex);
      ++completions[i];
      try {
        if (failure != nullptr) std::rethrow_exception(failure);
        if (arrived(batch) != content_) wrong.push_back("bytes differ");
      } catch (const IoError& error) {
        if (error.error_number() != ECANCELED) wrong.push_back(error.what());
      }
    });
  }
  engine.reset();
  EXPECT_THAT(completions, ::testing::Each(1));
  EXPECT_THAT(wrong, ::testing::IsEmpty());
}

// A batch that submits itself again ends only by being refused.
TEST_P(IoEngineContract, DestructionFailsWhatHasNotStarted) {
  const ReadFile file(directory_ / "file");
  auto engine = make_engine();
  IoEngine* const address = engine.get();  // reset() forgets it before the destructor runs
  std::latch third(3);
  std::string last_words;
  ReadCompletion again = [&](ReadBatch batch, std::exception_ptr failure) {
    try {
      if (failure != nullptr) std::rethrow_exception(failure);
      if (!third.try_wait()) third.count_down();
      address->submit(std::move(batch), again);
    } catch (const std::exception& error) {
      last_words = error.what();
    }
  };
  engine->submit(batch_of(file, 0, 4096, 4096), again);
  third.wait();
  engine.reset();
  EXPECT_THAT(last_words, AllOf(HasSubstr("shutting down"), HasSubstr("ECANCELED")));
}

TEST_P(IoEngineContract, RegisteredMemoryAndFilesGiveTheSameBytes) {
  const ReadFile file(directory_ / "file");
  const auto engine = make_engine();
  const ReadBatch batch = whole_file(file, 64 << 10);
  const Registration held =
      engine->register_long_lived({.memory = {memory_of(batch)}, .files = {&file}});
  read_now(*engine, batch);
  EXPECT_TRUE(arrived(batch) == content_);
}

TEST_P(IoEngineContract, ReadsBesideAndAcrossRegisteredMemoryGiveTheSameBytes) {
  const ReadFile file(directory_ / "file");
  const auto engine = make_engine();
  const ReadBatch batch = whole_file(file, 64 << 10);
  // Begins and ends inside a read.
  const Registration held = engine->register_long_lived(
      {.memory = {memory_of(batch).subspan(100 << 10, 1'000'000)}, .files = {}});
  read_now(*engine, batch);
  EXPECT_TRUE(arrived(batch) == content_);
}

TEST_P(IoEngineContract, ATmpfsGivesTheSameBytesIntoRegisteredMemory) {
  if (!std::filesystem::is_directory("/dev/shm")) GTEST_SKIP() << "no /dev/shm here";
  const std::filesystem::path path = "/dev/shm/coppice_fixed_test." + std::to_string(getpid());
  write_file(path, content_);
  const ReadFile file(path);
  std::filesystem::remove(path);
  const auto engine = make_engine();
  const ReadBatch batch = whole_file(file, 99'991);  // buffered: any offset
  const Registration held =
      engine->register_long_lived({.memory = {memory_of(batch)}, .files = {&file}});
  read_now(*engine, batch);
  EXPECT_TRUE(arrived(batch) == content_);
}

TEST_P(IoEngineContract, RegisteringBesideReadsInFlightDisturbsNone) {
  const ReadFile file(directory_ / "file");
  const auto engine = make_engine();
  constexpr int kBatches = 30;
  std::latch completed(kBatches);
  std::atomic<int> num_equal = 0;
  for (int i = 0; i < kBatches; ++i) {
    const ReadBatch batch = whole_file(file, 64 << 10);
    // Goes at the end of the turn, while the reads are under way.
    const Registration held =
        engine->register_long_lived({.memory = {memory_of(batch)}, .files = {&file}});
    engine->submit(batch, [&](ReadBatch finished, std::exception_ptr) {
      num_equal += arrived(finished) == content_ ? 1 : 0;
      completed.count_down();
    });
  }
  completed.wait();
  EXPECT_EQ(num_equal, kBatches);
}

TEST_P(IoEngineContract, ARegistrationMayOutliveTheEngine) {
  const ReadFile file(directory_ / "file");
  const AlignedBuffer memory(1 << 20);
  auto engine = make_engine();
  const Registration held =
      engine->register_long_lived({.memory = {memory.span()}, .files = {&file}});
  engine.reset();
}

INSTANTIATE_TEST_SUITE_P(Engines, IoEngineContract, ::testing::ValuesIn(available_engines()),
                         [](const auto& engine) {
                           return engine.param == EngineChoice::kUring ? "Uring" : "Pread";
                         });

TEST(IoEngine, UringIsGrantedHere) {
  try {
    EXPECT_EQ(make_io_engine({.engine = EngineChoice::kUring})->name(), "io_uring");
  } catch (const IoError& refused) {
    GTEST_SKIP() << "the contract ran over pread only: " << refused.what();
  }
}

TEST(IoEngine, ARefusedRingFallsBackToPreadAndSaysSoOnce) {
  for (const int refusal : {EPERM, ENOSYS, EACCES, ENOMEM}) {
    std::vector<std::string> messages;
    const auto engine = make_io_engine(
        {.on_fallback = [&](const std::string& message) { messages.push_back(message); }},
        ring_that([&](unsigned, io_uring*, io_uring_params*) { return -refusal; }));
    EXPECT_EQ(engine->name(), "pread");
    EXPECT_THAT(messages, ElementsAre(AllOf(HasSubstr("io_uring is refused"),
                                            HasSubstr(strerrorname_np(refusal)))));
  }
}

TEST(IoEngine, AForcedRingThatIsRefusedIsAnIoError) {
  try {
    make_io_engine({.engine = EngineChoice::kUring},
                   ring_that([](unsigned, io_uring*, io_uring_params*) { return -EPERM; }));
    FAIL() << "a refused ring made an engine";
  } catch (const IoError& refused) {
    EXPECT_EQ(refused.error_number(), EPERM);
  }
}

TEST(IoEngine, OlderKernelsGetFewerFlagsAndItIsSaid) {
  constexpr unsigned kDeferTaskrun = 1U << 13;
  constexpr unsigned kSingleIssuer = 1U << 12;
  const TempDir directory;
  write_file(directory / "file", "small");
  const ReadFile file(directory / "file", ReadFile::Direct::kNever);
  std::vector<unsigned> tried;
  std::vector<std::string> messages;
  const RingCalls old_kernel =
      ring_that([&](unsigned entries, io_uring* ring, io_uring_params* params) {
        tried.push_back(params->flags & (kDeferTaskrun | kSingleIssuer));
        if (tried.back() != 0) return -EINVAL;
        return io_uring_queue_init_params(entries, ring, params);
      });
  try {
    const auto engine = make_uring_engine(
        {.on_fallback = [&](const std::string& message) { messages.push_back(message); }},
        old_kernel);
    const ReadBatch batch = batch_of(file, 0, 5, 5);
    read_now(*engine, batch);
    EXPECT_EQ(text_of(batch.reads[0].into), "small");
  } catch (const IoError& refused) {
    if (refused.path() == "io_uring") GTEST_SKIP() << refused.what();
    throw;
  }
  EXPECT_THAT(tried, ElementsAre(kDeferTaskrun | kSingleIssuer, kSingleIssuer, 0u));
  EXPECT_THAT(messages, ElementsAre(HasSubstr("without deferred task work (EINVAL")));
}

/// A ring to which some things cannot be told, and what was said about it.
struct RefusingRing {
  RefusingRing(std::vector<unsigned> opcodes, int refusal) {
    calls.tell = [=](unsigned ring_fd, unsigned opcode, const void* argument, unsigned count) {
      if (std::ranges::count(opcodes, opcode) != 0) return -refusal;
      return io_uring_register(ring_fd, opcode, argument, count);
    };
  }
  std::unique_ptr<IoEngine> make_engine() {
    return make_uring_engine(
        {.on_fallback = [this](const std::string& message) { messages.push_back(message); }},
        calls);
  }
  RingCalls calls;
  std::vector<std::string> messages;
};

/// Tests of what only a ring can do.
class UringRegistration : public ::testing::Test {
 protected:
  void SetUp() override {
    if (available_engines().size() < 2) GTEST_SKIP() << "no ring is granted here";
    write_file(directory_ / "file", content_);
  }
  /// Whether the kernel lets us register at all; else the tests of its effect say nothing.
  static bool takes(IoEngine& engine, const ReadFile& file) {
    const AlignedBuffer memory(4096);
    const Registration held =
        engine.register_long_lived({.memory = {memory.span()}, .files = {&file}});
    return held.memory_bytes == 4096 && held.files == 1;
  }
  TempDir directory_;
  const std::string content_ = pattern(64 << 10);
};

// A read into a registered buffer goes to the pages that were there when it was registered: with
// other pages mapped since, nothing arrives. (So a registration must not outlive its memory.)
TEST_F(UringRegistration, RegisteredMemoryIsReadIntoByItsPages) {
  const ReadFile file(directory_ / "file");
  const auto engine = make_uring_engine({});
  if (!takes(*engine, file)) GTEST_SKIP() << "this kernel registers nothing";
  const AlignedBuffer memory(content_.size());
  const auto read_whole = [&] {
    read_now(*engine, {.memory = nullptr,
                       .reads = {{.file = &file,
                                  .offset = 0,
                                  .into = memory.span(),
                                  .required_bytes = content_.size()}}});
  };
  Registration held = engine->register_long_lived({.memory = {memory.span()}, .files = {}});
  ASSERT_EQ(held.memory_bytes, memory.bytes());
  ASSERT_EQ(mmap(memory.data(), memory.bytes(), PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
            memory.data());
  read_whole();
  EXPECT_TRUE(std::ranges::all_of(memory.span(), [](std::byte b) { return b == std::byte{0}; }));
  held = {};
  read_whole();
  EXPECT_TRUE(text_of(memory.span()) == content_);
}

// In the same way a registered file is the one that was open then, whatever its number means since.
TEST_F(UringRegistration, RegisteredFilesAreReadWithoutTheirNumber) {
  write_file(directory_ / "other", std::string(content_.size(), 'o'));
  const ReadFile file(directory_ / "file", ReadFile::Direct::kNever);
  const ReadFile other(directory_ / "other", ReadFile::Direct::kNever);
  const auto engine = make_uring_engine({});
  if (!takes(*engine, file)) GTEST_SKIP() << "this kernel registers nothing";
  const auto first_byte = [&] {
    const ReadBatch batch = batch_of(file, 0, 4096, 4096);
    read_now(*engine, batch);
    return static_cast<char>(batch.reads[0].into[0]);
  };
  Registration held = engine->register_long_lived({.memory = {}, .files = {&file}});
  ASSERT_EQ(held.files, 1u);
  ASSERT_EQ(dup2(other.fd(), file.fd()), file.fd());
  EXPECT_EQ(first_byte(), content_[0]);
  held = {};
  EXPECT_EQ(first_byte(), 'o');
}

TEST_F(UringRegistration, ARefusalIsSaidOnceAndTheBytesAreTheSame) {
  const ReadFile file(directory_ / "file");
  for (const int refusal : {ENOMEM, EOPNOTSUPP, EINVAL}) {
    for (const unsigned opcode : {IORING_REGISTER_BUFFERS2, IORING_REGISTER_BUFFERS_UPDATE}) {
      RefusingRing ring({opcode}, refusal);
      const auto engine = ring.make_engine();
      const ReadBatch batch = batch_of(file, 0, content_.size(), content_.size());
      const LongLived wanted{.memory = {batch.reads[0].into}, .files = {&file}};
      const Registration first = engine->register_long_lived(wanted);
      const Registration second = engine->register_long_lived(wanted);
      EXPECT_EQ(first.memory_bytes, 0u);
      EXPECT_EQ(first.files, 1u) << "the other kind is not given up";
      read_now(*engine, batch);
      EXPECT_TRUE(text_of(batch.reads[0].into) == content_);
      EXPECT_THAT(ring.messages, ElementsAre(AllOf(HasSubstr("does not take memory"),
                                                   HasSubstr(strerrorname_np(refusal)))));
    }
  }
}

TEST_F(UringRegistration, RefusedFilesAreSaidOnceAndTheBytesAreTheSame) {
  const ReadFile file(directory_ / "file");
  for (const unsigned opcode : {IORING_REGISTER_FILES2, IORING_REGISTER_FILES_UPDATE2}) {
    RefusingRing ring({opcode}, EMFILE);
    const auto engine = ring.make_engine();
    const ReadBatch batch = batch_of(file, 0, content_.size(), content_.size());
    const LongLived wanted{.memory = {batch.reads[0].into}, .files = {&file}};
    const Registration first = engine->register_long_lived(wanted);
    const Registration second = engine->register_long_lived(wanted);
    EXPECT_EQ(first.memory_bytes, content_.size());
    EXPECT_EQ(first.files, 0u);
    read_now(*engine, batch);
    EXPECT_TRUE(text_of(batch.reads[0].into) == content_);
    EXPECT_THAT(ring.messages,
                ElementsAre(AllOf(HasSubstr("does not take files"), HasSubstr("EMFILE"))));
  }
}

/// The limits of an ordinary user: capabilities gone, a few pages of locked memory.
void lock_no_memory() {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  std::array<__user_cap_data_struct, 2> none{};
  const rlimit limit{16 << 10, 16 << 10};
  if (syscall(SYS_capset, &header, none.data()) != 0 || setrlimit(RLIMIT_MEMLOCK, &limit) != 0) {
    _exit(2);
  }
}

// The kernel's own refusal, in a process of its own because limits cannot be raised again.
TEST_F(UringRegistration, TheMemoryLimitOfAnOrdinaryUserCostsNoBytes) {
  const ReadFile file(directory_ / "file");
  EXPECT_EXIT(
      {
        lock_no_memory();
        std::vector<std::string> messages;
        const auto engine = make_io_engine(
            {.on_fallback = [&](const std::string& message) { messages.push_back(message); }});
        const ReadBatch batch = batch_of(file, 0, content_.size(), content_.size());
        const Registration held =
            engine->register_long_lived({.memory = {batch.reads[0].into}, .files = {&file}});
        read_now(*engine, batch);
        for (const std::string& message : messages) std::cerr << message << '\n';
        _exit(held.memory_bytes == 0 && text_of(batch.reads[0].into) == content_ ? 0 : 1);
      },
      ::testing::ExitedWithCode(0), "ENOMEM");
}

}  // namespace
}  // namespace coppice
