#!/usr/bin/env bash
# Times a run on SmolLM2-135M and compares it with what the same machine does on plain products.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  cat <<'TEXT'
usage: scripts/bench.sh [--model DIR] [--dataset FILE] [--nsamples N] [--seqlen N] [coppice run flags …]

Prunes with Wanda at 50 % and reconstructs half-blocks (one epoch, batch 2), and prints: wall time by
stage, tokens/s, GFLOP/s beside a plain matrix product measured in the same run, the share of time that
waited for reads and writes, peak RSS, and the floor: the same products at the plain product's rate.
Defaults: SmolLM2-135M and the handbook text of scripts/quickstart.sh, 128 windows of 512 tokens.
TEXT
}

model=models/smollm2-135m dataset=data/handbook/calibration.txt nsamples=128 seqlen=512 extra=()
while (($#)); do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --model) model=$2; shift 2 ;;
    --dataset) dataset=$2; shift 2 ;;
    --nsamples) nsamples=$2; shift 2 ;;
    --seqlen) seqlen=$2; shift 2 ;;
    *) extra+=("$1"); shift ;;
  esac
done

out=runs/bench
rm -rf "$out" "$out.work"
build/release/bin/coppice run --model "$model" --dataset "$dataset" -o "$out" --nsamples "$nsamples" \
  --seqlen "$seqlen" --prune-method wanda --sparsity 0.5 --window half-block --lr 1e-3 --epochs 1 \
  --batch-size 2 "${extra[@]}"
.venv/bin/python scripts/bench_summary.py "$out/coppice_report.json"
