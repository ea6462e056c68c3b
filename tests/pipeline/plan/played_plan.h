// The facts of a plan, played: a run whose every choice matters.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "pipeline/errors.h"
#include "pipeline/plan/run_plan.h"
#include "tests/support/tiny_llama.h"

namespace coppice::testing {

inline constexpr uint64_t kMiB = uint64_t{1} << 20, kPlenty = uint64_t{1} << 50;

// A block of 0.2 GB: large enough for every choice to matter.
inline Architecture large_llama() {
  Architecture architecture = tiny_llama();
  architecture.dtype = "BF16";
  architecture.hidden = 2048;
  architecture.ffn = 8192;
  for (LinearSpec& linear : architecture.linears) {
    const bool down = linear.role == "down";
    linear.in = down ? architecture.ffn : architecture.hidden;
    linear.out = linear.role == "gate" || linear.role == "up" ? architecture.ffn : 2048;
  }
  for (NormSpec& norm : architecture.norms) norm.size = architecture.hidden;
  return architecture;
}

/// A run of 64 windows on a model of 8 blocks, with plenty of everything.
class PlayedPlan : public ::testing::Test {
 protected:
  PlanInputs inputs() {
    PlanInputs in{architecture_, {recipe_}};
    in.windows = 64;
    in.seqlen = 512;
    in.blocks_to_do = 8;
    in.slot_bytes = 135 * kMiB;
    in.image_bytes = 135 * kMiB;
    in.block_read_bytes = 8 * in.slot_bytes;
    in.outer_bytes = 50 * kMiB;
    in.output_bytes = 8 * in.image_bytes + in.outer_bytes;
    in.process_bytes = 150 * kMiB;
    in.ram_limit = in.scratch_limit = in.output_limit = kPlenty;
    in.ram_limit_name = "--ram-budget";
    in.scratch_limit_name = "free on /scratch";
    in.output_limit_name = "free on /output";
    return in;
  }
  static Rates rates() { return {1e11, 1e11, 5e10, 1e10, 5e7, 1e10, 1e9, 2e9, 1.45, 2e9, 1e9}; }
  static RunPlan with_ram(PlanInputs in, uint64_t bytes) {
    in.ram_limit = bytes;
    in.is_ram_limit_given = true;
    return plan_run(in);
  }
  /// The least budget that is not refused, to a MiB.
  static uint64_t smallest_budget(const PlanInputs& in) {
    uint64_t low = 0, high = kPlenty;
    while (high - low > kMiB) {
      const uint64_t middle = low + (high - low) / 2;
      try {
        with_ram(in, middle);
        high = middle;
      } catch (const BudgetError&) {
        low = middle;
      }
    }
    return high;
  }

  Architecture architecture_ = large_llama();
  Recipe recipe_;
};

/// What a plan is refused with.
inline std::string refusal(const PlanInputs& in) {
  try {
    plan_run(in);
  } catch (const BudgetError& error) {
    return error.what();
  }
  return "not refused";
}

}  // namespace coppice::testing
