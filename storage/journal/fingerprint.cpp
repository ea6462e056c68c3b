#include "storage/journal/fingerprint.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <memory>
#include <new>
#include <string_view>

#include "storage/errors.h"

namespace coppice {
namespace {

constexpr uint64_t kSampleBytes = uint64_t{1} << 20;
constexpr uint64_t kMaxSamples = 16;

struct FreeHash {
  void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
};

/// XXH3-64 over pieces of one file, read buffered: a few MiB at odd offsets are no case for
/// O_DIRECT.
class FileHasher {
 public:
  explicit FileHasher(const ReadFile& file)
      : file_(file.path(), ReadFile::Direct::kNever),
        state_(XXH3_createState()),
        piece_(kSampleBytes) {
    if (state_ == nullptr) throw std::bad_alloc();
    XXH3_64bits_reset(state_.get());
  }

  void add(uint64_t offset, uint64_t bytes) {
    while (bytes > 0) {
      const ssize_t got = pread(file_.fd(), piece_.data(), std::min<uint64_t>(bytes, piece_.size()),
                                static_cast<off_t>(offset));
      if (got < 0 && errno == EINTR) continue;
      const std::string path = file_.path().string();
      if (got < 0) throw IoError("reading a sample", path, errno, offset, bytes);
      if (got == 0) {
        throw CorruptionError(path, offset, fmt::format("{} more bytes of a shard", bytes),
                              "end of file: it was cut short while in use");
      }
      XXH3_64bits_update(state_.get(), piece_.data(), static_cast<size_t>(got));
      offset += static_cast<uint64_t>(got);
      bytes -= static_cast<uint64_t>(got);
    }
  }

  std::string hex() const { return fmt::format("{:016x}", XXH3_64bits_digest(state_.get())); }

 private:
  ReadFile file_;
  std::unique_ptr<XXH3_state_t, FreeHash> state_;
  std::vector<std::byte> piece_;
};

std::string hash_samples(const ReadFile& file, uint64_t data_offset) {
  FileHasher hasher(file);
  const uint64_t data_bytes = file.bytes() - data_offset;
  if (data_bytes <= kMaxSamples * kSampleBytes) {
    hasher.add(data_offset, data_bytes);
    return hasher.hex();
  }
  // The first sample at the first byte, the last one up to the last byte.
  const uint64_t last_start = data_bytes - kSampleBytes;
  for (uint64_t sample = 0; sample < kMaxSamples; ++sample) {
    hasher.add(data_offset + last_start / (kMaxSamples - 1) * sample +
                   last_start % (kMaxSamples - 1) * sample / (kMaxSamples - 1),
               kSampleBytes);
  }
  return hasher.hex();
}

std::string describe_shard(const ReadFile& file, uint64_t data_offset) {
  FileHasher header(file);
  header.add(0, data_offset);
  return fmt::format("bytes={},header={},samples={}", file.bytes(), header.hex(),
                     hash_samples(file, data_offset));
}

/// Its path below the directory: two directories may each have a shard of one name.
std::string name_in(const CheckpointReader& checkpoint, const ReadFile& file) {
  return file.path().lexically_relative(checkpoint.directory()).lexically_normal().string();
}

}  // namespace

Fingerprint fingerprint_checkpoint(const CheckpointReader& checkpoint) {
  Fingerprint fingerprint;
  for (size_t shard = 0; shard < checkpoint.files().size(); ++shard) {
    const ReadFile& file = *checkpoint.files()[shard];
    fingerprint["model.shard." + name_in(checkpoint, file)] =
        describe_shard(file, checkpoint.headers()[shard].data_offset);
  }
  const std::string config = read_file(checkpoint.directory() / "config.json");
  fingerprint["model.config.json"] =
      fmt::format("xxh3={:016x}", XXH3_64bits(config.data(), config.size()));
  return fingerprint;
}

std::string fingerprint_shards(const CheckpointReader& checkpoint) {
  std::string text;
  for (size_t shard = 0; shard < checkpoint.files().size(); ++shard) {
    if (!text.empty()) text += ";";
    text += describe_shard(*checkpoint.files()[shard], checkpoint.headers()[shard].data_offset);
  }
  return text;
}

std::vector<std::string> differing_keys(const Fingerprint& a, const Fingerprint& b) {
  std::vector<std::string> keys;
  for (const auto& [key, value] : a) {
    const auto other = b.find(key);
    if (other == b.end() || other->second != value) keys.push_back(key);
  }
  for (const auto& [key, value] : b) {
    if (!a.contains(key)) keys.push_back(key);
  }
  std::sort(keys.begin(), keys.end());
  return keys;
}

}  // namespace coppice
