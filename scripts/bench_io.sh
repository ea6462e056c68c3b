#!/usr/bin/env bash
# Measures how close reading and writing come to what fio gets from the same disk in the same minute.
#
# usage: scripts/bench_io.sh [options]
#
#   --dir DIR       scratch directory on the disk to measure    (default: runs/bench_io; removed again)
#   --size-gib N    bytes of the checkpoint that is made        (default: 4; free space needed: 1.6 times that)
#   --rounds N      times that each pair is alternated          (default: 5)
#   --activations FILE   measure the codec on this cache file of a run (WORK_DIR/dense.N.h5), and nothing else
#
# Reads: a checkpoint of several shards, block by block into two slots, as the program reads it,
# against fio with io_uring, direct, 4 MiB × 8, registered buffers and files, huge pages. Writes:
# shards against fio with the same and a sync at the end; the activation cache, raw and compressed,
# against fio through the page cache with a sync at the end. Builds no libtorch. One table at the
# end: medians of the rounds, and medians of the rounds' ratios.

set -euo pipefail
caller=$PWD
cd "$(dirname "$0")/.."

dir=runs/bench_io size_gib=4 rounds=5 activations=
while (($#)); do
  case $1 in
    -h | --help)
      sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    --dir) dir=$2; shift 2 ;;
    --size-gib) size_gib=$2; shift 2 ;;
    --rounds) rounds=$2; shift 2 ;;
    --activations) activations=$(cd "$caller" && realpath "$2"); shift 2 ;;
    *) echo "bench_io: unknown option '$1', try --help" >&2; exit 2 ;;
  esac
done

cmake -S . -B build/storage -G Ninja -DCMAKE_BUILD_TYPE=Release -DCOPPICE_TORCH=OFF >/dev/null
cmake --build build/storage --target io_bench
bench=$PWD/build/storage/bin/io_bench
if [[ -n $activations ]]; then
  exec "$bench" code-cache "$activations"
fi
if ! command -v fio >/dev/null; then
  if ((EUID != 0)); then
    echo "bench_io: no fio; run as root: apt-get install -y fio" >&2
    exit 1
  fi
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends fio
fi

scratch=$dir/scratch.$$
mkdir -p "$scratch"
trap 'rm -rf "$scratch"; rmdir --ignore-fail-on-non-empty "$dir"' EXIT
results=$scratch/results.txt
size_mib=$((size_gib * 1024))

# ours WHAT ARGUMENTS…: one line of results
ours() {
  echo "ours $1 $("$bench" "${@:2}" 2>>"$scratch/fallbacks.txt")" >>"$results"
}

# theirs WHAT OPTIONS…: the same of fio, whose buffers lie in huge pages as ours do
theirs() {
  GLIBC_TUNABLES=glibc.malloc.hugetlb=1 fio --name="$1" --scramble_buffers=0 --output-format=json \
    "${@:2}" >"$scratch/fio.json"
  echo "fio $1 $(python3 scripts/bench_io_summary.py --fio "$scratch/fio.json")" >>"$results"
}

fast=(--ioengine=io_uring --direct=1 --bs=4M --iodepth=8 --fixedbufs --registerfiles)
buffered=(--ioengine=psync --direct=0 --bs=4M --fallocate=none --end_fsync=1)
half=$((size_mib / 2)) quarter=$((size_mib / 4))
num_files=$(((half + 511) / 512))

echo "bench_io: making a checkpoint of $size_gib GiB in $scratch"
"$bench" write-shards "$scratch/model" "$size_mib" >/dev/null
shards=$(find "$scratch/model" -name '*.safetensors' | sort | paste -sd:)
for ((round = 1; round <= rounds; ++round)); do
  echo "bench_io: round $round of $rounds"
  ours read read "$scratch/model" registered
  theirs read --filename="$shards" --file_service_type=sequential --rw=read "${fast[@]}"
  ours read-plain read "$scratch/model" plain
  ours read-pread read "$scratch/model" pread

  ours shards write-shards "$scratch/new" "$half"
  rm -rf "$scratch/new"
  theirs shards --directory="$scratch" --nrfiles="$num_files" --filesize=$((half / num_files))M \
    --file_service_type=sequential --rw=write --fallocate=native --end_fsync=1 "${fast[@]}"
  rm -f "$scratch"/shards.*

  ours cache-raw write-cache "$scratch/raw.h5" "$quarter" raw
  rm -f "$scratch/raw.h5"
  theirs cache --directory="$scratch" --size="${quarter}M" --rw=write "${buffered[@]}"
  rm -f "$scratch"/cache.*
  ours cache-compressed write-cache "$scratch/compressed.h5" "$quarter" compressed
  rm -f "$scratch/compressed.h5"
done

echo
echo "$(nproc) cores, Linux $(uname -r), $(df --output=fstype "$scratch" | tail -1) on $(df --output=source "$scratch" | tail -1), $(fio --version), $(date -I)"
python3 scripts/bench_io_summary.py "$results"
sort -u "$scratch/fallbacks.txt"
