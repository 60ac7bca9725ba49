#!/usr/bin/env bash
# Runs the benchmarks that lie beside this file (see benches/run.sh, which puts them there).
#
#   bash run-here.sh [--json FILE] [--torch LIBTORCH_DIR] [--rmm RMM_DIR]
#                    [--device auto|cuda|sim] [--rounds N] [--plot SVG] [--quick]
#
# LIBTORCH_DIR has include/ and lib/: a libtorch, or the folder "torch" of an installed wheel.
# RMM_DIR holds the unpacked wheels of librmm and rapids-logger. CUDA's headers are looked for in
# $CUDA_HOME, beside LIBTORCH_DIR (nvidia/), in RMM_DIR and around nvcc.
set -eu

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
json= torch= rmm= device=auto rounds= plot=
quick=()
while [ $# -gt 0 ]; do
  case $1 in
    --json | --torch | --rmm | --device | --rounds | --plot)
      [ $# -gt 1 ] || { echo "$1 needs a value" >&2; exit 2; }
      printf -v "${1#--}" %s "$2"
      shift 2
      ;;
    --quick) quick=(--quick); shift ;;
    *) echo "unknown option '$1'; see the first lines of $0" >&2; exit 2 ;;
  esac
done
[ -n "$rounds" ] || rounds=$([ ${#quick[@]} -gt 0 ] && echo 1 || echo 5)
cxx=${CXX:-g++}
build=$here/peers
raw=$(mktemp)
skipped=$(mktemp)
trap 'rm -f "$raw" "$skipped"' EXIT
gpu=$("$here/plugalloc_host" --mode which-device)
[ "$device" != auto ] || device=$gpu
skip() { echo "skipped: $*" | tee -a "$skipped" >&2; }

# Prints the first folder below which a file lies.
find_below() { # FILE DIR...
  local file=$1 found
  shift
  for dir in "$@"; do
    [ -d "$dir" ] || continue
    found=$(find -L "$dir" -maxdepth 7 -path "*/$file" -print -quit 2>/dev/null)
    [ -z "$found" ] || { echo "${found%/"$file"}"; return 0; }
  done
  return 1
}

cuda_places() {
  echo "${CUDA_HOME:-/usr/local/cuda}"
  [ -z "$torch" ] || echo "$(dirname "$torch")/nvidia"
  [ -z "$rmm" ] || echo "$rmm"
  ! command -v nvcc >/dev/null || dirname "$(dirname "$(readlink -f "$(command -v nvcc)")")"
}
mapfile -t places < <(cuda_places)

# Sets cuda_include, and cudart to the runtime library: the real one or the stand-in.
find_cuda() {
  cuda_include=$(find_below cuda_runtime_api.h "${places[@]}") || return 1
  if [ "$gpu" = cuda ]; then
    cudart=$(find_below libcudart.so.13 "${places[@]}")/libcudart.so.13
    [ -e "$cudart" ] || return 1
    return 0
  fi
  mkdir -p "$build/stand-in"
  cudart=$build/stand-in/libcudart.so.13
  echo 'libcudart.so.13 { global: cuda*; local: *; };' >"$build/stand-in/exports.map"
  "$cxx" -O2 -fPIC -shared -std=c++17 "$build/stand_in_cudart.cpp" -I"$cuda_include" \
    -Wl,-soname,libcudart.so.13 -Wl,--version-script="$build/stand-in/exports.map" -o "$cudart"
}

build_torch() {
  [ -n "$torch" ] || { skip "PyTorch: no --torch LIBTORCH_DIR"; return 1; }
  [ -e "$torch/lib/libc10_cuda.so" ] || { skip "PyTorch: no $torch/lib/libc10_cuda.so"; return 1; }
  find_cuda || { skip "PyTorch: CUDA's headers or libcudart.so.13 not found"; return 1; }
  local libraries=(-lc10_cuda -lc10) defines=()
  if [ "$gpu" = cuda ] && [ -e "$torch/lib/libtorch_cuda.so" ]; then
    libraries=(-Wl,--no-as-needed -ltorch -ltorch_cpu -ltorch_cuda "${libraries[@]}")
    defines=(-DWITH_PLUGGABLE)
  fi
  "$cxx" -O2 -std=c++17 ${defines[@]+"${defines[@]}"} -o "$build/torch_host" \
    "$build/torch_host.cpp" -isystem "$torch/include" \
    -isystem "$torch/include/torch/csrc/api/include" -isystem "$cuda_include" -L"$torch/lib" \
    "${libraries[@]}" "$cudart" -Wl,--allow-shlib-undefined -Wl,-rpath,"$torch/lib" \
    -Wl,-rpath,"$(dirname "$cudart")" -pthread || { skip "PyTorch: does not compile"; return 1; }
  pluggable=${#defines[@]}
}

build_rmm() {
  [ -n "$rmm" ] || { skip "RMM: no --rmm RMM_DIR"; return 1; }
  [ "$gpu" = cuda ] || { skip "RMM: its memory is cudaMalloc's, and there is no GPU"; return 1; }
  find_cuda || { skip "RMM: CUDA's headers or libcudart.so.13 not found"; return 1; }
  local includes=() libs=() file dir
  for file in rmm/mr/pool_memory_resource.hpp rapids_logger/logger.hpp cuda/std/version; do
    dir=$(find_below "$file" "$rmm") && includes+=(-isystem "$dir")
  done
  for file in librmm.so librapids_logger.so; do
    dir=$(find_below "$file" "$rmm") || { skip "RMM: no $file in $rmm"; return 1; }
    libs+=("$dir/$file" -Wl,-rpath,"$dir")
  done
  "$cxx" -O2 -std=c++20 -DLIBCUDACXX_ENABLE_EXPERIMENTAL_MEMORY_RESOURCE \
    -DRAPIDS_LOGGER_LOG_ACTIVE_LEVEL=6 -o "$build/rmm_host" "$build/rmm_host.cpp" \
    "${includes[@]}" -isystem "$cuda_include" "${libs[@]}" "$cudart" \
    -Wl,-rpath,"$(dirname "$cudart")" -pthread || { skip "RMM: does not compile"; return 1; }
}

# Runs one program; what it prints are measures.
measure() {
  echo "  $*" >&2
  timeout 180 "$@" ${quick[@]+"${quick[@]}"} >>"$raw" || skip "failed: $*"
}
torch_host() { # CONF ARGUMENTS...
  local conf=$1
  shift
  PYTORCH_ALLOC_CONF=$conf measure "$build/torch_host" "$@"
}

have_torch=no have_rmm=no pluggable=0
build_torch && have_torch=yes
build_rmm && have_rmm=yes
[ $have_torch = no ] || [ "$pluggable" -gt 0 ] ||
  skip "PyTorch's CUDAPluggableAllocator: it is in libtorch_cuda, which needs a GPU machine"

expandable=expandable_segments:True
plugalloc=("$here/plugalloc_host" --device "$device")
for ((round = 1; round <= rounds; ++round)); do
  echo "round $round of $rounds" >&2
  measure "${plugalloc[@]}" --mode calls
  measure "${plugalloc[@]}" --mode dataptr
  measure "$here/rust_host" --bench --device "$device"
  measure "${plugalloc[@]}" --mode pluggable
  if [ $have_torch = yes ]; then
    torch_host "" --mode native --name "torch native"
    torch_host $expandable --mode native --name "torch expandable"
    torch_host "" --mode dataptr --name "torch DataPtr"
    [ "$pluggable" -eq 0 ] || torch_host "" --mode pluggable --name "torch pluggable"
  fi
  if [ $have_rmm = yes ]; then
    for mode in pool arena binning; do measure "$build/rmm_host" --mode $mode; done
  fi
  measure "${plugalloc[@]}" --mode malloc
done
echo "growth, statistics and history" >&2
for suite in growth statistics history; do
  measure "${plugalloc[@]}" --mode calls --suite $suite
  [ $have_torch = no ] || torch_host "" --mode native --name "torch native" --suite $suite
done
measure "${plugalloc[@]}" --mode malloc --suite growth

describe() {
  awk -F': ' '/^model name/ { print $2; exit }' /proc/cpuinfo
  echo "$(nproc) cores"
  [ "$gpu" != cuda ] || nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -1
}
python3 "$here/table.py" "$raw" --machine "$(describe | paste -sd, | sed 's/,/, /g')" \
  --device "$device" --runtime "$([ "$gpu" = cuda ] && echo real || echo stand-in)" \
  --rounds "$rounds" ${json:+--json "$json"}
[ -z "$plot" ] || python3 "$here/plot.py" "$raw" "$plot"
cat "$skipped"
