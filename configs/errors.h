// What can go wrong with what the user asked for.
#pragma once

#include <stdexcept>
#include <string>

namespace coppice {

/// A wrong value, key, recipe, config.json or unsupported architecture; also too little text.
/// The message reads "<where>: <key path>: <value>: <what would be right>".
class ConfigError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace coppice
