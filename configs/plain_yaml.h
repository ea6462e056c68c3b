// YAML without surprises: maps, lists and scalars, each with its line; nothing acts at a distance.
#pragma once

#include <string>
#include <vector>

namespace coppice {

/// A value and where it stands. Plain data; a value of a map carries its key.
struct YamlNode {
  enum class Kind { kNothing, kScalar, kList, kMap };  // kNothing: empty, ~ or null
  Kind kind = Kind::kNothing;
  int line = 1;                    // of the key where there is one, from 1
  std::string key;                 // within a map, else empty
  std::string text;                // kScalar: as written, quotes removed
  std::vector<YamlNode> children;  // kList, kMap: in the file's order
};

/// Parses one document. `file` is what messages call it. Throws ConfigError "<file>:<line>: …" for
/// text that is no YAML, for tags, anchors, aliases and merge keys, for keys that occur twice or
/// are no scalars, and for a second document.
YamlNode parse_yaml(const std::string& file, const std::string& text);

}  // namespace coppice
