#include "pipeline/plan/disk_probe.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#include "storage/cache/codec.h"
#include "storage/errors.h"
#include "storage/io/aligned_buffer.h"
#include "storage/io/file.h"

namespace coppice {
namespace {

constexpr double kSeconds = 0.25;  // after which a probe asks for no more
constexpr uint64_t kReadBytes = uint64_t{4} << 20;
constexpr uint64_t kBatchBytes = uint64_t{32} << 20;  // what an engine keeps in flight
constexpr uint64_t kFewWritten = uint64_t{8} << 20, kMostWritten = uint64_t{64} << 20;
constexpr uint64_t kMaxRead = uint64_t{512} << 20;
constexpr size_t kCodecBytes = size_t{4} << 20;

double seconds_of(const std::function<void()>& call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Whole reads of the largest shard, far apart, so that a drive's own cache does not serve them.
std::vector<uint64_t> offsets_in(uint64_t file_bytes) {
  const uint64_t count = std::min(file_bytes, kMaxRead) / kReadBytes;
  std::vector<uint64_t> offsets;
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t at = count > 1 ? (file_bytes - kReadBytes) / (count - 1) * i : 0;
    offsets.push_back(at / kReadBytes * kReadBytes);
  }
  return offsets;
}

double read_rate(const CheckpointReader& checkpoint, IoEngine& engine) {
  const auto& files = checkpoint.files();
  const auto largest =
      std::max_element(files.begin(), files.end(),
                       [](const auto& a, const auto& b) { return a->bytes() < b->bytes(); });
  const ReadFile& file = **largest;
  const std::vector<uint64_t> offsets = offsets_in(file.bytes());
  const auto memory = std::make_shared<AlignedBuffer>(kBatchBytes);
  uint64_t bytes = 0;
  double seconds = 0;
  for (size_t next = 0; next < offsets.size() && seconds < kSeconds;) {
    ReadBatch batch{memory, {}};
    for (uint64_t at = 0; at < kBatchBytes && next < offsets.size(); at += kReadBytes, ++next) {
      batch.reads.push_back(
          {&file, offsets[next], memory->span().subspan(at, kReadBytes), kReadBytes});
      bytes += kReadBytes;
    }
    seconds += seconds_of([&] { read_now(engine, std::move(batch)); });
  }
  return seconds > 0 ? double(bytes) / seconds : 0;
}

/// A file that is written and goes, whatever happens.
class ProbeFile {
 public:
  explicit ProbeFile(const std::filesystem::path& directory)
      : path_(directory / fmt::format(".coppice-probe-{}", getpid())) {}
  ~ProbeFile() {
    std::error_code ignored;
    std::filesystem::remove(path_, ignored);
  }
  ProbeFile(const ProbeFile&) = delete;
  ProbeFile& operator=(const ProbeFile&) = delete;

  /// Seconds until so many bytes, whole pieces, are durable.
  double write(uint64_t bytes) const {
    const std::vector<std::byte> piece(kReadBytes, std::byte{0x5a});
    return seconds_of([&] {
      StagedFile file(path_, bytes);
      for (uint64_t at = 0; at < bytes; at += piece.size()) file.append(piece);
      file.publish();
    });
  }

 private:
  std::filesystem::path path_;
};

double write_rate(const std::filesystem::path& scratch, uint64_t bytes) {
  return double(bytes) / ProbeFile(scratch).write(bytes);
}

/// 0 where not a piece may be written.
double write_rate_within(const std::filesystem::path& scratch, uint64_t most_bytes) {
  const uint64_t most = std::min(most_bytes, kMostWritten) / kReadBytes * kReadBytes;
  const uint64_t few = std::min(most, kFewWritten);
  if (few == 0) return 0;
  const double rate = write_rate(scratch, few);
  const bool is_fast = double(few) / rate < 0.1;  // seconds, too short to tell
  return is_fast && most > few ? write_rate(scratch, most) : rate;
}

}  // namespace

void probe_disk(const CheckpointReader& checkpoint, const std::filesystem::path& scratch,
                uint64_t most_written_bytes, IoEngine& engine, Rates& rates) {
  try {
    rates.written_bytes = write_rate_within(scratch, most_written_bytes);
  } catch (const IoError&) {  // no room, or not ours to write to: the run itself will say
  }
  rates.read_bytes = read_rate(checkpoint, engine);
  if (rates.read_bytes == 0) rates.read_bytes = rates.written_bytes;  // too small to tell
}

void probe_codec(const ActivationShape& shape, ChunkLayout layout, Rates& rates) {
  const int element_bytes = shape.element_bytes();
  std::vector<std::byte> elements(std::min<size_t>(shape.chunk_bytes(), kCodecBytes) /
                                  size_t(element_bytes) * size_t(element_bytes));
  std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  for (size_t at = 0; at < elements.size(); at += size_t(element_bytes)) {
    const auto bits = std::bit_cast<uint32_t>(normal(generator));
    // Of bf16 the upper half; an F16 has other fields and about the same entropy.
    const uint32_t stored = element_bytes == 4 ? bits : bits >> 16;
    std::memcpy(elements.data() + at, &stored, size_t(element_bytes));
  }
  EncodedChunk chunk = encode_chunk(elements, element_bytes);
  double encode = 1e9, decode = 1e9;
  for (double total = 0; total < kSeconds / 2;) {
    decode = std::min(decode, seconds_of([&] {
                        decode_chunk(chunk.bytes, chunk.compressed, chunk.xxh3, element_bytes,
                                     elements, layout);
                      }));
    encode = std::min(encode,
                      seconds_of([&] { chunk = encode_chunk(elements, element_bytes, layout); }));
    total += encode + decode;
  }
  rates.encoded_bytes = double(elements.size()) / encode;
  rates.decoded_bytes = double(elements.size()) / decode;
  rates.codec_ratio = double(elements.size()) / double(chunk.bytes.size());
}

}  // namespace coppice
