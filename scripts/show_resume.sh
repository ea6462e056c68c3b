#!/usr/bin/env bash
# Shows that a killed run loses nothing: SIGKILL at random moments, --resume, the same bytes.
#
# usage: scripts/show_resume.sh [--kills N]     (default: 5)
#
# Prunes and reconstructs SmolLM2-135M (as scripts/quickstart.sh fetched it) on 8 short windows, once
# undisturbed and once killed, then compares every shard and the index. Results go to runs/resume.

set -euo pipefail
cd "$(dirname "$0")/.."

kills=5
while (($#)); do
  case $1 in
    -h | --help)
      sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    --kills) kills=$2; shift 2 ;;
    *) echo "show_resume: unknown option '$1', try --help" >&2; exit 2 ;;
  esac
done

dir=runs/resume
rm -rf "$dir"
mkdir -p "$dir"

run=(build/release/bin/coppice run --quiet --json --model models/smollm2-135m
  --dataset data/handbook/calibration.txt --nsamples 8 --seqlen 256 --lr 1e-3 -o)

begin=$SECONDS
"${run[@]}" "$dir/undisturbed" >/dev/null
seconds=$((SECONDS - begin))
echo "undisturbed: $seconds s"

killed=0
for ((i = 1; i <= kills; ++i)); do
  "${run[@]}" "$dir/killed" --resume >/dev/null &
  sleep "$(awk -v r=$RANDOM -v s=$seconds -v k="$kills" 'BEGIN {printf "%.2f", 1 + r / 32768 * 1.5 * s / k}')"
  kill -KILL $! 2>/dev/null || true
  status=0
  wait $! 2>/dev/null || status=$?
  case $status in
    0) echo "the run finished before kill $i"; break ;;
    137) killed=$i ;;
    *) echo "show_resume: the run ended with exit code $status" >&2; exit 1 ;;
  esac
  echo "kill $i: $(find "$dir/killed" -name '*.safetensors' 2>/dev/null | wc -l) shards are there"
done
"${run[@]}" "$dir/killed" --resume >/dev/null

shards=0
for file in "$dir"/undisturbed/*safetensors*; do
  cmp "$file" "$dir/killed/$(basename "$file")"
  shards=$((shards + 1))
done
echo "killed $killed times and continued: $shards files of weights, equal byte for byte"
