#!/usr/bin/env bash
# How much of a sentence encoder can go, neurons and heads, and how much of it LIAR makes good?
#
# usage: scripts/liar_minilm.sh --train FILE --dev FILE --test FILE [options]
#
#   --train FILE       STS-B, rows of fields between tabs, the fifth to seventh of which are score,
#                      sentence, sentence: calibration, without the scores
#   --dev FILE         the same: decides which rows are the best
#   --test FILE        the same: what is reported
#   --model DIR        Hugging Face directory            (default: MiniLM-L6-v2, fetched to models/)
#   --out DIR          where results go                  (default: runs/liar-minilm)
#   --ratios LIST      of neurons and of heads           (default: 0.1,0.3,0.5,0.7)
#   --criteria LIST    of random_sp, magnitude_sp, wanda_sp, flap   (default: all)
#   --allocations LIST uniform, global or measured   (default: uniform,measured)
#   --nsamples LIST    calibration sentences             (default: 256,2048)
#   --seqlen N         tokens of a sentence at most      (default: 128)
#   --rates LIST       of training after LIAR, to choose from   (default: 1e-4,3e-4,1e-3,3e-3)
#   --epochs LIST      of training: the first in the tables, all among the candidates for the best
#                      (default: 10)
#   --batch-size N     of training, in windows of --seqlen tokens   (default: 4)
#
# For every number of sentences, allocation, ratio and criterion: nothing reconstructed, the mean put into the
# bias, LIAR, and training that starts there. The rate is chosen on held-out calibration sentences.
# Each checkpoint's embeddings are compared with the dense model's (fidelity) and with people's
# scores (Spearman). Last, for every ratio, the best on --dev of what was trained: of these, and of
# flap and wanda_sp with more epochs and with windows that see the pruned prefix.
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
exec "$root/.venv/bin/python" "$root/scripts/liar_minilm.py" "$@"
