#include "stages/units/unit_layout.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

namespace coppice {
namespace {

/// The linear of that part, of the same expert as `consumer`.
const LinearSpec& beside(const Architecture& architecture, const LinearSpec& consumer,
                         const std::string& part) {
  return architecture.linear(consumer.expert < 0 ? part : role_of_expert(part, consumer.expert));
}

void require_rows(const LinearSpec& consumer, const LinearSpec& linear, int64_t rows) {
  if (linear.out == rows) return;
  throw std::invalid_argument(
      fmt::format("units: {} reads {} columns, so {} should have {} rows; it has {}", consumer.name,
                  consumer.in, linear.name, rows, linear.out));
}

UnitLayout layout(const Architecture& architecture, const UnitSpec& spec, UnitLayout::Kind kind,
                  const LinearSpec& consumer) {
  UnitLayout units;
  units.kind = kind;
  units.consumer = &consumer;
  if (kind == UnitLayout::Kind::kHeads) {
    units.count = architecture.heads;
    units.size = architecture.head_dim;
    units.per_shared = spec.shared.empty() ? 1 : architecture.heads / architecture.kv_heads;
  } else {
    units.count = consumer.in;
  }
  if (units.count * units.size != consumer.in) {
    throw std::invalid_argument(fmt::format("units: {} reads {} columns, not {} units of {}",
                                            consumer.name, consumer.in, units.count, units.size));
  }
  for (const std::string& part : spec.producers) {
    units.producers.push_back(&beside(architecture, consumer, part));
    require_rows(consumer, *units.producers.back(), consumer.in);
  }
  for (const std::string& part : spec.shared) {
    units.shared.push_back(&beside(architecture, consumer, part));
    require_rows(consumer, *units.shared.back(), consumer.in / units.per_shared);
  }
  return units;
}

}  // namespace

std::vector<UnitLayout> unit_layouts(const Architecture& architecture, Half half) {
  std::vector<UnitLayout> layouts;
  for (const auto& [name, spec] : architecture.units) {
    const auto kind = name == "heads" ? UnitLayout::Kind::kHeads : UnitLayout::Kind::kFfn;
    for (const LinearSpec& linear : architecture.linears) {
      if (linear.half != half || linear.part() != spec.consumer) continue;
      layouts.push_back(layout(architecture, spec, kind, linear));
    }
  }
  return layouts;
}

bool reads_units(const Architecture& architecture, const LinearSpec& linear) {
  return std::any_of(architecture.units.begin(), architecture.units.end(),
                     [&](const auto& unit) { return unit.second.consumer == linear.part(); });
}

void resize_units(Architecture& architecture) {
  const auto has = [](const std::vector<std::string>& parts, const std::string& part) {
    return std::find(parts.begin(), parts.end(), part) != parts.end();
  };
  for (const auto& [name, unit] : architecture.units) {
    const int64_t width =
        name == "heads" ? architecture.heads * architecture.head_dim : architecture.ffn;
    for (LinearSpec& linear : architecture.linears) {
      const std::string part = linear.part();
      if (has(unit.producers, part)) linear.out = width;
      if (has(unit.shared, part)) linear.out = architecture.kv_heads * architecture.head_dim;
      if (part == unit.consumer) linear.in = width;
    }
  }
}

std::string name_of(UnitLayout::Kind kind) {
  return kind == UnitLayout::Kind::kHeads ? "heads" : "ffn";
}

}  // namespace coppice
