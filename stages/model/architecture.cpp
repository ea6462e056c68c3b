#include "stages/model/architecture.h"

#include <stdexcept>

namespace coppice {

const LinearSpec& Architecture::linear(const std::string& role) const {
  for (const LinearSpec& spec : linears) {
    if (spec.role == role) return spec;
  }
  throw std::out_of_range("architecture " + family + " has no linear '" + role + "'");
}

std::string in_block(const Architecture& architecture, int block, const std::string& name) {
  static const std::string kPlaceholder = "{block}";
  std::string prefix = architecture.block_prefix;
  prefix.replace(prefix.find(kPlaceholder), kPlaceholder.size(), std::to_string(block));
  return prefix + name;
}

std::vector<NamedShape> block_tensors(const Architecture& architecture, int block) {
  std::vector<NamedShape> tensors;
  for (const LinearSpec& linear : architecture.linears) {
    const std::string name = in_block(architecture, block, linear.name);
    tensors.push_back({name + ".weight", {linear.out, linear.in}});
    if (linear.has_bias) tensors.push_back({name + ".bias", {linear.out}});
  }
  for (const NormSpec& norm : architecture.norms) {
    tensors.push_back({in_block(architecture, block, norm.name) + ".weight", {norm.size}});
  }
  return tensors;
}

std::vector<NamedShape> outer_tensors(const Architecture& architecture) {
  std::vector<NamedShape> tensors = {
      {architecture.embedding, {architecture.vocab, architecture.hidden}},
      {architecture.final_norm, {architecture.hidden}},
  };
  if (!architecture.tied) {
    tensors.push_back({architecture.head, {architecture.vocab, architecture.hidden}});
  }
  return tensors;
}

}  // namespace coppice
