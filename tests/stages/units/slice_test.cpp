// Sizes that are left, what has no one shape, and outputs that are those of the masked block.
#include "stages/units/slice.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/randn.h>
#include <gmock/gmock.h>

#include <stdexcept>

#include "stages/calibrate.h"
#include "stages/prune_units.h"
#include "tests/support/tiny_moe.h"
#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::IsCloseTo;
using ::testing::IsEmpty;
using ::testing::Pair;
using ::testing::ThrowsMessage;
using testing::tiny_llama;
using testing::TinySpan;

Architecture with_keys(Architecture architecture) {
  architecture.size_keys = {{"ffn", "intermediate_size"},
                            {"heads", "num_attention_heads"},
                            {"kv_heads", "num_key_value_heads"},
                            {"head_dim", "head_dim"}};
  return architecture;
}

PruneOptions options_with(double ffn, double heads, HeadUnits how = HeadUnits::kBalanced) {
  PruneOptions options;
  options.method = PruneMethod::kMagnitudeSp;
  options.ffn_sparsity = ffn;
  options.head_sparsity = heads;
  options.head_units = how;
  return options;
}

PruneOptions options_without_layers(double share) {
  PruneOptions options;
  options.method = PruneMethod::kSimilarity;
  options.layer_sparsity = share;
  return options;
}

std::vector<int64_t> shape(const Architecture& architecture, const std::string& role) {
  return {architecture.linear(role).out, architecture.linear(role).in};
}

TEST(SlicedArchitecture, HasFewerBlocksWhereLayersGo) {
  Architecture dense = with_keys(tiny_llama(10));
  dense.size_keys["blocks"] = "num_hidden_layers";
  const Architecture sliced = sliced_architecture(dense, options_without_layers(0.3));
  EXPECT_EQ(sliced.num_blocks, 7);
  EXPECT_EQ(shape(sliced, "q"), shape(dense, "q"));
  EXPECT_THAT(sliced_sizes(dense, sliced), ElementsAre(Pair("num_hidden_layers", 7)));
}

TEST(SlicedArchitecture, NormsThatWouldStayWhereALayerIsZeroAreRefused) {
  Architecture dense = with_keys(tiny_llama(10));
  dense.size_keys["blocks"] = "num_hidden_layers";
  dense.norms.front().role = "after_attention";
  EXPECT_THAT([&] { sliced_architecture(dense, options_without_layers(0.3)); },
              ThrowsMessage<std::invalid_argument>(HasSubstr("write the output masked")));
}

TEST(SlicedArchitecture, HasSmallerMatricesAndSaysSoInItsConfig) {
  const Architecture dense = with_keys(tiny_llama(2));
  const Architecture sliced = sliced_architecture(dense, options_with(1.0 / 3, 0.5));
  EXPECT_THAT(shape(sliced, "gate"), ElementsAre(22, 20));
  EXPECT_THAT(shape(sliced, "up"), ElementsAre(22, 20));
  EXPECT_THAT(shape(sliced, "down"), ElementsAre(20, 22));
  EXPECT_THAT(shape(sliced, "q"), ElementsAre(12, 20));
  EXPECT_THAT(shape(sliced, "k"), ElementsAre(12, 20));
  EXPECT_THAT(shape(sliced, "o"), ElementsAre(20, 12));
  EXPECT_THAT(sliced_sizes(dense, sliced),
              ElementsAre(Pair("head_dim", 6), Pair("intermediate_size", 22),
                          Pair("num_attention_heads", 2), Pair("num_key_value_heads", 2)));
}

TEST(SlicedArchitecture, WholeKeyValueHeadsTakeTheirQueriesAlong) {
  const Architecture dense = with_keys(tiny_llama());
  const Architecture sliced = sliced_architecture(dense, options_with(0, 0.5, HeadUnits::kGroup));
  EXPECT_THAT(shape(sliced, "q"), ElementsAre(12, 20));
  EXPECT_THAT(shape(sliced, "v"), ElementsAre(6, 20));
  EXPECT_EQ(sliced.kv_heads, 1);
  EXPECT_THAT(shape(sliced, "gate"), ElementsAre(33, 20));
}

TEST(SlicedArchitecture, LlamasWantANumberOfHeadsThatDividesTheHiddenSize) {
  Architecture dense = with_keys(tiny_llama());
  dense.units.at("heads").divides_hidden = true;
  EXPECT_NO_THROW(sliced_architecture(dense, options_with(0, 0.5)));  // 2 of 20
  dense.hidden = 21;
  EXPECT_THAT([&] { sliced_architecture(dense, options_with(0, 0.5)); },
              ThrowsMessage<std::invalid_argument>(HasSubstr("2 heads would be left")));
}

TEST(SlicedArchitecture, NothingRemovedIsTheSame) {
  const Architecture dense = with_keys(tiny_llama());
  const Architecture sliced = sliced_architecture(dense, options_with(0, 0));
  EXPECT_THAT(sliced_sizes(dense, sliced), IsEmpty());
  EXPECT_THAT(shape(sliced, "down"), ElementsAre(20, 33));
}

struct Refused {
  PruneOptions options;
  bool has_keys;
  std::string said;
};

class SlicedArchitectureRefuses : public ::testing::TestWithParam<Refused> {};

TEST_P(SlicedArchitectureRefuses, WhatHasNoOneShape) {
  const Architecture dense = GetParam().has_keys ? with_keys(tiny_llama(2)) : tiny_llama(2);
  EXPECT_THAT([&] { sliced_architecture(dense, GetParam().options); },
              ThrowsMessage<std::invalid_argument>(HasSubstr(GetParam().said)));
}

PruneOptions of_one_block(PruneOptions options) {
  options.ignore = {"re:.*layers\\.1\\."};
  return options;
}

INSTANTIATE_TEST_SUITE_P(Reasons, SlicedArchitectureRefuses,
                         ::testing::Values(Refused{options_with(0, 0.5, HeadUnits::kQuery), true,
                                                   "choose head_units balanced or group"},
                                           Refused{of_one_block(options_with(0.5, 0)), true,
                                                   "blocks keep from 16 to 33 of 33 neurons"},
                                           Refused{of_one_block(options_with(0.5, 0)), true,
                                                   "width is 24, by prune.ffn_sparsity: 0.2576"},
                                           Refused{options_with(0, 0.5), false, "no key for heads"},
                                           Refused{options_with(0.5, 0), false, "no key for ffn"}));

/// The block with removed units as zeros, and the same cut out, on the same input.
void expect_same_output(Architecture described, const PruneOptions& options) {
  TinySpan span(with_keys(std::move(described)), 3, at::kFloat, at::kFloat);
  span.variant() = {};
  WindowJob window{span.job, {0, 2}, &span.variant()};
  PruneUnits(options).run(window);
  const Architecture& dense = span.architecture;
  const Architecture sliced = sliced_architecture(dense, options);
  const auto slices = slices_of(dense, 0, span.variant().kept_units);
  const auto masked_tensor = [&](const std::string& name) {
    const auto adapted = span.variant().adapted.find(name);
    if (adapted != span.variant().adapted.end()) return adapted->second;
    for (const LinearSpec& spec : dense.linears) {
      const Linear& linear = span.job.dense[0].linears.at(spec.role);
      if (name == in_block(dense, 0, spec.name) + ".weight") return linear.weight;
      if (name == in_block(dense, 0, spec.name) + ".bias") return linear.bias;
    }
    if (dense.experts.count > 0 && name == router_tensor(dense, 0)) return span.job.dense[0].router;
    for (const NormSpec& spec : dense.norms) {
      if (name == in_block(dense, 0, spec.name) + ".weight") {
        return span.job.dense[0].norms.at(spec.role).gain;
      }
    }
    throw std::logic_error(name);
  };
  const auto cut_tensor = [&](const std::string& name) {
    const auto slice = slices.find(name);
    const at::Tensor tensor = masked_tensor(name);
    return slice == slices.end() ? tensor
                                 : tensor.index_select(slice->second.dim, slice->second.index);
  };
  for (const NamedShape& tensor : block_tensors(sliced, 0)) {
    EXPECT_EQ(cut_tensor(tensor.name).sizes().vec(), tensor.shape) << tensor.name;
  }
  MicroBatch masked{span.boundaries.held[0][0], {TinySpan::kSeqlen}}, cut = masked;
  for (int half = 0; half < 2; ++half) {
    masked.hidden =
        forward_half(half, dense, gather_block(dense, 0, masked_tensor), span.rotary, masked);
    cut.hidden = forward_half(half, sliced, gather_block(sliced, 0, cut_tensor), span.rotary, cut);
    EXPECT_THAT(cut.hidden, IsCloseTo(masked.hidden)) << half;
  }
}

TEST(Slices, TheCutBlockComputesWhatTheMaskedOneDoes) {
  for (const HeadUnits how : {HeadUnits::kBalanced, HeadUnits::kGroup}) {
    expect_same_output(tiny_llama(), options_with(0.4, 0.5, how));
  }
  expect_same_output(testing::tiny_moe(), options_with(0.4, 0.5));
}

}  // namespace
}  // namespace coppice
