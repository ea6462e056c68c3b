#!/usr/bin/env bash
# Measures the streaming: overlap of reading and computing, memory against depth and calibration
# windows, budgets that grow, and what the plan foresaw against what the run took.
#
# usage: scripts/bench_stream.sh [--dir DIR] [--rounds N] [--large]   (default: runs/bench_stream, 3 rounds,
#        of five alternations of each side of the overlap, one where the disk is held to a rate)
#
# Makes synthetic checkpoints (about 8 GiB) in DIR and removes them again. --large adds two blocks of
# the shape of a 72B model: 12 GiB of disk, 20 GiB of RAM, some ten minutes on two cores.

set -euo pipefail
cd "$(dirname "$0")/.."
case ${1:-} in
  -h | --help)
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
esac
cmake --preset release >/dev/null
cmake --build --preset release --target coppice stream_bench -j "$(nproc)"
exec .venv/bin/python scripts/bench_stream.py "$@"
