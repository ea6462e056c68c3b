#include "pipeline/plan/compute_probe.h"

#include <ATen/ops/add.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/rand.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <map>
#include <utility>
#include <vector>

#include "stages/model/half_cost.h"
#include "stages/ops/grouped_attention.h"
#include "stages/ops/mask_select.h"
#include "storage/io/aligned_buffer.h"

namespace coppice {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kSeconds = 0.12;  // spent on each measurement

/// How large what is measured is: on a processor a call takes some milliseconds anyway. A GPU wants
/// whole matrices to fill it, sums beyond what its caches hold, and many calls for a wait, which
/// takes as long as some of them.
struct Sizes {
  double product_flop = 1e10;
  int64_t elements = int64_t{4} << 20;  // of a matrix, and of a sum, at most
  int64_t selected = int64_t{1} << 20;  // scores
  int64_t attended = 1;                 // sequences, at most
  int calls = 1;                        // for a wait

  static Sizes of(const Device& device, uint64_t most_bytes) {
    if (device.is_host()) return {};
    const auto most = int64_t(most_bytes / (4 * sizeof(float)));  // operands, result, one more
    return {1e12, std::min(int64_t{256} << 20, most), std::min(int64_t{64} << 20, most), 8, 16};
  }
};

/// Median seconds of one call. The first one, which chooses and packs, is not counted.
double seconds_of(const Device& device, int calls, const std::function<void()>& call) {
  const auto once = [&] {
    const auto start = Clock::now();
    for (int i = 0; i < calls; ++i) call();
    device.finish();
    return std::chrono::duration<double>(Clock::now() - start).count() / calls;
  };
  once();
  std::vector<double> seconds;
  for (double total = 0; total < kSeconds || seconds.size() < 3; total += calls * seconds.back()) {
    seconds.push_back(once());
  }
  std::nth_element(seconds.begin(), seconds.begin() + long(seconds.size() / 2), seconds.end());
  return seconds[seconds.size() / 2];
}

class Probe {
 public:
  Probe(const Device& device, const Architecture& architecture, at::ScalarType compute,
        int64_t seqlen, uint64_t most_bytes)
      : device_(device),
        sizes_(Sizes::of(device, most_bytes)),
        architecture_(architecture),
        options_(at::TensorOptions().dtype(compute).device(device.where())),
        seqlen_(seqlen) {}

  double product_rate(Half half) const {
    double flop = 0, seconds = 0;
    std::map<std::pair<int64_t, int64_t>, double> rate_of;  // by shape: gate and up are alike
    for (const LinearSpec& linear : architecture_.linears) {
      if (linear.half != half) continue;
      double& rate = rate_of[{linear.in, linear.out}];
      if (rate == 0) rate = linear_rate(linear.in, linear.out, tokens_of(linear));
      const double share = double(linear.in) * double(linear.out);
      flop += share;
      seconds += share / rate;
    }
    return flop / seconds;
  }

  double attention_rate() const {
    // One key-value group: heads are alike, and 64 of them take a second on a CPU.
    const int64_t group = architecture_.heads / architecture_.kv_heads;
    const int64_t kv_heads = std::min<int64_t>(architecture_.kv_heads, 4);
    const int64_t sequence = group * kv_heads * seqlen_ * architecture_.head_dim;  // elements
    const int64_t batch = std::clamp<int64_t>(sizes_.elements / sequence, 1, sizes_.attended);
    const auto heads = [&](int64_t count) {
      return at::full({batch, count, seqlen_, architecture_.head_dim}, 0.5, options_);
    };
    const at::Tensor q = heads(group * kv_heads), k = heads(kv_heads), v = heads(kv_heads);
    const double seconds =
        seconds_of(device_, sizes_.calls, [&] { grouped_attention(q, k, v, {}, Causal::kYes); });
    return 2.0 * double(batch) * double(seqlen_) * double(sequence) / seconds;
  }

  double touch_rate() const {
    // Beyond what caches hold, as the optimiser's states are; the result is new memory, as results
    // are.
    const at::Tensor a = at::full({sizes_.elements}, 1.0, options_),
                     b = at::full({sizes_.elements}, 2.0, options_);
    const double seconds = seconds_of(device_, sizes_.calls, [&] { at::add(a, b); });
    return 3.0 * double(sizes_.elements) * double(a.element_size()) / seconds;
  }

  double selection_rate() const {
    const int64_t in = architecture_.hidden;
    const int64_t out = std::clamp<int64_t>(sizes_.selected / in, 1, architecture_.ffn);
    const at::Tensor scores = at::rand({out, in}, options_.dtype(at::kFloat));
    const double seconds =
        seconds_of(device_, sizes_.calls, [&] { keep_mask_by_row(scores, 0.5); });
    return double(in * out) / seconds;
  }

 private:
  /// Of a window, those that go through the linear.
  int64_t tokens_of(const LinearSpec& linear) const {
    const double share = architecture_.share_of_tokens(linear);
    return std::max<int64_t>(1, std::lround(share * double(seqlen_)));
  }

  double linear_rate(int64_t in, int64_t out, int64_t most_tokens) const {
    out = std::clamp<int64_t>(sizes_.elements / in, 1, out);
    const auto flop_a_token = 2.0 * double(in) * double(out);
    const int64_t tokens = std::clamp<int64_t>(int64_t(sizes_.product_flop / flop_a_token),
                                               std::min<int64_t>(16, most_tokens), most_tokens);
    const at::Tensor x = at::full({tokens, in}, 0.5, options_);
    const at::Tensor w = at::full({out, in}, 0.5, options_);
    return double(tokens) * flop_a_token /
           seconds_of(device_, sizes_.calls, [&] { at::linear(x, w); });
  }

  const Device& device_;
  Sizes sizes_;
  const Architecture& architecture_;
  at::TensorOptions options_;
  int64_t seqlen_;
};

}  // namespace

void probe_new_memory(uint64_t most_bytes, Rates& rates) {
  constexpr uint64_t kPieceBytes = uint64_t{4} << 20;
  constexpr size_t kPageBytes = 4096;
  const auto start = Clock::now();
  const auto seconds = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
  std::vector<AlignedBuffer> pieces;
  for (uint64_t bytes = 0; bytes + kPieceBytes <= most_bytes && seconds() < 0.5;) {
    const std::span<std::byte> piece = pieces.emplace_back(kPieceBytes).span();
    for (size_t i = 0; i < piece.size(); i += kPageBytes) piece[i] = std::byte{1};
    bytes += kPieceBytes;
    rates.new_memory_bytes = double(bytes) / seconds();
  }
}

void probe_compute(const Device& device, const Architecture& architecture, at::ScalarType compute,
                   int64_t seqlen, uint64_t most_bytes, Rates& rates) {
  const Probe probe(device, architecture, compute, seqlen, most_bytes);
  rates.attention_product_flop = probe.product_rate(Half::kAttention);
  rates.mlp_product_flop = probe.product_rate(Half::kMlp);
  rates.attention_flop = probe.attention_rate();
  rates.touched_bytes = probe.touch_rate();
  rates.selected_weights = probe.selection_rate();
}

}  // namespace coppice
