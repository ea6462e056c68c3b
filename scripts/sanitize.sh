#!/usr/bin/env bash
# Runs tests under sanitizers: asan (AddressSanitizer with LeakSanitizer, and UndefinedBehaviorSanitizer)
# those of storage, graph and pipeline; tsan (ThreadSanitizer) those that link no libtorch.
#
# usage: scripts/sanitize.sh asan|tsan [ctest arguments]
#
# Needs what scripts/setup.sh installs. The first asan build takes some 15 minutes on two cores.

set -euo pipefail
cd "$(dirname "$0")/.."

case "${1:-}" in
  asan | tsan) preset=$1 && shift ;;
  *)
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
    [[ "${1:-}" == -h || "${1:-}" == --help ]] && exit 0 || exit 2
    ;;
esac

cmake --preset "$preset"
mapfile -t tests < <(cmake --build --preset "$preset" --target help | grep -oE '\b(storage|pipeline)_[a-z0-9_]+_test\b' | sort -u)
cmake --build --preset "$preset" -j "$(nproc)" --target "${tests[@]}"

# Not ours: what libraries keep until the process ends, casts inside oneTBB's headers, and oneTBB's own
# synchronisation, which is not instrumented.
dir=$PWD/scripts/sanitizers
# A library that is opened late is not found beside libtorch's others when a sanitizer opens it.
torch_dir=$(.venv/bin/python -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])')
export LD_LIBRARY_PATH=$torch_dir/lib
export LSAN_OPTIONS=suppressions=$dir/lsan.txt:print_suppressions=0
export UBSAN_OPTIONS=suppressions=$dir/ubsan.txt:print_stacktrace=1:halt_on_error=1
export TSAN_OPTIONS=suppressions=$dir/tsan.txt:halt_on_error=1
exec ctest --test-dir "build/$preset" --output-on-failure -j2 -L 'storage|pipeline' "$@"
