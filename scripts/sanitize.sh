#!/usr/bin/env bash
# Runs tests under sanitizers: asan (AddressSanitizer with LeakSanitizer, and UndefinedBehaviorSanitizer)
# those of storage, graph and pipeline; tsan (ThreadSanitizer) those that link no libtorch, with a
# oneTBB that is built from Debian's source with the same sanitizer: its synchronisation is seen, too.
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

# Leaves libtbb.so.12 in build/tbb-src/build/<compiler>_relwithdebinfo.
build_instrumented_tbb() {
  local src=$PWD/build/tbb-src file
  mkdir -p "$src"/apt/{sources,lists/partial}
  for file in /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources; do
    [[ -e $file ]] || continue
    sed -e 's/^Types: deb$/Types: deb-src/' -e 's/^deb /deb-src /' "$file" >"$src/apt/sources/debian.${file##*.}"
  done
  local apt=(-o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$src/apt/sources" -o "Dir::State::lists=$src/apt/lists")
  apt-get "${apt[@]}" update
  (cd "$src" && apt-get "${apt[@]}" source --download-only onetbb)
  tar -C "$src" --strip-components 1 -xf "$src"/onetbb_*.orig.tar.*
  cmake -S "$src" -B "$src/build" -G Ninja -DTBB_TEST=OFF -DTBB_STRICT=OFF -DTBB_SANITIZE=thread \
    -DCMAKE_BUILD_TYPE=RelWithDebInfo
  cmake --build "$src/build" --target tbb -j "$(nproc)"
}

cmake --preset "$preset"
mapfile -t tests < <(cmake --build --preset "$preset" --target help | grep -oE '\b(storage|pipeline)_[a-z0-9_]+_test\b' | sort -u)
cmake --build --preset "$preset" -j "$(nproc)" --target "${tests[@]}"

# Not ours: what libraries keep until the process ends, casts inside oneTBB's headers.
dir=$PWD/scripts/sanitizers
# A library that is opened late is not found beside libtorch's others when a sanitizer opens it.
torch_dir=$(.venv/bin/python -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])')
export LD_LIBRARY_PATH=$torch_dir/lib
if [[ $preset == tsan ]]; then
  compgen -G 'build/tbb-src/build/*/libtbb.so.12' >/dev/null || build_instrumented_tbb
  export LD_LIBRARY_PATH=$PWD/$(dirname build/tbb-src/build/*/libtbb.so.12)
fi
export LSAN_OPTIONS=suppressions=$dir/lsan.txt:print_suppressions=0
export UBSAN_OPTIONS=suppressions=$dir/ubsan.txt:print_stacktrace=1:halt_on_error=1
export TSAN_OPTIONS=halt_on_error=1
exec ctest --test-dir "build/$preset" --output-on-failure -j2 -L 'storage|pipeline' "$@"
