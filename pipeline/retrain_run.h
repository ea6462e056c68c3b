// One retraining: a pruned checkpoint goes in, the same zeros with better weights come out.
#pragma once

#include <filesystem>
#include <string>

#include "configs/recipe.h"
#include "pipeline/prune_run.h"  // RunResult
#include "stages/retrain_options.h"

namespace coppice {

struct RetrainRunOptions {
  std::filesystem::path model;
  std::filesystem::path dataset;
  std::filesystem::path output;
  std::filesystem::path work;          // journal, saved state, tokens
  std::filesystem::path architecture;  // an extra description; may be empty
  CalibrationOptions calibration;
  ResourceOptions resources;
  RetrainOptions retrain;
  int first_window = 0;     // windows of the dataset that are left out at its start
  double save_minutes = 5;  // between saved states; 0: after every step
  Resume resume = Resume::kNo;
  Verbosity verbosity = Verbosity::kNormal;
  std::string command;  // as typed, for the report
  std::string resume_command;
};

/// Runs to the end, or until `SIGTERM`/`SIGINT`: then the step at work is finished and its state
/// saved. Throws any of the program's errors; nothing that looks finished is left behind.
RunResult retrain_run(const RetrainRunOptions& options);

}  // namespace coppice
