// What was appended is there after every accident; what was not appended never is.
#include "storage/journal/run_journal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <thread>

#include "storage/errors.h"
#include "tests/support/temp_dir.h"

namespace coppice {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const std::vector<JournalRecord> kRecords = {
    {"run", 1, R"({"recipe":"a.yaml"})"},
    {"boundary", 2, ""},
    {"block", 1, R"({"block":17,"files":["model-00003.safetensors"]})"}};

/// The bytes of a journal of `kRecords`, and where each record ends (first: the header's end).
struct Written {
  std::string bytes;
  std::vector<size_t> ends;
};

Written write_records(const std::filesystem::path& path) {
  Written written;
  RunJournal journal(path);
  written.ends.push_back(std::filesystem::file_size(path));
  for (const JournalRecord& record : kRecords) {
    journal.append(record);
    written.ends.push_back(std::filesystem::file_size(path));
  }
  written.bytes = read_file(path);
  return written;
}

void overwrite(const std::filesystem::path& path, const std::string& bytes) {
  std::filesystem::remove(path);  // ext4 syncs a file that is truncated and rewritten
  std::ofstream(path, std::ios::binary) << bytes;
}

std::vector<JournalRecord> records_of(const std::filesystem::path& path) {
  return RunJournal(path).records();
}

std::string corruption_in(const std::filesystem::path& path) {
  try {
    const RunJournal journal(path);
  } catch (const CorruptionError& error) {
    return error.what();
  }
  return "no CorruptionError";
}

TEST(RunJournal, ANewJournalIsEmptyAndStaysEmpty) {
  const testing::TempDir dir;
  EXPECT_THAT(records_of(dir / "journal.bin"), IsEmpty());
  EXPECT_THAT(records_of(dir / "journal.bin"), IsEmpty());
}

TEST(RunJournal, RecordsComeBackInOrder) {
  const testing::TempDir dir;
  write_records(dir / "journal.bin");
  EXPECT_THAT(records_of(dir / "journal.bin"), ElementsAreArray(kRecords));
}

TEST(RunJournal, AppendingContinuesAfterReopening) {
  const testing::TempDir dir;
  for (const JournalRecord& record : kRecords) RunJournal(dir / "journal.bin").append(record);
  EXPECT_THAT(records_of(dir / "journal.bin"), ElementsAreArray(kRecords));
}

TEST(RunJournal, CutAtAnyByteItHoldsTheRecordsBeforeTheCut) {
  const testing::TempDir dir;
  const Written written = write_records(dir / "journal.bin");
  for (size_t cut = 0; cut <= written.bytes.size(); ++cut) {
    overwrite(dir / "journal.bin", written.bytes.substr(0, cut));
    size_t whole = 0;
    while (whole < kRecords.size() && written.ends[whole + 1] <= cut) ++whole;
    const std::vector<JournalRecord> prefix(kRecords.begin(), kRecords.begin() + whole);
    ASSERT_THAT(records_of(dir / "journal.bin"), ElementsAreArray(prefix)) << "cut at " << cut;
  }
}

TEST(RunJournal, AfterAnyCutAppendingGoesOn) {
  const testing::TempDir dir;
  const Written written = write_records(dir / "journal.bin");
  const JournalRecord more{"done", 1, "{}"};
  for (size_t cut = 0; cut <= written.bytes.size(); ++cut) {
    overwrite(dir / "journal.bin", written.bytes.substr(0, cut));
    std::vector<JournalRecord> expected;
    {
      RunJournal journal(dir / "journal.bin");
      expected = journal.records();
      journal.append(more);
    }
    expected.push_back(more);
    ASSERT_THAT(records_of(dir / "journal.bin"), ElementsAreArray(expected)) << "cut at " << cut;
  }
}

TEST(RunJournal, AFlippedBitIsNeverValidData) {
  const testing::TempDir dir;
  const Written written = write_records(dir / "journal.bin");
  const size_t last_record = written.ends[kRecords.size() - 1];
  const std::vector<JournalRecord> all_but_last(kRecords.begin(), kRecords.end() - 1);
  for (size_t bit = 0; bit < written.bytes.size() * 8; ++bit) {
    const size_t byte = bit / 8;
    std::string bytes = written.bytes;
    bytes[byte] = static_cast<char>(bytes[byte] ^ (1 << (bit % 8)));
    overwrite(dir / "journal.bin", bytes);
    if (byte < last_record) {
      ASSERT_THROW(RunJournal(dir / "journal.bin"), CorruptionError) << "bit " << bit;
    } else {
      ASSERT_THAT(records_of(dir / "journal.bin"), ElementsAreArray(all_but_last)) << "bit " << bit;
    }
  }
}

TEST(RunJournal, DamageIsReportedWhereTheRecordBegins) {
  const testing::TempDir dir;
  const Written written = write_records(dir / "journal.bin");
  std::string bytes = written.bytes;
  bytes[written.ends[1] + 3] = '\x7f';  // highest byte of the second record's length
  overwrite(dir / "journal.bin", bytes);
  const std::string message = corruption_in(dir / "journal.bin");
  EXPECT_THAT(message, HasSubstr("byte " + std::to_string(written.ends[1]) + ":"));
  EXPECT_THAT(message, HasSubstr("at byte " + std::to_string(written.ends[2])));
  EXPECT_EQ(read_file(dir / "journal.bin"), bytes) << "a damaged journal is left as it is";
}

// A crash may leave the new length of a file without the new data: zeros, or what was there before.
TEST(RunJournal, ATailOfZerosOrTrashIsTorn) {
  const testing::TempDir dir;
  const Written written = write_records(dir / "journal.bin");
  for (const char fill : {'\0', '\xff', 'x'}) {
    overwrite(dir / "journal.bin", written.bytes + std::string(5000, fill));
    EXPECT_THAT(records_of(dir / "journal.bin"), ElementsAreArray(kRecords));
    EXPECT_EQ(read_file(dir / "journal.bin"), written.bytes);
  }
}

TEST(RunJournal, AnotherFormatIsRefused) {
  const testing::TempDir dir;
  overwrite(dir / "short", "hello");
  overwrite(dir / "long", "this is a text of someone else's");
  EXPECT_THAT(corruption_in(dir / "short"), HasSubstr("magic"));
  EXPECT_THAT(corruption_in(dir / "long"), HasSubstr("magic"));
  EXPECT_EQ(read_file(dir / "long"), "this is a text of someone else's");
}

TEST(RunJournal, ANewerVersionIsRefusedByItsNumber) {
  const testing::TempDir dir;
  std::string bytes = write_records(dir / "journal.bin").bytes;
  bytes[8] = 2;
  overwrite(dir / "journal.bin", bytes);
  EXPECT_THAT(corruption_in(dir / "journal.bin"),
              HasSubstr("byte 8: expected format version 1, found 2"));
}

TEST(RunJournal, AnAbsentDirectoryIsAnIoError) {
  const testing::TempDir dir;
  EXPECT_THROW(RunJournal(dir / "absent" / "journal.bin"), IoError);
}

TEST(RunJournal, ARelativePathWithoutDirectoryWorks) {
  const std::filesystem::path path =
      "run_journal_test." + std::to_string(getpid()) + ".journal.bin";
  RunJournal(path).append(kRecords[0]);
  EXPECT_THAT(records_of(path), ElementsAre(kRecords[0]));
  std::filesystem::remove(path);
}

/// Makes the kernel refuse to write beyond a size, with EFBIG instead of a signal.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    getrlimit(RLIMIT_FSIZE, &before_);
    rlimit limited = before_;
    limited.rlim_cur = bytes;
    setrlimit(RLIMIT_FSIZE, &limited);
    handler_ = std::signal(SIGXFSZ, SIG_IGN);
  }
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_{};
  void (*handler_)(int) = nullptr;
};

TEST(RunJournal, AnAppendThatFailsMidwayDoesNotPoisonLaterOnes) {
  const testing::TempDir dir;
  RunJournal journal(dir / "journal.bin");
  journal.append(kRecords[0]);
  const std::string before = read_file(dir / "journal.bin");
  {
    const FileSizeLimit disk_full(before.size() + 5);
    EXPECT_THROW(journal.append(kRecords[2]), IoError);
  }
  EXPECT_EQ(read_file(dir / "journal.bin"), before);
  journal.append(kRecords[1]);
  const std::filesystem::path copy = dir / "copy.bin";
  std::filesystem::copy_file(dir / "journal.bin", copy);
  EXPECT_THAT(records_of(copy), ElementsAre(kRecords[0], kRecords[1]));
}

TEST(RunJournal, ASecondOpeningNamesTheProcessThatWorks) {
  const testing::TempDir dir;
  const RunJournal journal(dir / "journal.bin");
  try {
    const RunJournal second(dir / "journal.bin");
    FAIL() << "two journals on one file";
  } catch (const IoError& error) {
    EXPECT_THAT(error.what(), HasSubstr("journal.bin"));
    EXPECT_THAT(error.what(), HasSubstr("process"));
    EXPECT_THAT(error.what(), HasSubstr("another work directory"));
  }
}

TEST(RunJournal, AnotherProcessIsLockedOutUntilTheFirstLetsGo) {
  const testing::TempDir dir;
  const std::filesystem::path path = dir / "journal.bin";
  const auto opens_in_another_process = [&path] {
    const pid_t child = fork();
    if (child == 0) {
      try {
        const RunJournal journal(path);
        _exit(0);
      } catch (...) {
        _exit(1);
      }
    }
    int status = -1;
    waitpid(child, &status, 0);
    return status == 0;
  };
  {
    const RunJournal journal(path);
    EXPECT_FALSE(opens_in_another_process());
  }
  EXPECT_TRUE(opens_in_another_process());
}

TEST(RunJournal, ThreadsMayAppendTogether) {
  const testing::TempDir dir;
  constexpr int kThreads = 4;
  constexpr int kAppends = 25;
  {
    RunJournal journal(dir / "journal.bin");
    std::vector<std::thread> threads;
    for (int thread = 0; thread < kThreads; ++thread) {
      threads.emplace_back([&journal, thread] {
        for (int i = 0; i < kAppends; ++i) {
          journal.append({"step", static_cast<uint32_t>(thread), std::to_string(i)});
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  std::vector<int> next(kThreads, 0);
  for (const JournalRecord& record : records_of(dir / "journal.bin")) {
    EXPECT_EQ(record.payload, std::to_string(next[record.version]++));
  }
  EXPECT_THAT(next, ::testing::Each(kAppends));
}

// Whatever instant a process is killed at, what it reported as appended is there.
TEST(RunJournal, AKilledProcessLosesNothingItReported) {
  const testing::TempDir dir;
  for (int round = 0; round < 10; ++round) {
    const std::filesystem::path path = dir / ("journal" + std::to_string(round));
    int report[2];
    ASSERT_EQ(pipe(report), 0);
    const pid_t child = fork();
    if (child == 0) {
      RunJournal journal(path);
      for (uint8_t i = 0; i < 250; ++i) {
        journal.append({"block", i, std::string(i * 40, 'x')});
        if (write(report[1], &i, 1) != 1) _exit(1);
      }
      pause();
      _exit(0);
    }
    close(report[1]);
    uint8_t reported = 0;
    for (int i = 0; i <= round * 5; ++i) ASSERT_EQ(read(report[0], &reported, 1), 1);
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    while (read(report[0], &reported, 1) == 1) {
    }
    close(report[0]);
    const std::vector<JournalRecord> records = records_of(path);
    ASSERT_GT(records.size(), reported);
    for (size_t i = 0; i < records.size(); ++i) EXPECT_EQ(records[i].version, i);
  }
}

}  // namespace
}  // namespace coppice
