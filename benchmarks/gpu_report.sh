#!/usr/bin/env bash
# Everything that a GPU can tell about this project, in two calls of at most ten minutes each:
#
#     bash benchmarks/gpu_report.sh [--dry-run] kernels DIR
#     bash benchmarks/gpu_report.sh [--dry-run] [--espnet CHECKOUT] jax DIR
#
# `kernels` needs no JAX: it builds the CUDA kernels for this GPU, tests, sanitizes, times and
# profiles them. `jax` installs the package into a temporary directory, runs the tests and times what
# a user calls. Neither needs a network. What comes out is printed at once and kept in
# DIR/kernels.txt or DIR/jax.txt; the logs and the full numbers as CSV are beside it. A step that
# fails or runs out of its time is a row, and the next one starts. --dry-run does on a machine
# without a GPU what can be done there, with shapes to match.
set -uo pipefail

usage="usage: $0 [--dry-run] [--espnet CHECKOUT] kernels|jax DIR"
dry_run=0 espnet="" part="" dir=""
while (($#)); do
  case "$1" in
    --dry-run) dry_run=1 ;;
    --espnet) espnet="$(realpath "$2")" && shift ;;
    -*) echo "$usage" >&2 && exit 2 ;;
    *) if [[ -z "$part" ]]; then part="$1"; else dir="$1"; fi ;;
  esac
  shift
done
[[ -n "$dir" && "$part" =~ ^(kernels|jax)$ ]] || { echo "$usage" >&2 && exit 2; }
if ((!dry_run)) && ! nvidia-smi -L >/dev/null 2>&1; then
  echo "$0: no NVIDIA GPU here (nvidia-smi -L); --dry-run does what needs none" >&2
  exit 2
fi

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
mkdir -p "$dir" && dir="$(realpath "$dir")"
work="$(mktemp -d)" && trap 'rm -rf "$work"' EXIT
site="$work/site" # The package is installed here: nothing of the machine changes.
cd "$root" || exit 2
exec 3> >(tee "$dir/$part.txt") # What comes out.
export PYTHONPATH="$site" PYTHONUNBUFFERED=1 XLA_PYTHON_CLIENT_PREALLOCATE=false

deadline=${GPU_REPORT_SECONDS:-570} # what a caller's limit of ten minutes leaves
capability=90
((dry_run)) || capability="$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader |
  head -n 1 | tr -d '.')"

# ---- Steps ---------------------------------------------------------------------------

left() { echo $((deadline - SECONDS)); }

row() { printf '%-22s %-22s %5s  %s\n' "$1" "$2" "$3" "$4" | tee -a "$work/rows" >&3; }

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

# measure NAME SECONDS COMMAND: what it says comes out line by line, then its row.
measure() { run "$1" "$2" "$dir/benchmarks.log" bash -c "$3 >&3"; }

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
  echo
} 2>/dev/null >&3

# ---- The kernels --------------------------------------------------------------------------

build_native() { # quietly in parallel; the linker says what is missing
  local objects=() source object
  mkdir -p "$work/native"
  for source in cuda/*.cu benchmarks/kernels.cu tests/native/cuda_test.cc; do
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

sanitize() { # all at once: none is timed
  local tool scale pids=()
  for tool in memcheck synccheck initcheck racecheck; do
    scale=4 # of the cases, one in so many
    [[ $tool == memcheck ]] && scale=1
    run "sanitizer $tool" 150 "$work/$tool.log" \
      compute-sanitizer --tool "$tool" --error-exitcode 3 "$work/cuda_test" "$scale" &
    pids+=($!)
  done
  wait "${pids[@]}"
  cat "$work"/*check.log >>"$dir/native.log"
}

print_profile() { # ncu talks before and after its table
  python3 -P - "$1" <<'EOF'
import csv
import sys

lines = [line for line in open(sys.argv[1]).read().splitlines() if line.startswith('"')]
units, *rows = csv.DictReader(lines)
metrics = [name for name in units if "__" in name]
print("ncu, " + ", ".join(name.split(".")[0] + f" [{units[name]}]" for name in metrics))
for row in rows:
    name = row["Kernel Name"].removeprefix("void ").replace("mbrnnt::", "")
    print(f"{name[:50]:50}" + "".join(f"{row[name]:>12}" for name in metrics))
EOF
}

profile() {
  local metrics=gpu__time_duration.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed
  metrics+=,sm__throughput.avg.pct_of_peak_sustained_elapsed,launch__registers_per_thread
  metrics+=,sm__warps_active.avg.pct_of_peak_sustained_active,dram__bytes_read.sum
  metrics+=,dram__bytes_write.sum
  run "ncu" 60 "$dir/ncu.csv" ncu --clock-control none --csv --page raw --metrics "$metrics" \
    "$work/kernels" --profile benchmarks/shapes.csv
  measure "ncu's table" 20 "print_profile '$dir/ncu.csv'"
}

report_kernels() {
  rm -f "$dir"/{native,benchmarks}.log "$dir"/{kernels,ncu}.csv
  run "build: native" 240 "$dir/native.log" bash -c build_native || return
  if ((dry_run)); then
    for step in cuda_test sanitizers kernels ncu; do skip "$step"; done
    printf '%s\n' '==PROF== Connected to process 1' '"ID","Kernel Name","gpu__time.sum"' '"","","us"' \
      '"0","void mbrnnt::cuda::NoKernel<float>","1.5"' '==PROF== Disconnected' >"$work/ncu.csv"
    measure "ncu's table" 20 "print_profile '$work/ncu.csv' | grep 'NoKernel.* 1.5'"
    return
  fi
  run "cuda_test" 40 "$dir/native.log" "$work/cuda_test"
  if command -v compute-sanitizer >/dev/null; then sanitize; else skip sanitizers "not here"; fi
  measure "kernels" 110 "'$work/kernels' --csv '$dir/kernels.csv' benchmarks/shapes.csv"
  if command -v ncu >/dev/null; then profile; else skip ncu "not here"; fi
}

# ---- The package --------------------------------------------------------------------------

install_package() {
  export JAX_MBRNNT_CUDA=ON CMAKE_ARGS="-DCMAKE_CUDA_ARCHITECTURES=$capability-real"
  python3 -m pip install \
    --no-build-isolation --no-deps --no-index --disable-pip-version-check --target "$site" \
    --config-settings=build-dir="$work/build" -v .
}

report_jax() {
  # -P: from the repository's root Python would import the source tree, which has no kernels.
  # The products in the tests need not be the fastest that XLA finds.
  local pytest=(env PYTHONSAFEPATH=1 XLA_FLAGS=--xla_gpu_autotune_level=0
    python3 -P -m pytest tests --backend=gpu -p no:cacheprovider)
  local workers=() peers="${espnet:+--espnet '$espnet'}" bandwidth=""
  local benchmarks="python3 -m benchmarks" # which prefers an installed package by itself
  rm -f "$dir"/{build,benchmarks,tests}.log "$dir"/{loss,joint_large}.{txt,csv}
  ((dry_run)) || run "JAX sees the GPU" 60 "$dir/build.log" \
    python3 -P -c 'import jax; assert jax.default_backend() == "gpu", jax.devices()'
  run "build: package" 240 "$dir/build.log" bash -c install_package || return
  if ((dry_run)); then
    run "collection (gpu)" 120 "$dir/tests.log" "${pytest[@]}" --collect-only -q
    skip "tests"
    measure "value_and_grad (CPU)" 180 "$benchmarks loss --quick --as-gpu --out '$dir' $peers"
    measure "joint (CPU)" 60 "$benchmarks joint --large --quick --out '$dir'"
    return
  fi
  python3 -P -c 'import xdist' 2>/dev/null && workers=(-n "${GPU_REPORT_WORKERS:-4}")
  run "tests" 200 "$dir/tests.log" "${pytest[@]}" -v --durations=10 "${workers[@]}"
  # What a copy reached in the other part, TB/s, if that was here before.
  bandwidth="$(awk -F, '$1 == "copy" { print $15 }' "$dir/kernels.csv" 2>/dev/null)"
  measure "value_and_grad" 170 "$benchmarks loss --seconds 150 --out '$dir' \
    ${bandwidth:+--bandwidth $bandwidth} $peers"
  measure "joint" 110 "$benchmarks joint --large --out '$dir'"
}

export -f build_native print_profile install_package
export work capability site
"report_$part"

for log in "$dir"/*.log "$dir"/*.csv; do # no file beyond 8 MB: the end tells most
  [[ -e $log && $(stat -c %s "$log") -gt 8000000 ]] || continue
  tail -c 8000000 "$log" >"$work/tail" && mv "$work/tail" "$log"
done
printf '\nwhole report: %s s\n' $SECONDS >&3
exec 3>&- && wait # for the last of it
! grep -qE 'FAILED|STOPPED|no time' "$work/rows"
