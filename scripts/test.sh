#!/usr/bin/env bash
# Sets up, builds release and runs the tests. The last lines are ctest's own.
#
# usage: scripts/test.sh [ctest arguments]     e.g. scripts/test.sh -L storage

set -euo pipefail
cd "$(dirname "$0")/.."

if [[ "${1:-}" == -h || "${1:-}" == --help ]]; then
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
  exit 0
fi

scripts/setup.sh
scripts/build.sh release
exec ctest --test-dir build/release --output-on-failure -j2 "$@"
