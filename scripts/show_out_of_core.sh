#!/usr/bin/env bash
# Shows that memory does not grow with the model: synthetic checkpoints of 4 and of 64 equal blocks.
#
# usage: scripts/show_out_of_core.sh [--blocks N] [--limit-mib N]     (default: 64 blocks, 1024 MiB)
#
# Runs both with Wanda 50 % and half-block reconstruction and measures each peak RSS from outside. The
# larger one runs under a memory limit smaller than its checkpoint: of a cgroup where one can be made,
# else of its data segment (ulimit -d). Needs about 8 GiB of disk below runs/; removes it again.

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

dir=runs/out_of_core group=""
rm -rf "$dir"
mkdir -p "$dir"
trap 'rm -rf "$dir"; [[ -z $group ]] || rmdir "$group"' EXIT

# hidden 1024, ffn 4352: 17.6 M parameters, 35 MB a block
make_model() {
  .venv/bin/python scripts/make_synthetic.py "$dir/model$1" --hidden 1024 --ffn 4352 --heads 16 --kv-heads 16 \
    --head-dim 64 --blocks "$1" --vocab 1024 --dtype bf16 --tokens 4096 >/dev/null
}

# make_group PARENT FILE: a cgroup below PARENT whose limit is written to FILE (v1 and v2 differ)
make_group() {
  local parent=$1 file=$2
  [[ -w $parent && -e $parent/cgroup.procs ]] && mkdir "$parent/coppice.$$" 2>/dev/null || return 1
  group=$parent/coppice.$$
  echo $((limit_mib * 1048576)) 2>/dev/null >"$group/$file" && return
  rmdir "$group"
  group=""
  return 1
}

# Limits what this shell starts.
limit() {
  if [[ -n $group ]]; then echo "$BASHPID" >"$group/cgroup.procs"; else ulimit -d $((limit_mib * 1024)); fi
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
make_group /sys/fs/cgroup/memory memory.limit_in_bytes || make_group /sys/fs/cgroup memory.max || true
bytes=$(du -sb "$dir/model$blocks" | cut -f1)
prune 4 >"$dir/small"
small=$(<"$dir/small")
(limit && prune "$blocks" >"$dir/large")
large=$(<"$dir/large")

printf '%-10s %5s MiB peak RSS\n' "4 blocks" $((small / 1024)) "$blocks blocks" $((large / 1024))
printf 'ratio %s; the checkpoint of %s blocks has %s MiB, its run was limited to %s MiB (%s)\n' \
  "$(awk "BEGIN {printf \"%.3f\", $large / $small}")" "$blocks" $((bytes / 1048576)) "$limit_mib" \
  "$([[ -n $group ]] && echo cgroup || echo 'ulimit -d')"
awk "BEGIN {exit !($large <= 1.1 * $small)}" || { echo "memory grows with depth" >&2; exit 1; }
