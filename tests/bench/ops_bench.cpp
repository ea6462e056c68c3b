// Times our operations beside the same made of ATen's, on one device, and prints JSON.
#include <ATen/TensorOperators.h>
#include <ATen/ops/count_nonzero.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <tuple>
#include <vector>

#include "stages/ops/byte_planes.h"
#include "stages/ops/column_sweep.h"
#include "stages/ops/gram.h"
#include "stages/ops/mask_select.h"
#include "stages/ops/masked_adamw.h"
#include "stages/ops/not_finite.h"

namespace coppice {
namespace {

constexpr int kRounds = 5;
constexpr int64_t kLazyBlock = 128;  // columns, as SparseGPT has them

struct Bench {
  at::Device device;
  int64_t rows, columns;
  nlohmann::json results = nlohmann::json::array();

  at::Tensor randn(at::IntArrayRef shape, at::ScalarType dtype = at::kFloat) const {
    return at::randn(shape, at::TensorOptions(at::kFloat).device(device)).to(dtype);
  }

  /// Of one call: as many are timed together as take a twentieth of a second.
  double seconds_of(const std::function<void()>& work) const {
    using Clock = std::chrono::steady_clock;
    const at::Tensor last = at::zeros({1}, at::TensorOptions(at::kFloat).device(device));
    const auto time = [&](int calls) {
      last.item<float>();  // all before it is done
      const auto begin = Clock::now();
      for (int call = 0; call < calls; ++call) work();
      last.add_(1).item<float>();
      return std::chrono::duration<double>(Clock::now() - begin).count();
    };
    time(1);
    const int calls = std::clamp(static_cast<int>(0.05 / std::max(time(1), 1e-6)), 1, 1000);
    return time(calls) / calls;
  }

  /// Alternating; the medians. Without `aten` there is nothing to compare with.
  void add(const std::string& name, double bytes, const std::function<void()>& ours,
           const std::function<void()>& aten = {}) {
    std::vector<double> own, other;
    for (int round = 0; round < kRounds; ++round) {
      own.push_back(seconds_of(ours));
      if (aten) other.push_back(seconds_of(aten));
    }
    const auto median = [](std::vector<double> seconds) {
      std::sort(seconds.begin(), seconds.end());
      return seconds[seconds.size() / 2];
    };
    nlohmann::json result = {{"op", name}, {"seconds", median(own)}, {"bytes", bytes}};
    if (aten) result["aten_seconds"] = median(other);
    results.push_back(result);
  }
};

void masks(Bench& bench) {
  const at::Tensor scores = bench.randn({bench.rows, bench.columns});
  const auto bytes = double(scores.nbytes());
  bench.add(
      "mask 2:4", bytes, [&] { keep_mask_n_of_m(scores, 2, 4); },
      [&] {
        const at::Tensor groups = scores.view({-1, 4});
        const at::Tensor kept = std::get<1>(groups.topk(2, 1));
        at::zeros_like(groups, at::TensorOptions(at::kBool)).scatter_(1, kept, true);
      });
  bench.add(
      "mask by rows, 50 %", bytes, [&] { keep_mask_by_row(scores, 0.5); },
      [&] {
        const at::Tensor order = std::get<1>(scores.sort(/*stable=*/true, 1));
        const at::Tensor kept = order.narrow(1, bench.columns / 2, bench.columns / 2);
        at::zeros_like(scores, at::TensorOptions(at::kBool)).scatter_(1, kept, true);
      });
  // As SparseGPT's authors find the threshold of a lazy block.
  const at::Tensor block = bench.randn({bench.rows, kLazyBlock});
  bench.add(
      "mask of a lazy block, 50 %", double(block.nbytes()),
      [&] { keep_mask_by_matrix(block, 0.5); },
      [&] {
        const at::Tensor sorted = std::get<0>(block.flatten().sort());
        block.gt(sorted.select(0, block.numel() / 2));
      });
}

void adamw(Bench& bench) {
  AdamWState state;
  state.master = bench.randn({bench.rows, bench.columns});
  state.first_moment = at::zeros_like(state.master);
  state.second_moment = at::zeros_like(state.master);
  state.mask = state.master.gt(0);
  state.compute = state.master.to(at::kBFloat16);
  const at::Tensor gradient = bench.randn({bench.rows, bench.columns}, at::kBFloat16);
  const AdamWStep step{.lr = 1e-4, .step = 3};
  bench.add(
      "masked AdamW", 29.0 * double(gradient.numel()), [&] { masked_adamw(state, gradient, step); },
      [&] {
        const at::Tensor g = gradient.to(at::kFloat);
        state.first_moment.lerp_(g, 1 - step.beta1);
        state.second_moment.mul_(step.beta2).addcmul_(g, g, 1 - step.beta2);
        const at::Tensor root =
            state.second_moment.div(1 - step.beta2 * step.beta2).sqrt_().add_(step.epsilon);
        state.master.addcdiv_(state.first_moment, root, -step.lr).mul_(state.mask);
        state.compute.copy_(state.master);
      });
}

void sweep(Bench& bench) {
  const at::Tensor dense = bench.randn({bench.rows, kLazyBlock});
  const at::Tensor factor =
      (bench.randn({kLazyBlock, kLazyBlock}).mul(0.05) +
       at::eye(kLazyBlock, at::TensorOptions(at::kFloat).device(bench.device)))
          .triu();
  at::Tensor weight = dense.clone(), errors = at::zeros_like(dense);
  bench.add(
      "SparseGPT's sweep of 128 columns, 2:4", double(dense.nbytes()),
      [&] {
        weight.copy_(dense);
        sweep_groups_(weight, errors, factor, 2, 4);
      },
      [&] {
        weight.copy_(dense);
        const at::Tensor diagonal = factor.diagonal();
        at::Tensor pruned;
        for (int64_t column = 0; column < kLazyBlock; ++column) {
          if (column % 4 == 0) {
            const at::Tensor scores =
                weight.narrow(1, column, 4).div(diagonal.narrow(0, column, 4)).square();
            pruned = at::zeros_like(scores, at::TensorOptions(at::kBool))
                         .scatter_(1, std::get<1>(scores.topk(2, 1, /*largest=*/false)), true);
          }
          at::Tensor own = weight.select(1, column);
          const at::Tensor error =
              own.div(diagonal.select(0, column)).mul_(pruned.select(1, column % 4));
          errors.select(1, column).copy_(error);
          own.masked_fill_(pruned.select(1, column % 4), 0);
          const int64_t behind = kLazyBlock - column - 1;
          weight.narrow(1, column + 1, behind)
              .sub_(error.unsqueeze(1).mul(factor.select(0, column).narrow(0, column + 1, behind)));
        }
      });
}

void gram(Bench& bench) {
  const at::Tensor x = bench.randn({bench.rows, bench.columns}, at::kBFloat16);
  at::Tensor sums =
      at::zeros({bench.columns, bench.columns}, at::TensorOptions(at::kFloat).device(bench.device));
  bench.add(
      "Gram matrix of bf16 in fp32", double(x.nbytes()), [&] { add_gram(sums, x); },
      [&] {
        const at::Tensor wide = x.to(at::kFloat);
        sums.addmm_(wide.t(), wide);
      });
}

void planes(Bench& bench) {
  const at::Tensor hidden = bench.randn({bench.rows, bench.columns}, at::kBFloat16);
  const at::Tensor split = split_planes(hidden, hidden.numel());
  const auto bytes = double(hidden.nbytes());
  bench.add("hidden states split into byte planes", bytes,
            [&] { split_planes(hidden, hidden.numel()); });
  bench.add("hidden states joined from byte planes", bytes,
            [&] { join_planes(split, hidden.sizes(), at::kBFloat16); });
}

void finite(Bench& bench) {
  const at::Tensor hidden = bench.randn({bench.rows, bench.columns}, at::kBFloat16);
  at::Tensor count;
  bench.add(
      "hidden states checked for what is not finite", double(hidden.nbytes()),
      [&] { add_not_finite(count, hidden); }, [&] { at::count_nonzero(hidden - hidden); });
}

int run(const std::vector<std::string>& arguments) {
  if (arguments.size() != 3) {
    std::cerr << "usage: ops_bench DEVICE ROWS COLUMNS\n";
    return 2;
  }
  Bench bench{at::Device(arguments[0]), std::stoll(arguments[1]), std::stoll(arguments[2])};
  masks(bench);
  adamw(bench);
  sweep(bench);
  gram(bench);
  planes(bench);
  finite(bench);
  std::cout << bench.results.dump(1) << '\n';
  return 0;
}

}  // namespace
}  // namespace coppice

int main(int argc, char** argv) {
  try {
    return coppice::run({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    std::cerr << "ops_bench: " << error.what() << '\n';
    return 1;
  }
}
