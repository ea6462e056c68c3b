// Attention in a window of the sequence, piece by piece.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace coppice {

/// Tokens [first, last) of a sequence; any of them sees tokens of [seen, last) alone.
struct AttentionPiece {
  int64_t first = 0;
  int64_t last = 0;
  int64_t seen = 0;

  int64_t tokens() const { return last - first; }
  int64_t keys() const { return last - seen; }
};

/// A window's scores are computed for so many tokens at a time: enough to fill the cores, and the
/// mask stays small.
constexpr int64_t kPieceTokens = 512;

/// Of a sequence of `length` tokens, each of which sees itself and the `window` − 1 before it.
inline std::vector<AttentionPiece> attention_pieces(int64_t length, int64_t window) {
  std::vector<AttentionPiece> pieces;
  for (int64_t first = 0; first < length; first += kPieceTokens) {
    pieces.push_back(
        {first, std::min(first + kPieceTokens, length), std::max<int64_t>(0, first - window + 1)});
  }
  return pieces;
}

}  // namespace coppice
