// The fast engine: one thread, one io_uring.
#pragma once

#include <memory>

#include "storage/io/io_engine.h"
#include "storage/io/ring_tables.h"  // RingCalls

namespace coppice {

/// Best of what the kernel grants: deferred task work on a single issuer, then less; a ring without
/// is told to `on_fallback`. Throws IoError (path "io_uring") if the kernel refuses any ring.
std::unique_ptr<IoEngine> make_uring_engine(const IoEngineOptions& options);
std::unique_ptr<IoEngine> make_uring_engine(const IoEngineOptions& options, const RingCalls& calls);

/// make_io_engine with the caller's answers for the kernel's.
std::unique_ptr<IoEngine> make_io_engine(const IoEngineOptions& options, const RingCalls& calls);

}  // namespace coppice
