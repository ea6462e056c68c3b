// Moves a checkpoint and a cache through the storage library as the program does, one job a call,
// so that scripts/bench_io.sh can alternate it with fio. Prints one line of key=value.
#include <fmt/format.h>
#include <malloc.h>
#include <sys/resource.h>
#include <xxhash.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <deque>
#include <filesystem>
#include <future>
#include <iostream>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <semaphore>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "storage/cache/activation_cache.h"
#include "storage/checkpoint/checkpoint_reader.h"
#include "storage/checkpoint/checkpoint_writer.h"
#include "storage/io/aligned_buffer.h"
#include "storage/io/io_engine.h"
#include "storage/io/read_plan.h"
#include "storage/io/read_progress.h"  // read_blocking

namespace coppice {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kShardBytes = 512 * kMiB;
constexpr int64_t kSlots = 2;  // as many as the program has by default

/// Wall and CPU time of this process since construction, and what came of it.
class Timing {
 public:
  void print(uint64_t bytes, const std::string& features) const {
    const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
    std::cout << fmt::format("bytes={} seconds={:.4f} cpu_seconds={:.4f} features={}\n", bytes,
                             seconds, cpu_seconds() - cpu_, features);
  }

 private:
  using Clock = std::chrono::steady_clock;
  static double cpu_seconds() {
    rusage used{};
    getrusage(RUSAGE_SELF, &used);
    const auto seconds = [](const timeval& t) {
      return double(t.tv_sec) + double(t.tv_usec) * 1e-6;
    };
    return seconds(used.ru_utime) + seconds(used.ru_stime);
  }
  Clock::time_point start_ = Clock::now();
  double cpu_ = cpu_seconds();
};

/// Bytes that neither a codec nor a drive can make fewer.
void fill_with_noise(std::span<std::byte> bytes) {
  std::mt19937_64 random(1);
  for (size_t i = 0; i + 8 <= bytes.size(); i += 8) {
    const uint64_t word = random();
    std::memcpy(bytes.data() + i, &word, sizeof word);
  }
}

/// Activations as bf16: a normal distribution, whose exponents compress and whose mantissas do not.
void fill_with_activations(std::span<std::byte> bytes) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (size_t i = 0; i + 2 <= bytes.size(); i += 2) {
    const float value = normal(random);
    uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof bits);
    const auto half = static_cast<uint16_t>(bits >> 16);
    std::memcpy(bytes.data() + i, &half, sizeof half);
  }
}

/// The tensors of one block of a Llama with a hidden size of 2,048; about 134 MiB.
std::vector<TensorSpec> block_tensors(int block) {
  const std::string prefix = fmt::format("model.layers.{}.", block);
  const auto linear = [&](const char* name, int64_t out, int64_t in) {
    return TensorSpec{prefix + name + ".weight", "BF16", {out, in}};
  };
  return {{prefix + "input_layernorm.weight", "BF16", {2048}},
          linear("mlp.down_proj", 2048, 8192),
          linear("mlp.gate_proj", 8192, 2048),
          linear("mlp.up_proj", 8192, 2048),
          {prefix + "post_attention_layernorm.weight", "BF16", {2048}},
          linear("self_attn.k_proj", 1024, 2048),
          linear("self_attn.o_proj", 2048, 2048),
          linear("self_attn.q_proj", 2048, 2048),
          linear("self_attn.v_proj", 1024, 2048)};
}

uint64_t bytes_of(const std::vector<TensorSpec>& tensors) {
  uint64_t bytes = 0;
  for (const TensorSpec& tensor : tensors) bytes += tensor.bytes();
  return bytes;
}

/// Blocks in the shards that are to be there in the end: a block may begin in one shard and end in
/// the next, as in checkpoints of others.
std::vector<std::vector<TensorSpec>> shards_of(uint64_t total_bytes) {
  std::vector<std::vector<TensorSpec>> shards(1);
  uint64_t in_shard = 0, total = 0;
  for (int block = 0; total < total_bytes; ++block) {
    for (const TensorSpec& tensor : block_tensors(block)) {
      if (in_shard + tensor.bytes() > kShardBytes) {
        shards.emplace_back();
        in_shard = 0;
      }
      shards.back().push_back(tensor);
      in_shard += tensor.bytes();
      total += tensor.bytes();
    }
  }
  return shards;
}

/// Writes a checkpoint shard by shard from one image, as the program does. Fills the image before
/// the clock starts.
void write_checkpoint(const fs::path& directory, uint64_t total_bytes) {
  fs::create_directories(directory);
  const auto shards = shards_of(total_bytes);
  uint64_t largest = 0;
  for (const auto& tensors : shards) {
    largest = std::max(largest, ShardImage::bytes_needed(tensors));
  }
  const AlignedBuffer memory(largest);
  fill_with_noise(memory.span());
  const Timing timing;
  std::map<std::string, std::string> shard_of_tensor;
  uint64_t written = 0, tensor_bytes = 0;
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name = shard_name(static_cast<int>(i), static_cast<int>(shards.size()));
    const ShardImage image(memory.span(), shards[i]);
    written += write_shard(directory / name, image.bytes()).bytes;
    for (const TensorSpec& tensor : shards[i]) shard_of_tensor[tensor.name] = name;
    tensor_bytes += bytes_of(shards[i]);
  }
  write_index(directory, shard_of_tensor, tensor_bytes);
  timing.print(written, "direct");
}

std::future<void> submit(IoEngine& engine, const CheckpointReader& checkpoint, const ReadPlan& plan,
                         std::span<std::byte> slot) {
  ReadBatch batch;
  for (const PlannedRead& read : plan.reads) {
    batch.reads.push_back({.file = checkpoint.files()[read.file].get(),
                           .offset = read.offset,
                           .into = slot.subspan(read.slot_offset, read.bytes),
                           .required_bytes = read.required_bytes});
  }
  auto done = std::make_shared<std::promise<void>>();
  std::future<void> arrival = done->get_future();
  engine.submit(std::move(batch), [done](ReadBatch, std::exception_ptr failure) {
    if (failure != nullptr) {
      done->set_exception(failure);
    } else {
      done->set_value();
    }
  });
  return arrival;
}

/// Reads a checkpoint block by block into slots, the next while the last arrives.
void read_checkpoint(const fs::path& directory, uint64_t read_bytes, const std::string& how) {
  const CheckpointReader checkpoint(directory);
  std::vector<std::string> fallbacks;
  IoEngineOptions options;
  if (how == "pread") options.engine = EngineChoice::kPread;
  options.on_fallback = [&](const std::string& message) { fallbacks.push_back(message); };
  const auto engine = make_io_engine(options);

  std::vector<ReadPlan> plans;
  uint64_t slot_bytes = 0, bytes = 0;
  const std::vector<uint64_t> file_bytes = checkpoint.file_bytes();
  ReadPlanOptions plan_options;
  if (read_bytes > 0) plan_options.max_read_bytes = read_bytes;
  for (int block = 0; checkpoint.has(block_tensors(block)[0].name); ++block) {
    std::vector<Extent> wanted;
    for (const TensorSpec& tensor : block_tensors(block)) {
      wanted.push_back(checkpoint.extent(tensor.name));
    }
    plans.push_back(plan_reads(wanted, file_bytes, plan_options));
    slot_bytes = std::max(slot_bytes, plans.back().slot_bytes);
    bytes += plans.back().slot_bytes;
  }
  std::vector<AlignedBuffer> slots;
  LongLived long_lived;
  for (int64_t i = 0; i < kSlots; ++i) {
    slots.emplace_back(slot_bytes);
    std::memset(slots.back().data(), 0, slot_bytes);  // resident, as after the first block
    long_lived.memory.push_back(slots.back().span());
  }
  for (const auto& file : checkpoint.files()) long_lived.files.push_back(file.get());
  Registration registration;
  if (how != "plain") registration = engine->register_long_lived(long_lived);

  const Timing timing;
  std::deque<std::future<void>> under_way;
  for (size_t block = 0; block < plans.size(); ++block) {
    if (under_way.size() == static_cast<size_t>(kSlots)) {
      under_way.front().get();
      under_way.pop_front();
    }
    under_way.push_back(submit(*engine, checkpoint, plans[block],
                               slots[block % static_cast<size_t>(kSlots)].span()));
  }
  for (std::future<void>& arrival : under_way) arrival.get();
  std::string features =
      fmt::format("{},{},{}-buffers,{}-files", engine->name(),
                  checkpoint.files().front()->is_direct() ? "direct" : "buffered",
                  registration.memory_bytes == kSlots * slot_bytes ? "registered" : "plain",
                  registration.files == checkpoint.files().size() ? "registered" : "plain");
  if (engine->name() == "io_uring") {
    const bool deferred = std::ranges::none_of(fallbacks, [](const std::string& message) {
      return message.find("deferred task work") != std::string::npos;
    });
    features += deferred ? ",DEFER_TASKRUN" : ",no-DEFER_TASKRUN";
  }
  timing.print(bytes, features);
  for (const std::string& message : fallbacks) std::cerr << message << '\n';
}

/// Encodes one chunk after the other on a thread of its own, one ahead of whoever takes them.
class Encoder {
 public:
  Encoder(std::span<const std::byte> elements, int element_bytes, int64_t num_chunks)
      : thread_([this, elements, element_bytes, num_chunks] {
          for (int64_t i = 0; i < num_chunks; ++i) {
            EncodedChunk chunk = encode_chunk(elements, element_bytes);
            empty_.acquire();
            chunk_ = std::move(chunk);
            full_.release();
          }
        }) {}
  ~Encoder() { thread_.join(); }
  Encoder(const Encoder&) = delete;
  Encoder& operator=(const Encoder&) = delete;

  EncodedChunk take() {
    full_.acquire();
    EncodedChunk chunk = std::move(chunk_);
    empty_.release();
    return chunk;
  }

 private:
  std::binary_semaphore empty_{1};
  std::binary_semaphore full_{0};
  EncodedChunk chunk_;
  std::thread thread_;
};

void reserve_and_write(ActivationCacheWriter& writer, int64_t window, const EncodedChunk& chunk) {
  writer.reserve(chunk.bytes.size());
  writer.write(window, chunk);
}

/// Writes one boundary of windows of [1024, 2048] bf16: 4 MiB each. Raw: written as they are.
/// Compressed: two threads encode ahead, as in the program.
void write_cache(const fs::path& path, uint64_t total_bytes, const std::string& how) {
  const ActivationShape shape{static_cast<int64_t>(total_bytes / (8 * kMiB) * 2), 1024, 2048,
                              "BF16"};
  std::vector<std::byte> elements(shape.chunk_bytes());
  fill_with_activations(elements);
  const EncodedChunk raw{elements, false, XXH3_64bits(elements.data(), elements.size())};
  const Timing timing;
  ActivationCacheWriter writer(path, shape);
  if (how == "raw") {
    for (int64_t window = 0; window < shape.windows; ++window)
      reserve_and_write(writer, window, raw);
  } else {
    std::deque<Encoder> encoders;
    for (int i = 0; i < 2; ++i) {
      encoders.emplace_back(elements, shape.element_bytes(), shape.windows / 2);
    }
    for (int64_t window = 0; window < shape.windows; ++window) {
      reserve_and_write(writer, window, encoders[static_cast<size_t>(window % 2)].take());
    }
  }
  const uint64_t stored = writer.stored_bytes();
  writer.finish();
  const auto raw_bytes = static_cast<double>(shape.chunk_bytes()) * double(shape.windows);
  timing.print(stored,
               fmt::format("buffered,write-behind,{:.2f}-to-1", raw_bytes / double(stored)));
}

/// Decodes and encodes every window of a cache file, in memory, on this thread, laid out as a CPU
/// and as a GPU has it: each the fastest of five times, as other work on the machine only adds.
void code_cache(const fs::path& path) {
  const ActivationCacheReader reader(path);
  const ActivationShape& shape = reader.shape();
  std::vector<std::byte> elements(shape.chunk_bytes());
  struct Seconds {
    double encoding = 0, decoding = 0;
  };
  std::map<ChunkLayout, Seconds> seconds = {{ChunkLayout::kElements, {}},
                                            {ChunkLayout::kPlanes, {}}};
  double raw = 0, stored = 0;
  const auto fastest = [](auto work) {
    using Clock = std::chrono::steady_clock;
    double best = std::numeric_limits<double>::infinity();
    for (int i = 0; i < 5; ++i) {
      const auto start = Clock::now();
      work();
      best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
    }
    return best;
  };
  for (int64_t window = 0; window < shape.windows; ++window) {
    const ChunkLocation& place = reader.chunk(window);
    const uint64_t align = reader.file().alignment();
    const uint64_t begin = place.offset / align * align;
    const uint64_t end = place.offset + place.stored_bytes;
    const AlignedBuffer buffer((end - begin + align - 1) / align * align);
    read_blocking({&reader.file(), begin, buffer.span(), end - begin});
    const auto chunk = buffer.span().subspan(place.offset - begin, place.stored_bytes);
    for (auto& of_layout : seconds) {
      const ChunkLayout layout = of_layout.first;
      of_layout.second.decoding += fastest([&] { reader.decode(window, chunk, elements, layout); });
      of_layout.second.encoding +=
          fastest([&] { encode_chunk(elements, shape.element_bytes(), layout); });
    }
    raw += double(shape.chunk_bytes());
    stored += double(place.stored_bytes);
  }
  fmt::print("{} windows of {} KiB: {:.3f} to 1\n", shape.windows, shape.chunk_bytes() >> 10,
             raw / stored);
  for (const auto& [layout, spent] : seconds) {
    fmt::print("{:<24} {:.2f} GB/s encoded, {:.2f} GB/s decoded\n",
               layout == ChunkLayout::kPlanes ? "split by the device" : "elements",
               raw / spent.encoding * 1e-9, raw / spent.decoding * 1e-9);
  }
}

int run(const std::vector<std::string>& arguments) {
  const auto argument = [&](size_t i) { return i < arguments.size() ? arguments[i] : ""; };
  const auto mib = [&](size_t i) { return std::stoull(argument(i)) * kMiB; };
  if (argument(0) == "write-shards" && arguments.size() == 3) {
    write_checkpoint(argument(1), mib(2));
  } else if (argument(0) == "read" && arguments.size() >= 2) {
    read_checkpoint(argument(1), arguments.size() > 3 ? mib(3) : 0, argument(2));
  } else if (argument(0) == "write-cache" && arguments.size() == 4) {
    write_cache(argument(1), mib(2), argument(3));
  } else if (argument(0) == "code-cache" && arguments.size() == 2) {
    code_cache(argument(1));
  } else {
    std::cerr << "usage: io_bench write-shards DIR MIB\n"
                 "       io_bench read DIR [registered|plain|pread] [READ_MIB]\n"
                 "       io_bench write-cache FILE MIB raw|compressed\n"
                 "       io_bench code-cache FILE\n";
    return 2;
  }
  return 0;
}

}  // namespace
}  // namespace coppice

int main(int argc, char** argv) {
  // The program's allocator keeps large blocks; the C library's would map every chunk anew.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  try {
    return coppice::run({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    std::cerr << "io_bench: " << error.what() << '\n';
    return 1;
  }
}
