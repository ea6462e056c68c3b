#!/usr/bin/env bash
# How much of a small decoder can go, neurons and heads, and how much of it least squares makes good?
#
# usage: scripts/liar_smollm2.sh --dataset FILE --text FILE [options]
#
#   --dataset FILE     calibration text: .txt, .jsonl, or .h5 with /input_ids; C4, say
#   --text FILE        text to measure perplexity on; WikiText-2's raw test split, say
#   --model DIR        Hugging Face directory            (default: SmolLM2-135M, fetched to models/)
#   --out DIR          where results go                  (default: runs/liar-smollm2)
#   --ratios LIST      of neurons and of heads           (default: 0.1,0.2,0.3,0.5)
#   --criteria LIST    of magnitude_sp, wanda_sp, flap, random_sp   (default: the first three)
#   --nsamples N       calibration windows               (default: 64)
#   --seqlen N         tokens of a window                (default: 512)
#   --rates LIST       of training after LIAR, to choose from   (default: 3e-4,1e-3,3e-3)
#   --max-windows N    windows of 2,048 tokens of --text (default: 20)
#
# For every ratio and criterion: nothing reconstructed, the mean put into the bias, LIAR, and training
# that starts there (half-blocks, one epoch), all with biases added where the class has a place for
# them; and LIAR without. The rate is chosen on held-out calibration text. Last, a third cut out: the
# size of its checkpoint, and its forward pass in transformers beside the dense model's.
#
# Writes liar.csv, liar.md and liar.svg into DIR. The same command continues what was interrupted.

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
exec "$root/.venv/bin/python" "$root/scripts/liar_smollm2.py" "$@"
