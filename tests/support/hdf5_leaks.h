// HDF5 1.10 forgets a few hundred bytes whenever it refuses a damaged object header; the leak
// checker shall not blame the tests that damage files for it.
#pragma once

#include <hdf5.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/lsan_interface.h>
#endif

namespace coppice::testing {

/// While it lives, this thread's allocations are not checked for leaks.
class Hdf5LeaksAllowed {
 public:
#ifdef __SANITIZE_ADDRESS__
  Hdf5LeaksAllowed() {
    __lsan_disable();
    H5dont_atexit();  // as the program has it; must precede other calls
    // Without free lists: memory that HDF5 kept from before would be forgotten too, and is checked.
    H5set_free_list_limits(0, 0, 0, 0, 0, 0);
    H5garbage_collect();
  }
  ~Hdf5LeaksAllowed() { __lsan_enable(); }
#else
  Hdf5LeaksAllowed() {}  // not defaulted: an object of it must not look unused
#endif
  Hdf5LeaksAllowed(const Hdf5LeaksAllowed&) = delete;
  Hdf5LeaksAllowed& operator=(const Hdf5LeaksAllowed&) = delete;
};

}  // namespace coppice::testing
