// Times the disk and the codec as a run uses them, in about a second.
#pragma once

#include <filesystem>

#include "pipeline/plan/rates.h"
#include "storage/cache/activation_cache.h"
#include "storage/checkpoint/checkpoint_reader.h"
#include "storage/io/io_engine.h"

namespace coppice {

/// Fills read_bytes (from the checkpoint's shards, aligned direct reads through `engine`) and
/// written_bytes (files in `scratch`, one at a time, synced and removed, none larger than 64 MiB
/// and `most_written_bytes`; nothing is written, and nothing known, where those are less than 4
/// MiB). Throws IoError, CorruptionError.
void probe_disk(const CheckpointReader& checkpoint, const std::filesystem::path& scratch,
                uint64_t most_written_bytes, IoEngine& engine, Rates& rates);

/// Fills the codec's rates and ratio, from one window of normally distributed elements that lie in
/// memory as the device has them.
void probe_codec(const ActivationShape& shape, ChunkLayout layout, Rates& rates);

}  // namespace coppice
