// How alike two lists of numbers rise and fall.
#pragma once

#include <span>

namespace coppice {

/// Σ (x − x̄)(y − ȳ) / √(Σ (x − x̄)² Σ (y − ȳ)²), in [−1, 1]; NaN where one list is constant or has
/// fewer than two numbers. Both lists have the same size.
double pearson(std::span<const double> x, std::span<const double> y);

/// Pearson's of the ranks; equal numbers share the mean of theirs.
double spearman(std::span<const double> x, std::span<const double> y);

}  // namespace coppice
