#!/usr/bin/env bash
# Runs clang-tidy (.clang-tidy: few checks, all errors) on the C++ sources a change touches.
#
# usage: scripts/tidy.sh [BASE]     (default: HEAD~1; the whole tree where there is no such commit)
#
# Needs a configured build/release (scripts/build.sh). A source that includes libtorch takes about a
# minute each.

set -euo pipefail
cd "$(dirname "$0")/.."

if [[ "${1:-}" == -h || "${1:-}" == --help ]]; then
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
  exit 0
fi

base=${1:-HEAD~1}
if git rev-parse --quiet --verify "$base^{commit}" >/dev/null; then
  mapfile -t files < <(git diff --name-only --diff-filter=d "$base" -- '*.cpp')
else
  mapfile -t files < <(git ls-files -- '*.cpp')
fi
if ((${#files[@]} == 0)); then
  echo "tidy: no C++ source differs from $base"
  exit 0
fi
echo "tidy: ${#files[@]} files"
# g++'s precompiled headers are not clang's: without them.
mkdir -p build/release/tidy
sed -E 's/-Winvalid-pch//g; s/-include [^ ]*cmake_pch\.hxx//g' build/release/compile_commands.json \
  >build/release/tidy/compile_commands.json
printf '%s\0' "${files[@]}" | xargs -0 -n 1 -P "$(nproc)" clang-tidy -p build/release/tidy --quiet
