#!/usr/bin/env bash
# Measures coppice on one GPU, with synthetic checkpoints of published shapes, in under ten minutes.
#
# usage: scripts/bench_gpu.sh [options]      in the source tree, or in an unpacked package
#
#   --out DIR       where bench_gpu.md and bench_gpu.json go      (default: bench_gpu)
#   --dir DIR       scratch, about 40 GB free, emptied again      (default: the system's)
#   --device NAME   cuda:0, say                                   (default: cuda:0; with --tiny cpu)
#   --minutes N     what would take longer is skipped             (default: 9.5)
#   --only TEXT     only steps whose names contain TEXT
#   --tiny          every step on a model so small that it shows nothing else; runs on a processor
#
# Steps: the tests that run on every device; plain products in bf16; half-blocks of a 72B model on
# 128 x 2,048 tokens, 2 and 4 blocks, within 24 GiB of the device's memory; SparseGPT; whether a
# run, the same run again, and one killed and continued write the same bytes; the plan of all 80
# blocks; SparseGPT beside its paper's algorithm in plain PyTorch; as much more text as time and
# disk allow. A step without a result says why. Both files are there from the first step on.
#
# Python (COPPICE_PYTHON; by default python3, in the source tree .venv) needs torch, numpy, h5py.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
for argument in "$@"; do
  case $argument in
    -h | --help)
      sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      exit 0
      ;;
  esac
done
python=${COPPICE_PYTHON:-python3}
if [[ -z ${COPPICE_PYTHON:-} && ! -e $root/coppice.sh && -x $root/.venv/bin/python ]]; then
  python=$root/.venv/bin/python
fi
exec "$python" "$root/scripts/bench_gpu.py" "$@"
