#!/usr/bin/env bash
# From nothing to a pruned and reconstructed small model, with numbers: one command, one CPU.
#
# usage: scripts/quickstart.sh [options] [-- further options of `coppice run`]
#
#   --model DIR      Hugging Face directory        (default: SmolLM2-135M, fetched to models/)
#   --dataset FILE   calibration text              (default: Debian's handbook, fetched to data/)
#   --heldout FILE   text to measure on            (default: other chapters of it)
#   --nsamples N     calibration windows           (default: 48)
#   --seqlen N       tokens of a window            (default: 512)
#   --sparsity F     fraction of zeros             (default: 0.5)
#   --lr F           learning rate                 (default: 1e-3)
#   --out DIR        where results go              (default: runs/quickstart)
#
# Prunes once without and once with reconstruction and measures dense, pruned and reconstructed.
# A second call reuses what is there and resumes what was interrupted.

set -euo pipefail
called_from=$PWD
cd "$(dirname "$0")/.."

model="" dataset="" heldout="" nsamples=48 seqlen=512 sparsity=0.5 lr=1e-3 out=runs/quickstart
run_options=()

# Paths are given relative to where the caller stands.
absolute() { [[ $1 == /* ]] && echo "$1" || echo "$called_from/$1"; }

need_value() {
  if (($# < 2)); then
    echo "quickstart: $1 needs a value, try --help" >&2
    exit 2
  fi
}

while (($#)); do
  case "$1" in
    -h | --help)
      sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    --)
      shift
      run_options=("$@")
      break
      ;;
    --model | --dataset | --heldout | --out)
      need_value "$@"
      printf -v "${1#--}" '%s' "$(absolute "$2")"
      shift 2
      ;;
    --nsamples | --seqlen | --sparsity | --lr)
      need_value "$@"
      printf -v "${1#--}" '%s' "$2"
      shift 2
      ;;
    *)
      echo "quickstart: unknown option '$1', try --help" >&2
      exit 2
      ;;
  esac
done

step() { printf '\n== %s\n' "$*"; }

# Results of other settings would be taken for results of these.
check_settings() {
  local settings
  settings="model=$model dataset=$dataset heldout=$heldout nsamples=$nsamples seqlen=$seqlen"
  settings+=" sparsity=$sparsity lr=$lr options=${run_options[*]}"
  mkdir -p "$out"
  if [[ -f $out/settings.txt && "$(<"$out/settings.txt")" != "$settings" ]]; then
    echo "quickstart: $out was made with other settings:" >&2
    echo "  there: $(<"$out/settings.txt")" >&2
    echo "  now:   $settings" >&2
    echo "quickstart: give --out another folder, or remove this one" >&2
    exit 2
  fi
  echo "$settings" >"$out/settings.txt"
}

# prune NAME options…: one `coppice run`, unless its result is complete.
prune() {
  local result=$out/$1
  shift
  if [[ -f $result/model.safetensors.index.json ]]; then
    echo "$result is there already"
    return
  fi
  local resume=()
  [[ -d $result.work ]] && resume=(--resume)
  build/release/bin/coppice run --model "$model" --dataset "$dataset" --prune-method wanda \
    --sparsity "$sparsity" --nsamples "$nsamples" --seqlen "$seqlen" -o "$result" \
    "$@" "${run_options[@]}" "${resume[@]}"
}

# measure NAME DIR: perplexity on the held-out text, unless measured after DIR was completed.
measure() {
  local json=$out/$1.eval.json complete=$2/model.safetensors.index.json
  [[ -f $complete ]] || complete=$2/model.safetensors
  if [[ $json -nt $complete ]]; then
    echo "$json is there already"
    return
  fi
  build/release/bin/coppice eval "$2" --text "$heldout" --seqlen 1024 --max-windows 16 \
    --json "$json.tmp"
  mv "$json.tmp" "$json"
}

scripts/setup.sh
scripts/build.sh release coppice

if [[ -z $model ]]; then
  step "model"
  model=models/smollm2-135m
  .venv/bin/python scripts/fetch_smollm2.py "$model"
fi
if [[ -z $dataset || -z $heldout ]]; then
  step "text"
  .venv/bin/python scripts/handbook_text.py data/handbook
  dataset=${dataset:-data/handbook/calibration.txt}
  heldout=${heldout:-data/handbook/heldout.txt}
fi
check_settings

step "pruned: Wanda, no reconstruction"
prune pruned --window none
step "reconstructed: Wanda, then each half block is fitted to the dense one"
prune reconstructed --window half-block --lr "$lr"

step "perplexity on $heldout"
measure dense "$model"
measure pruned "$out/pruned"
measure reconstructed "$out/reconstructed"

step "result"
.venv/bin/python scripts/quickstart_summary.py "$out" --model "$model"
