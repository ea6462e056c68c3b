// Errors of the whole: budgets, and where in the model something happened.
#pragma once

#include <exception>
#include <stdexcept>
#include <string>

namespace coppice {

/// Memory or disk that the work needs and the user did not grant. The message lists item by item.
class BudgetError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Says where: "block 17, reconstruct". Thrown with std::throw_with_nested around the cause.
class BlockError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The exit code of the innermost cause: 2 ConfigError, 3 IoError or std::filesystem's, 4
/// CorruptionError, 5 BudgetError or memory that was refused (std::bad_alloc, libtorch's errors, a
/// thread's stack), 6 NumericalError, 130 Interrupted, 1 anything else.
int exit_code(const std::exception& error);
constexpr int kInterruptedCode = 130;

/// The chain of messages, outermost first, one a line.
std::string error_chain(const std::exception& error);

}  // namespace coppice
