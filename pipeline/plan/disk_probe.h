// Times the disk and the codec as a run uses them, in about a second.
#pragma once

#include <filesystem>

#include "pipeline/plan/rates.h"
#include "storage/cache/activation_cache.h"
#include "storage/checkpoint/checkpoint_reader.h"
#include "storage/io/io_engine.h"

namespace coppice {

/// Fills read_bytes (from the checkpoint's shards, aligned direct reads through `engine`) and
/// written_bytes (a file of at most 64 MiB in `scratch`, synced and removed).
/// Throws IoError, CorruptionError.
void probe_disk(const CheckpointReader& checkpoint, const std::filesystem::path& scratch,
                IoEngine& engine, Rates& rates);

/// Fills the codec's rates and ratio, from one window of normally distributed elements that lie in
/// memory as the device has them.
void probe_codec(const ActivationShape& shape, ChunkLayout layout, Rates& rates);

}  // namespace coppice
