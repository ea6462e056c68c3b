#include "pipeline/errors.h"

#include <new>

#include "configs/errors.h"      // ConfigError: 2
#include "pipeline/interrupt.h"  // Interrupted: 130
#include "stages/errors.h"       // NumericalError: 6
#include "storage/errors.h"      // IoError: 3, CorruptionError: 4

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

int own_code(const std::exception& error) {
  if (dynamic_cast<const ConfigError*>(&error)) return 2;
  if (dynamic_cast<const IoError*>(&error)) return 3;
  if (dynamic_cast<const CorruptionError*>(&error)) return 4;
  if (dynamic_cast<const BudgetError*>(&error)) return 5;
  if (dynamic_cast<const std::bad_alloc*>(&error)) return 5;
  if (dynamic_cast<const NumericalError*>(&error)) return 6;
  if (dynamic_cast<const Interrupted*>(&error)) return 130;
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
    const bool out_of_memory = dynamic_cast<const std::bad_alloc*>(&link) != nullptr;
    if (!text.empty()) text += "\n  ";
    text += out_of_memory ? "out of memory" : link.what();
  });
  return text;
}

}  // namespace coppice
