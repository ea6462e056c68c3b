#!/usr/bin/env bash
# Do the findings of "A Free Lunch in LLM Compression" (arXiv 2510.14444) hold for a small model here?
#
# usage: scripts/findings.sh --dataset FILE --text FILE [options]
#
#   --dataset FILE     calibration and training text: .txt, .jsonl, or .h5 with /input_ids; C4, say
#   --text FILE        text to measure perplexity on; WikiText-2's raw test split, say
#   --model DIR        Hugging Face directory            (default: SmolLM2-135M, fetched to models/)
#   --out DIR          where results go                  (default: runs/findings)
#   --only TABLE       a, b, c or d                      (default: all)
#   --nsamples N       calibration windows               (default: 64)
#   --seqlen N         tokens of a window                (default: 512)
#   --rate-samples N   windows to choose a rate on       (default: 32)
#   --rates LIST       learning rates to choose from     (default: 1e-4,3e-4,1e-3,3e-3)
#   --seeds N          of the rows of table a            (default: 3)
#   --max-windows N    windows of 2,048 tokens of --text (default: 20)
#   --quick            every step on so little that it shows nothing else:
#                      8 windows of 128, 2 rates, 1 seed, 4 windows of 512; into runs/findings-quick
#
# a  local reconstruction against masked LoRA, with the same tokens and with ten times the tokens
# b  what is reconstructed at once: a matrix, half a block, a block, two blocks
# c  magnitude, Wanda, RIA, SparseGPT, with and without reconstruction, at 50 %, 60 % and 2:4
# d  propagation and losses
#
# Writes findings.csv, findings.md, findings.png and findings.svg into DIR: of SmolLM2 on two cores
# that takes many hours. The same command continues what was interrupted; reports of every step stay
# in DIR/reports, checkpoints go (up to eight of them lie in DIR/work at a time).

set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
for argument in "$@"; do
  case $argument in
    -h | --help)
      sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
  esac
done
"$root/scripts/setup.sh"
"$root/scripts/build.sh" release coppice
# Not from the root: paths are given relative to where the caller stands.
exec "$root/.venv/bin/python" "$root/scripts/findings.py" "$@"
