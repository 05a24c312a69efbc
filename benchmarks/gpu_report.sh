#!/usr/bin/env bash
# Everything that a GPU can tell about this project, in one call of at most ten minutes:
#
#     bash benchmarks/gpu_report.sh [--dry-run] [--espnet CHECKOUT] DIR
#
# Builds the package for this GPU, measures, tests and sanitizes it, and prints a short table
# last. Needs no network. A step that fails or runs out of its time is a row of the table, and the
# next one starts. Into DIR: summary.txt, the logs and the full numbers as CSV. --dry-run does on
# a machine without a GPU what can be done there, with shapes to match.
set -uo pipefail

dry_run=0 espnet="" dir=""
while (($#)); do
  case "$1" in
    --dry-run) dry_run=1 ;;
    --espnet) espnet="$(realpath "$2")" && shift ;;
    -*) echo "usage: $0 [--dry-run] [--espnet CHECKOUT] DIR" >&2 && exit 2 ;;
    *) dir="$1" ;;
  esac
  shift
done
[[ -n "$dir" ]] || { echo "usage: $0 [--dry-run] [--espnet CHECKOUT] DIR" >&2 && exit 2; }
if ((!dry_run)) && ! nvidia-smi -L >/dev/null 2>&1; then
  echo "$0: no NVIDIA GPU here (nvidia-smi -L); --dry-run does what needs none" >&2
  exit 2
fi

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
mkdir -p "$dir" && dir="$(realpath "$dir")"
work="$(mktemp -d)" && trap 'rm -rf "$work"' EXIT
site="$work/site" # The package is installed here: nothing of the machine changes.
cd "$root" || exit 2
export PYTHONPATH="$site" PYTHONUNBUFFERED=1 XLA_PYTHON_CLIENT_PREALLOCATE=false

deadline=${GPU_REPORT_SECONDS:-570} # what a caller's limit of ten minutes leaves
capability=90
((dry_run)) || capability="$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader |
  head -n 1 | tr -d '.')"

# ---- Steps ---------------------------------------------------------------------------

left() { echo $((deadline - SECONDS)); }

row() { printf '%-22s %-22s %5s  %s\n' "$1" "$2" "$3" "$4" >>"$work/rows"; }

# run NAME SECONDS LOG COMMAND...: a row with its outcome; `detail` adds to it. Interrupted at
# its limit, so that pytest still sums up, and killed if it does not listen.
run() {
  local name="$1" limit="$2" log="$3" start=$SECONDS status outcome
  shift 3
  ((limit > $(left))) && limit=$(left)
  if ((limit < 5)); then
    row "$name" "no time left" "" ""
    return 1
  fi
  echo "== $name: $*" >>"$log"
  timeout --signal=INT --kill-after=10 "$limit" "$@" >>"$log" 2>&1
  status=$?
  case $status in
    0) outcome=ok ;;
    124 | 137) outcome="STOPPED at ${limit} s" ;;
    *) outcome="FAILED ($status)" ;;
  esac
  row "$name" "$outcome" "$((SECONDS - start))s" "$(
    { detail "$name" "$log" && ((status)) && tail -n 1 "$log" | cut -c 1-90; } 2>/dev/null |
      paste -sd ' '
  )"
  return $status
}

detail() {
  case "$1" in
    tests*) # from the lines of -v, with and without workers: a run that is killed has no sum
      for outcome in PASSED FAILED ERROR SKIPPED; do
        echo "$(grep -cE "\] $outcome | $outcome( \(.*\))? +\[" "$2") ${outcome,,}"
      done | paste -sd ','
      grep -E '^=+ .* in [0-9.]+s' "$2" | tail -n 1 | sed -E 's/^=+ | =+$//g'
      ;;
    collection*) grep -E 'collected|error' "$2" | tail -n 1 | sed -E 's/^=+ | =+$//g' ;;
    *native) for program in kernels cuda_test; do
      [[ -x "$work/$program" ]] || echo "no $program"
    done | paste -sd ' ' ;;
    sanitizer*) grep -E 'ERROR SUMMARY|RACECHECK SUMMARY|all as expected' "$2" | tail -n 2 |
      sed 's/=* *//' | paste -sd ' ' ;;
    *) ;;
  esac
  return 0
}

skip() { row "$1" "skipped: ${2:-no GPU}" "" ""; }

# ---- Facts ---------------------------------------------------------------------------

{
  date -u '+%Y-%m-%d %H:%M UTC'
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null ||
    echo "no GPU"
  echo "commit $(git -c safe.directory='*' describe --always --dirty 2>/dev/null || echo unknown)"
  nvcc --version 2>/dev/null | grep release
  python3 -P - <<'EOF'
import importlib.metadata as metadata
import platform

found = [f"Python {platform.python_version()}"]
for name in ("jax", "jaxlib", "jax-cuda13-plugin", "numpy", "torch", "torchaudio", "numba-cuda"):
    try:
        found.append(f"{name} {metadata.version(name)}")
    except metadata.PackageNotFoundError:
        found.append(f"no {name}")
print(", ".join(found))
EOF
} >"$work/facts" 2>/dev/null

# ---- Build: the package, and beside it the programs without Python ----------------------

build_native() { # quietly in parallel; the linker says what is missing
  local objects=() source object
  mkdir -p "$work/native"
  for source in cuda/*.cu benchmarks/kernels.cu tests/native/cuda_test.cc; do
    [[ -e $source ]] || continue
    object="$work/native/$(echo "$source" | tr '/.' '__').o"
    nvcc -x cu -std=c++17 -O3 -arch=sm_$capability -lineinfo -I. -c "$source" -o "$object" &
    [[ $source == cuda/* ]] && objects+=("$object")
  done
  for source in arc_log_probs dispatch lattice logit_gradients loops; do
    object="$work/native/cpu_$source.o"
    c++ -std=c++17 -O3 -Wno-psabi -fopenmp-simd -fno-math-errno -fno-trapping-math -I. \
      -DMBRNNT_ISA=baseline -c "cpu/$source.cc" -o "$object" &
  done
  wait
  nvcc -arch=sm_$capability "$work"/native/benchmarks_kernels_cu.o "${objects[@]}" \
    "$work"/native/cpu_*.o -o "$work/kernels"
  nvcc -arch=sm_$capability "$work"/native/tests_native_cuda_test_cc.o "${objects[@]}" \
    "$work"/native/cpu_*.o -o "$work/cuda_test"
  [[ -x "$work/kernels" && -x "$work/cuda_test" ]]
}
export -f build_native
export work capability

install_package() {
  export JAX_MBRNNT_CUDA=ON CMAKE_ARGS="-DCMAKE_CUDA_ARCHITECTURES=$capability-real"
  python3 -m pip install \
    --no-build-isolation --no-deps --no-index --disable-pip-version-check --target "$site" \
    --config-settings=build-dir="$work/build" -v .
}
export -f install_package
export site

rm -f "$dir"/{build,native,benchmarks,tests}.log "$dir"/{kernels,gpu,ncu}.csv
((dry_run)) || run "JAX sees the GPU" 60 "$dir/build.log" \
  python3 -P -c 'import jax; assert jax.default_backend() == "gpu", jax.devices()'
run "build: native" 150 "$work/native.log" bash -c build_native &
run "build: package" 180 "$dir/build.log" bash -c install_package
wait
cat "$work/native.log" >>"$dir/build.log"

# ---- Measurements first: what comes late may run out of time -----------------------------

bandwidth=()
if ((dry_run)); then
  skip "kernels"
  run "value_and_grad (CPU)" 200 "$dir/benchmarks.log" bash -c \
    "set -o pipefail; python3 benchmarks/gpu.py --shapes small --seconds 120 --rounds 3 \
      --csv '$dir/gpu.csv' ${espnet:+--espnet '$espnet'} | tee '$work/gpu.txt'"
  run "joint (CPU)" 60 "$dir/benchmarks.log" bash -c \
    "set -o pipefail; python3 benchmarks/joint.py --large --quick | tee '$work/joint.txt'"
else
  [[ -x "$work/cuda_test" ]] && run "cuda_test" 40 "$dir/native.log" "$work/cuda_test"
  [[ -x "$work/kernels" ]] && run "kernels" 110 "$dir/benchmarks.log" bash -c \
    "set -o pipefail; '$work/kernels' --csv '$dir/kernels.csv' | tee '$work/kernels.txt'"
  copied="$(awk -F, '$1 == "copy" { print $14 }' "$dir/kernels.csv" 2>/dev/null)"
  [[ -n "$copied" ]] && bandwidth=(--bandwidth "$copied")
  run "value_and_grad" 225 "$dir/benchmarks.log" bash -c \
    "set -o pipefail; python3 benchmarks/gpu.py --seconds 200 --csv '$dir/gpu.csv' \
      ${bandwidth[*]} ${espnet:+--espnet '$espnet'} | tee '$work/gpu.txt'"
  run "joint" 60 "$dir/benchmarks.log" bash -c \
    "set -o pipefail; python3 benchmarks/joint.py --large | tee '$work/joint.txt'"
fi

# ---- Tests and sanitizers, side by side: neither is timed -----------------------------------

# -P: from the repository's root Python would import the source tree, which has no kernels.
workers=()
python3 -P -c 'import xdist' 2>/dev/null && workers=(-n "${GPU_REPORT_WORKERS:-4}")
pytest=(env PYTHONSAFEPATH=1 python3 -P -m pytest tests --backend=gpu -p no:cacheprovider)

sanitize() {
  local tool scale=1 # of the cases, one in so many
  for tool in memcheck synccheck initcheck racecheck; do # the slowest last
    run "sanitizer $tool" 60 "$work/$tool.log" \
      compute-sanitizer --tool "$tool" --error-exitcode 3 "$work/cuda_test" "$scale"
    cat "$work/$tool.log" >>"$dir/native.log"
    scale=4
  done
}

if ((dry_run)); then
  run "collection (gpu)" 120 "$dir/tests.log" "${pytest[@]}" --collect-only -q
  for step in tests "sanitizer memcheck" "sanitizer racecheck" "sanitizer initcheck" \
    "sanitizer synccheck" ncu; do skip "$step"; done
else
  if [[ ! -x "$work/cuda_test" ]]; then
    skip sanitizers "no program"
  elif ! command -v compute-sanitizer >/dev/null; then
    skip sanitizers "not here"
  else
    sanitize &
  fi
  reserve=45 # for ncu
  limit=$(($(left) - reserve))
  run "tests" $((limit < 240 ? limit : 240)) "$dir/tests.log" \
    "${pytest[@]}" -v --durations=10 "${workers[@]}"
  wait
  if command -v ncu >/dev/null && [[ -x "$work/kernels" ]]; then
    metrics=gpu__time_duration.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed
    metrics+=,sm__throughput.avg.pct_of_peak_sustained_elapsed,launch__registers_per_thread
    metrics+=,sm__warps_active.avg.pct_of_peak_sustained_active,dram__bytes_read.sum
    metrics+=,dram__bytes_write.sum
    run "ncu" 60 "$dir/ncu.csv" ncu --clock-control none --csv --page raw --metrics "$metrics" \
      "$work/kernels" --profile
    python3 -P - "$dir/ncu.csv" >"$work/ncu.txt" 2>/dev/null <<'EOF'
import csv
import sys

lines = open(sys.argv[1]).read().splitlines()
start = next(i for i, line in enumerate(lines) if line.startswith('"ID"'))
units, *rows = csv.DictReader(lines[start:])
metrics = [name for name in units if "__" in name]
print("ncu, " + ", ".join(name.split(".")[0] + f" [{units[name]}]" for name in metrics))
for row in rows:
    name = row["Kernel Name"].removeprefix("void ").replace("mbrnnt::", "")
    print(f"{name[:50]:50}" + "".join(f"{row[name]:>12}" for name in metrics))
EOF
  else
    skip ncu "not here"
  fi
fi

# ---- The table -----------------------------------------------------------------------

for log in "$dir"/*.log "$dir"/*.csv; do # no file beyond 8 MB: the end tells most
  [[ -e $log && $(stat -c %s "$log") -gt 8000000 ]] || continue
  tail -c 8000000 "$log" >"$work/tail" && mv "$work/tail" "$log"
done
{
  cat "$work/facts"
  echo
  cat "$work/rows"
  for table in kernels gpu joint ncu; do
    [[ -s "$work/$table.txt" ]] && echo && cat "$work/$table.txt"
  done
  echo
  echo "whole report: $SECONDS s"
} | tee "$dir/summary.txt"
! grep -qE 'FAILED|STOPPED|no time' "$work/rows"
