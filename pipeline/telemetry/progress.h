// Tells a person how far a run is: one live line on a terminal, one line a block in a log.
#pragma once

#include <chrono>
#include <mutex>
#include <string>

namespace coppice {

enum class Verbosity { kQuiet, kNormal, kVerbose };

/// Writes to stderr; nothing but results belongs on stdout. Any thread.
class Progress {
 public:
  /// `total_steps` of whatever the caller counts (spans); the ETA is from their pace.
  Progress(Verbosity verbosity, int total_steps);
  ~Progress();

  /// What is being done now; redrawn at most ten times a second on a terminal, silent in a log.
  void now(const std::string& what);
  /// A step is done; `line` is kept: above the live line on a terminal, or as a line of the log.
  void done(const std::string& line);
  /// A message that must not be lost (a fallback, a warning).
  void note(const std::string& line);

 private:
  void draw(const std::string& what);
  void clear();

  Verbosity verbosity_;
  bool terminal_;
  int total_;
  int finished_ = 0;
  std::mutex mutex_;
  std::chrono::steady_clock::time_point start_;
  std::chrono::steady_clock::time_point last_draw_;
};

/// "1 h 02 min", "3 min 07 s", "4.2 s".
std::string human_seconds(double seconds);
/// "1.8 GiB", "12 MiB".
std::string human_bytes(double bytes);

}  // namespace coppice
