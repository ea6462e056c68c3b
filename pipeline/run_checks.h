// What a run refuses before its first read, and what it tidies up.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "configs/recipe.h"
#include "pipeline/token_windows.h"
#include "storage/io/file.h"  // UniqueFd

namespace coppice {

/// What only shows itself once recipe, model and tokens are seen together: a pattern that names
/// nothing, sparsities for another number of blocks, an M that does not divide, no linear left to
/// prune, shares of units that remove none or leave no one shape, a method that needs a loss where
/// there is none, windows longer than the model's
/// positions. Throws ConfigError.
void check_against_model(const Recipe& recipe, const Architecture& architecture,
                         const TokenWindows& tokens);

/// Throws ConfigError if one is held out of the windows and none is left.
void check_held_out(const TokenWindows& tokens);

/// Throws ConfigError if windows of that length have more tokens than the model has positions.
void check_positions(const Architecture& architecture, int64_t seqlen);

/// Throws ConfigError for a model that predicts no next token; `what` says what it would need one
/// for.
void require_next_token(const std::filesystem::path& directory, const Architecture& architecture,
                        const std::string& what);

/// Throws ConfigError unless the output directory is absent or empty, but for the work directory
/// and the timeline, or `work` holds a run, whose directory it then has to be (see RunState).
/// Neither is the other, nor the model. `trace` may be empty.
void check_output_directory(const std::filesystem::path& output, const std::filesystem::path& work,
                            const std::filesystem::path& model,
                            const std::filesystem::path& trace = {});

/// Keeps other runs from writing to the output directory, which exists, as long as what it returns
/// lives; on a file system that knows no locks nothing does. A run that begins finds it empty, but
/// for paths of `ours`: work directory, timeline. Throws ConfigError.
UniqueFd lock_output(const std::filesystem::path& output,
                     const std::vector<std::filesystem::path>& ours, bool is_resumed);

/// Removes what a killed run was writing when it died: *.tmp files, and probes of the disk.
void remove_unfinished(const std::filesystem::path& directory);

}  // namespace coppice
