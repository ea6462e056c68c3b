#!/usr/bin/env bash
# Configures and builds one preset of CMakePresets.json with all cores.
#
# usage: scripts/build.sh [release|debug|asan|tsan]     (default: release)
#
# The program lands in build/<preset>/bin/coppice. asan and tsan build what needs no libtorch.

set -euo pipefail
cd "$(dirname "$0")/.."

case "${1:-release}" in
  -h | --help)
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
  release | debug | asan | tsan) preset=${1:-release} ;;
  *)
    echo "build: unknown preset '$1'; there are release, debug, asan and tsan" >&2
    exit 2
    ;;
esac

cmake --preset "$preset"
cmake --build --preset "$preset" -j "$(nproc)"
