// How OpenMP's threads wait for work.
#pragma once

namespace coppice {

/// They shall sleep and not spin: spinning gains nothing where nothing else runs, and where
/// something does it takes the cores that the work needs. The library reads OMP_WAIT_POLICY while
/// it is loaded, so the process starts anew with it, once; what the user set stays. Returns where
/// it is set, or where the program cannot start itself. Before any thread.
void wait_without_spinning(char** argv);

}  // namespace coppice
