#!/usr/bin/env bash
# Packs the release build for a GPU machine that has Python with torch and nothing else of ours.
#
# usage: scripts/package.sh OUT.tar.xz|OUT.tar.zst [--build DIR] [--max-mib N]
#
#   --build DIR    a finished build         (default: build/release; scripts/build.sh release makes it)
#   --max-mib N    what OUT may weigh       (default: 64)
#
# Inside: coppice/coppice.sh, which runs the program; bin/coppice, bin/ops_bench and the test
# programs of scripts/gpu_tests.txt, stripped; of the libraries they need those that come neither with torch nor
# with glibc; recipes; scripts/bench_gpu.sh and what it needs. On the other machine:
#
#   tar -xf OUT.tar.xz && coppice/scripts/bench_gpu.sh

set -euo pipefail
caller=$PWD
cd "$(dirname "$0")/.."

out='' build=build/release max_mib=64
while (($#)); do
  case $1 in
    -h | --help)
      sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    --build) build=$2; shift 2 ;;
    --max-mib) max_mib=$2; shift 2 ;;
    -*) echo "package: unknown option '$1', try --help" >&2; exit 2 ;;
    *) out=$1; shift ;;
  esac
done
case $out in
  *.tar.xz) compress=(xz -T0 -6) ;;
  *.tar.zst) compress=(zstd -q -T0 -12) ;;
  *) echo "package: '$out': give a file that ends in .tar.xz or .tar.zst" >&2; exit 2 ;;
esac
[[ $out == /* ]] || out=$caller/$out
if [[ ! -x $build/bin/coppice ]]; then
  echo "package: no $build/bin/coppice: run scripts/build.sh release first" >&2
  exit 2
fi

scratch=$(mktemp -d "${TMPDIR:-/tmp}/coppice-package.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
package=$scratch/coppice
mkdir -p "$package"/{bin,tests,lib/libstdcxx,scripts,configs}

# Programs, stripped, without the build's folders of libraries.
for program in coppice ops_bench; do
  strip -o "$package/bin/$program" "$build/bin/$program"
done
grep -v '^#' scripts/gpu_tests.txt | while read -r pattern; do
  for test in "$build"/tests/$pattern; do
    [[ -x $test ]] && strip -o "$package/tests/${test##*/}" "$test"
  done
done
if [[ -z $(ls "$package/tests") ]]; then
  echo "package: $build/tests has none of scripts/gpu_tests.txt: run scripts/build.sh release first" >&2
  exit 2
fi
programs=("$package"/bin/* "$package"/tests/*)

# What torch brings, and what all of it comes down to.
python=$(sed -n 's/^COPPICE_PYTHON:FILEPATH=//p' "$build/CMakeCache.txt")
torch=$("$python" -c "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])")
find "$torch/lib" "$torch"/../nvidia/*/lib -name '*.so*' -printf '%f\n' 2>/dev/null | sort -u >"$scratch/torch"
{
  ldd "$build/bin/coppice"
  ldd "$build/bin/ops_bench"
  for program in "$package"/tests/*; do ldd "$build/tests/${program##*/}"; done
} | awk '$2 == "=>" {print $1, $3}' | sort -u >"$scratch/loaded"
if grep ' not$' "$scratch/loaded" >&2; then
  echo "package: these libraries are not found here: run scripts/setup.sh, then build" >&2
  exit 1
fi

while read -r name path; do
  grep -qxF "$name" "$scratch/torch" && continue
  case $name in
    # glibc's: with the loader of the other machine they are one.
    ld-linux* | libc.so.* | libm.so.* | libdl.so.* | libpthread.so.* | librt.so.* | libutil.so.* | \
      libresolv.so.* | libmvec.so.* | libanl.so.*) ;;
    libstdc++.so.* | libgcc_s.so.*) install -m 644 "$path" "$package/lib/libstdcxx/$name" ;;
    *) strip -o "$package/lib/$name" "$path" ;;
  esac
done <"$scratch/loaded"
for program in "${programs[@]}"; do
  cmake -D "program=$program" -P scripts/package/own_libraries.cmake >/dev/null
done

install -m 755 scripts/package/coppice.sh "$package/coppice.sh"
install -m 755 scripts/bench_gpu.sh "$package/scripts/bench_gpu.sh"
install -m 644 scripts/package/library_path.py scripts/bench_gpu.py scripts/bench_gpu_programs.py \
  scripts/bench_gpu_sizes.py scripts/bench_gpu_support.py \
  scripts/gpu_rates.py scripts/gpu_tests.txt scripts/make_synthetic.py scripts/measuring_steps.py \
  scripts/quickstart_summary.py scripts/sparsegpt_reference.py "$package/scripts"
cp -r configs/recipes "$package/configs/recipes"

# highest PREFIX FILES…: the highest symbol version of that prefix that they ask for
highest() {
  objdump -T "${@:2}" | grep -F '*UND*' | grep -oE "\b$1_[0-9.]+" | sort -uV | tail -1
}
ours=("${programs[@]}" "$package"/lib/*.so*)
direct=$(readelf -d "${programs[@]}" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | sort -u)
"$python" - "$package/package.json" "$(highest GLIBC "${ours[@]}")" "$(highest GLIBCXX "${ours[@]}")" \
  "$(highest GLIBC "$package"/lib/libstdcxx/*)" $(grep -xF -f "$scratch/torch" <<<"$direct") <<'PY'
import importlib.metadata, json, pathlib, sys

file, glibc, libstdcxx, glibc_of_libstdcxx, *from_torch = sys.argv[1:]
needs = {
    "glibc": glibc.removeprefix("GLIBC_"),
    "libstdcxx": libstdcxx,
    "glibc_of_libstdcxx": glibc_of_libstdcxx.removeprefix("GLIBC_"),
    "torch": importlib.metadata.version("torch"),
    "from_torch": from_torch,
}
pathlib.Path(file).write_text(json.dumps(needs, indent=1) + "\n")
PY

tar -C "$scratch" --sort=name --owner=0 --group=0 -c coppice | "${compress[@]}" >"$scratch/out"
bytes=$(stat -c %s "$scratch/out")
if ((bytes > max_mib << 20)); then
  echo "package: $((bytes >> 20)) MiB, may weigh $max_mib MiB (--max-mib); the largest, not compressed:" >&2
  (cd "$package" && find . -type f -printf '%s %P\n' | sort -rn | head -12 |
    awk '{printf "  %7.1f MiB  %s\n", $1 / 1048576, $2}') >&2
  exit 1
fi
mv "$scratch/out" "$out"
echo "$out: $((bytes >> 20)) MiB; $(find "$package/tests" -type f | wc -l) test programs, $(find "$package/lib" -name '*.so*' | wc -l) libraries"
