#include "pipeline/errors.h"

#include <c10/util/Exception.h>

#include <filesystem>
#include <new>
#include <system_error>

#include "configs/errors.h"              // ConfigError: 2
#include "pipeline/device/gpu_driver.h"  // is_gpu_error: 1
#include "pipeline/interrupt.h"          // Interrupted: 130
#include "stages/errors.h"               // NumericalError: 6
#include "storage/errors.h"              // IoError: 3, CorruptionError: 4

namespace coppice {
namespace {

// Calls `visit` with every exception of the chain, outermost first.
template <typename Visit>
void walk(const std::exception& error, Visit visit) {
  visit(error);
  try {
    std::rethrow_if_nested(error);
  } catch (const std::exception& cause) {
    walk(cause, visit);
  } catch (...) {
  }
}

// libtorch has a type of its own for a GPU without memory, and only words for a host without.
bool is_out_of_memory(const std::exception& error) {
  if (dynamic_cast<const std::bad_alloc*>(&error)) return true;
  if (dynamic_cast<const c10::OutOfMemoryError*>(&error)) return true;
  const auto* torch = dynamic_cast<const c10::Error*>(&error);
  return torch && torch->msg().find("can't allocate memory") != std::string::npos;
}

// A thread needs memory for its stack, and a place in the limit on processes.
bool is_out_of_threads(const std::exception& error) {
  const auto* system = dynamic_cast<const std::system_error*>(&error);
  return system && !dynamic_cast<const std::filesystem::filesystem_error*>(&error) &&
         system->code() == std::errc::resource_unavailable_try_again;
}

// What libtorch says, without its stack trace.
std::string message_of(const std::exception& error) {
  const auto* torch = dynamic_cast<const c10::Error*>(&error);
  const std::string message = torch ? torch->what_without_backtrace() : error.what();
  if (dynamic_cast<const std::bad_alloc*>(&error)) return "out of memory";
  if (is_out_of_memory(error)) return "out of memory: " + message;
  if (is_gpu_error(error)) {
    return message +
           "\n  what a run finished before is safe: the same command with --resume continues it";
  }
  if (is_out_of_threads(error)) return "no memory or no permission for another thread: " + message;
  return message;
}

int own_code(const std::exception& error) {
  if (dynamic_cast<const ConfigError*>(&error)) return 2;
  if (dynamic_cast<const IoError*>(&error)) return 3;
  if (dynamic_cast<const std::filesystem::filesystem_error*>(&error)) return 3;
  if (dynamic_cast<const CorruptionError*>(&error)) return 4;
  if (dynamic_cast<const BudgetError*>(&error)) return 5;
  if (is_out_of_memory(error) || is_out_of_threads(error)) return 5;
  if (dynamic_cast<const NumericalError*>(&error)) return 6;
  if (dynamic_cast<const Interrupted*>(&error)) return kInterruptedCode;
  return 1;
}

}  // namespace

int exit_code(const std::exception& error) {
  int code = 1;
  walk(error, [&](const std::exception& link) {
    if (own_code(link) != 1) code = own_code(link);
  });
  return code;
}

std::string error_chain(const std::exception& error) {
  std::string text;
  walk(error, [&](const std::exception& link) {
    if (!text.empty()) text += "\n  ";
    text += message_of(link);
  });
  return text;
}

}  // namespace coppice
