#include "stages/model/architecture.h"

#include <algorithm>
#include <stdexcept>

namespace coppice {
namespace {

void add_norm(const Architecture& architecture, const std::string& name, int64_t size,
              std::vector<NamedShape>& tensors) {
  tensors.push_back({name + ".weight", {size}});
  if (architecture.norm_kind == NormKind::kLayer) tensors.push_back({name + ".bias", {size}});
}

}  // namespace

std::string LinearSpec::part() const { return expert < 0 ? role : role.substr(0, role.rfind('.')); }

std::string role_of_expert(const std::string& part, int64_t expert) {
  return part + "." + std::to_string(expert);
}

const LinearSpec& Architecture::linear(const std::string& role) const {
  for (const LinearSpec& spec : linears) {
    if (spec.role == role) return spec;
  }
  throw std::out_of_range("architecture " + family + " has no linear '" + role + "'");
}

const LinearSpec& Architecture::first_linear(Half half) const {
  const auto found = std::find_if(linears.begin(), linears.end(),
                                  [&](const LinearSpec& spec) { return spec.half == half; });
  if (found == linears.end()) throw std::out_of_range("architecture " + family + ": an empty half");
  return *found;
}

const LinearSpec& Architecture::last_linear(Half half) const {
  const auto found = std::find_if(linears.rbegin(), linears.rend(),
                                  [&](const LinearSpec& spec) { return spec.half == half; });
  if (found == linears.rend())
    throw std::out_of_range("architecture " + family + ": an empty half");
  return *found;
}

double Architecture::share_of_tokens(const LinearSpec& linear) const {
  if (linear.expert < 0) return 1;
  return static_cast<double>(experts.per_token) / static_cast<double>(experts.count);
}

int64_t Architecture::attention_window(int block) const {
  return attention_windows.empty() ? 0 : attention_windows.at(static_cast<size_t>(block));
}

std::string in_block(const Architecture& architecture, int block, const std::string& name) {
  static const std::string kPlaceholder = "{block}";
  std::string prefix = architecture.block_prefix;
  prefix.replace(prefix.find(kPlaceholder), kPlaceholder.size(), std::to_string(block));
  return prefix + name;
}

std::string scales_name(const std::string& weight) { return weight + "_scale_inv"; }

std::vector<int64_t> scales_shape(const ScaleBlock& block, const std::vector<int64_t>& weight) {
  return {(weight.at(0) + block.rows - 1) / block.rows,
          (weight.at(1) + block.columns - 1) / block.columns};
}

std::string router_tensor(const Architecture& architecture, int block) {
  return in_block(architecture, block, architecture.experts.router) + ".weight";
}

std::vector<NamedShape> block_tensors(const Architecture& architecture, int block) {
  std::vector<NamedShape> tensors;
  for (const LinearSpec& linear : architecture.linears) {
    const std::string name = in_block(architecture, block, linear.name);
    tensors.push_back({name + ".weight", {linear.out, linear.in}});
    if (linear.has_bias) {
      tensors.push_back({name + ".bias", {linear.out}, linear.bias_is_added});
    }
  }
  if (architecture.experts.count > 0) {
    tensors.push_back(
        {router_tensor(architecture, block), {architecture.experts.count, architecture.hidden}});
  }
  for (const NormSpec& norm : architecture.norms) {
    add_norm(architecture, in_block(architecture, block, norm.name), norm.size, tensors);
  }
  return tensors;
}

std::vector<std::string> add_biases(Architecture& architecture) {
  std::vector<std::string> keys;
  for (LinearSpec& linear : architecture.linears) {
    if (linear.has_bias || linear.bias_key.empty()) continue;
    linear.has_bias = linear.bias_is_added = true;
    if (std::find(keys.begin(), keys.end(), linear.bias_key) == keys.end()) {
      keys.push_back(linear.bias_key);
    }
  }
  return keys;
}

std::optional<int64_t> added_bias(const Architecture& architecture, const std::string& name) {
  for (const LinearSpec& linear : architecture.linears) {
    if (linear.bias_is_added && name.ends_with("." + linear.name + ".bias")) return linear.out;
  }
  return std::nullopt;
}

std::vector<NamedShape> stem_tensors(const Architecture& a) {
  std::vector<NamedShape> tensors;
  if (!a.project_in.empty()) tensors.push_back({a.project_in, {a.hidden, a.width_of_embedding()}});
  if (!a.token_types.empty()) tensors.push_back({a.token_types, {a.num_token_types, a.hidden}});
  if (!a.positions.empty()) {
    tensors.push_back({a.positions, {a.first_position_row + a.max_positions, a.hidden}});
  }
  if (!a.embedding_norm.empty()) add_norm(a, a.embedding_norm, a.hidden, tensors);
  return tensors;
}

std::vector<NamedShape> final_tensors(const Architecture& a) {
  std::vector<NamedShape> tensors;
  if (!a.final_norm.empty()) add_norm(a, a.final_norm, a.hidden, tensors);
  if (!a.project_out.empty()) {
    tensors.push_back({a.project_out, {a.width_of_embedding(), a.hidden}});
  }
  return tensors;
}

std::vector<NamedShape> outer_tensors(const Architecture& a) {
  std::vector<NamedShape> tensors = {{a.embedding, {a.vocab, a.width_of_embedding()}}};
  for (const std::vector<NamedShape>& more : {stem_tensors(a), final_tensors(a)}) {
    tensors.insert(tensors.end(), more.begin(), more.end());
  }
  if (!a.tied && !a.head.empty()) {
    tensors.push_back({a.head, {a.vocab, a.width_of_embedding()}});
  }
  return tensors;
}

}  // namespace coppice
