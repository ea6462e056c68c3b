// The engine of systems without io_uring: a few threads that call pread.
#pragma once

#include <memory>

#include "storage/io/io_engine.h"

namespace coppice {

/// `options.pread_threads` threads (at least one); `queue_depth` does not apply.
std::unique_ptr<IoEngine> make_pread_engine(const IoEngineOptions& options);

}  // namespace coppice
