// The fast engine: one thread, one io_uring.
#pragma once

#include <functional>
#include <memory>

#include "storage/io/io_engine.h"

struct io_uring;
struct io_uring_params;

namespace coppice {

/// Creates a ring: 0 or -errno, as io_uring_queue_init_params does. A test passes one that refuses.
using RingSetup = std::function<int(unsigned entries, io_uring* ring, io_uring_params* params)>;

/// Throws IoError (path "io_uring") if the kernel refuses the ring.
std::unique_ptr<IoEngine> make_uring_engine(const IoEngineOptions& options);
std::unique_ptr<IoEngine> make_uring_engine(const IoEngineOptions& options, const RingSetup& setup);

/// make_io_engine with a ring of the caller's making.
std::unique_ptr<IoEngine> make_io_engine(const IoEngineOptions& options, const RingSetup& setup);

}  // namespace coppice
