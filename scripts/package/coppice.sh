#!/usr/bin/env bash
# Runs the packed coppice with the libraries of this package and of Python's torch.
#
# usage: coppice.sh ARGUMENTS…             as `coppice ARGUMENTS…`
#        coppice.sh --exec FILE …          another program of this package, tests/NAME say
#        coppice.sh --env                  says what LD_LIBRARY_PATH it sets, and stops
#
# The Python that has torch is COPPICE_PYTHON, or python3. Calibration text is taken as HDF5 with
# /input_ids; the tokenizer's script stayed behind.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${COPPICE_PYTHON:-python3}
if ! command -v "$python" >/dev/null; then
  echo "coppice.sh: no program '$python'; give COPPICE_PYTHON a Python that has torch" >&2
  exit 2
fi
# Python itself keeps the libraries it came with.
libraries=$("$python" "$root/scripts/library_path.py" "$root")
program=$root/bin/coppice
case ${1:-} in
  --env)
    echo "LD_LIBRARY_PATH=$libraries"
    exit 0
    ;;
  --exec)
    program=${2:?"coppice.sh: --exec wants a program"}
    shift 2
    ;;
esac
export LD_LIBRARY_PATH=$libraries
exec "$program" "$@"
