#!/usr/bin/env bash
# Configures and builds one preset of CMakePresets.json with all cores.
#
# usage: scripts/build.sh [release|debug|asan|tsan] [target …]     (default: release, everything)
#
# The program is the target coppice and lands in build/<preset>/bin/coppice. tsan builds what needs no
# libtorch.

set -euo pipefail
cd "$(dirname "$0")/.."

preset=${1:-release}
case "$preset" in
  -h | --help)
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
  release | debug | asan | tsan) shift $(($# > 0)) ;;
  *)
    echo "build: unknown preset '$preset'; there are release, debug, asan and tsan" >&2
    exit 2
    ;;
esac

targets=()
(($#)) && targets=(--target "$@")
cmake --preset "$preset"
cmake --build --preset "$preset" -j "$(nproc)" "${targets[@]}"
