#!/usr/bin/env bash
# Shows that memory does not grow with the model: synthetic checkpoints of 4 and of 64 equal blocks.
#
# usage: scripts/show_out_of_core.sh [--blocks N] [--limit-mib N]     (default: 64 blocks, 1024 MiB)
#
# Runs both with Wanda 50 % and half-block reconstruction, measures each peak RSS from outside, and runs
# the larger one under a limit on its data segment (ulimit -d) that is smaller than the checkpoint.
# Needs about 8 GiB of disk below runs/; removes it again.

set -euo pipefail
cd "$(dirname "$0")/.."

blocks=64 limit_mib=1024
while (($#)); do
  case $1 in
    -h | --help)
      sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    --blocks) blocks=$2; shift 2 ;;
    --limit-mib) limit_mib=$2; shift 2 ;;
    *) echo "show_out_of_core: unknown option '$1', try --help" >&2; exit 2 ;;
  esac
done

dir=runs/out_of_core
rm -rf "$dir"
mkdir -p "$dir"
trap 'rm -rf "$dir"' EXIT

# hidden 1024, ffn 4352: 17.6 M parameters, 35 MB a block
make_model() {
  .venv/bin/python scripts/make_synthetic.py "$dir/model$1" --hidden 1024 --ffn 4352 --heads 16 --kv-heads 16 \
    --head-dim 64 --blocks "$1" --vocab 1024 --dtype bf16 --tokens 4096 >/dev/null
}

# prune BLOCKS: prints the peak RSS in KiB that the kernel counted
prune() {
  local tokens
  tokens=$(find "$dir/model$1" -name '*.h5' | head -n 1)
  command time -f %M -o "$dir/rss$1" build/release/bin/coppice run --quiet --model "$dir/model$1" \
    --dataset "$tokens" -o "$dir/out$1" --nsamples 4 --seqlen 128 --lr 1e-4 --json >"$dir/report$1.json"
  cat "$dir/rss$1"
}

make_model 4
make_model "$blocks"
bytes=$(du -sb "$dir/model$blocks" | cut -f1)
small=$(prune 4)
(ulimit -d $((limit_mib * 1024)) && prune "$blocks" >"$dir/large")
large=$(<"$dir/large")

printf '%-34s %8s MiB peak RSS\n' "4 blocks" $((small / 1024)) "$blocks blocks" $((large / 1024))
printf 'ratio %s; the checkpoint of %s blocks has %s MiB, its run was limited to %s MiB of data (ulimit -d)\n' \
  "$(awk "BEGIN {printf \"%.3f\", $large / $small}")" "$blocks" $((bytes / 1048576)) "$limit_mib"
awk "BEGIN {exit !($large <= 1.1 * $small)}" || { echo "memory grows with depth" >&2; exit 1; }
