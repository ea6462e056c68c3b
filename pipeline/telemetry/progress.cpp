#include "pipeline/telemetry/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

namespace coppice {
namespace {

constexpr int kBarWidth = 24;

std::string bar(double share) {
  const int full = int(share * kBarWidth);
  return "[" + std::string(full, '#') + std::string(kBarWidth - full, '.') + "]";
}

}  // namespace

Progress::Progress(Verbosity verbosity)
    : verbosity_(verbosity),
      terminal_(isatty(STDERR_FILENO) != 0),
      start_(std::chrono::steady_clock::now()) {}

Progress::~Progress() {
  std::lock_guard lock(mutex_);
  clear();
}

void Progress::expect(int steps) {
  std::lock_guard lock(mutex_);
  total_ = steps;
  finished_ = 0;
  start_ = std::chrono::steady_clock::now();
}

void Progress::now(const std::string& what) {
  if (!terminal_ || verbosity_ == Verbosity::kQuiet) return;
  std::lock_guard lock(mutex_);
  const auto time = std::chrono::steady_clock::now();
  if (time - last_draw_ < std::chrono::milliseconds(100)) return;
  last_draw_ = time;
  draw(what);
}

void Progress::done(const std::string& line) {
  std::lock_guard lock(mutex_);
  ++finished_;
  if (verbosity_ == Verbosity::kQuiet) return;
  if (terminal_ && verbosity_ == Verbosity::kNormal) {
    draw(line);
  } else if (!line.empty()) {
    keep(line);
  }
}

void Progress::detail(const std::string& line) {
  if (verbosity_ != Verbosity::kVerbose) return;
  std::lock_guard lock(mutex_);
  keep(line);
}

void Progress::note(const std::string& line) {
  std::lock_guard lock(mutex_);
  keep(line);
}

void Progress::draw(const std::string& what) {
  const double elapsed =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  const double share = total_ > 0 ? double(finished_) / total_ : 0;
  const std::string eta =
      finished_ > 0 ? human_seconds(elapsed / finished_ * (total_ - finished_)) + " left" : "";
  std::fputs(
      fmt::format("\r\033[K{} {}/{}  {}  {}", bar(share), finished_, total_, what, eta).c_str(),
      stderr);
  std::fflush(stderr);
}

void Progress::keep(const std::string& line) {
  clear();
  std::fputs((line + "\n").c_str(), stderr);
}

void Progress::clear() {
  if (terminal_ && verbosity_ != Verbosity::kQuiet) std::fputs("\r\033[K", stderr);
}

std::string human_seconds(double seconds) {
  if (seconds < 60) return fmt::format("{:.1f} s", seconds);
  const long whole = long(seconds + 0.5);
  if (seconds < 3600) return fmt::format("{} min {:02} s", whole / 60, whole % 60);
  return fmt::format("{} h {:02} min", whole / 3600, whole / 60 % 60);
}

std::string human_bytes(double bytes) {
  const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  int unit = 0;
  while (bytes >= 1024 && unit < 4) {
    bytes /= 1024;
    ++unit;
  }
  return fmt::format("{:.{}f} {}", bytes, unit == 0 || bytes >= 100 ? 0 : 1, units[unit]);
}

}  // namespace coppice
