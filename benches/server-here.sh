#!/usr/bin/env bash
# Runs the example server that lies beside this file (see benches/server.sh, which puts it there)
# with each allocator in turn, for several rounds.
#
#   bash server-here.sh [--json FILE] [--device auto|cuda|sim] [--rounds N] [--quick]
#                       [-- OPTIONS OF cpp_server...]
#
# --json writes what was compared, every run and the ratios, as one object a line. --quick serves few requests: it shows that
# everything runs. What follows -- goes to each run, for instance --workers 16 --shapes fixed.
set -eu

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
json= device=auto rounds= quick=no
extra=()
while [ $# -gt 0 ]; do
  case $1 in
    --json | --device | --rounds)
      [ $# -gt 1 ] || { echo "$1 needs a value" >&2; exit 2; }
      printf -v "${1#--}" %s "$2"
      shift 2
      ;;
    --quick) quick=yes; shift ;;
    --) shift; extra=("$@"); break ;;
    *) echo "unknown option '$1'; see the first lines of $0" >&2; exit 2 ;;
  esac
done
[ -n "$rounds" ] || rounds=$([ $quick = yes ] && echo 1 || echo 5)
raw=$(mktemp)
trap 'rm -f "$raw"' EXIT
failed=0

# Where "auto" leads, decided once, with what every device has.
probe=("$here/cpp_server" --allocator cudaMalloc --device "$device")
probe+=(--json --requests 1 --workers 1)
device=$("${probe[@]}" 2>/dev/null | sed -n 's/.*"device": "\([a-z]*\)".*/\1/p')
[ -n "$device" ] || { "${probe[@]}" >&2 || true; exit 1; }

# The timed requests of a worker, and those before, in which its sessions come to be.
requests() { # NAME
  local count=1500 warmup=200
  [ "$device" = cuda ] || { count=200; warmup=60; }
  [ $quick = no ] || { count=$((count / 20)); warmup=$((warmup / 4)); }
  # Every call of cudaMalloc and cudaFree waits for the device, which takes many times as long:
  # fewer requests give its throughput as well.
  [ "$1" != cudaMalloc ] || [ "$count" -le 150 ] || count=150
  echo --requests "$count" --warmup "$warmup"
}

measure() { # NAME SHAPES OPTIONS...
  local name=$1 shapes=$2
  shift 2
  echo "  $name, $shapes shapes" >&2
  # shellcheck disable=SC2046
  timeout 300 "$here/cpp_server" --json --device "$device" --shapes "$shapes" \
    $(requests "$name") "$@" ${extra[@]+"${extra[@]}"} |
    sed "s/^{/{\"name\": \"$name\", \"round\": $round, /" >>"$raw" ||
    { echo "failed: $name, $shapes shapes" >&2; failed=1; }
}

set -o pipefail
for ((round = 1; round <= rounds; ++round)); do
  echo "round $round of $rounds" >&2
  for shapes in random fixed; do
    measure plugalloc $shapes --allocator plugalloc
    if [ "$device" = cuda ]; then
      measure cudaMallocAsync $shapes --allocator cudaMallocAsync
      measure "cudaMallocAsync, threshold 0" $shapes --allocator cudaMallocAsync \
        --release-threshold 0
    fi
    # Once is enough for what takes so long and lies so far off.
    [ $round -gt 1 ] || measure cudaMalloc $shapes --allocator cudaMalloc
  done
done

describe() {
  awk -F': ' '/^model name/ { print $2; exit }' /proc/cpuinfo
  echo "$(nproc) cores"
  [ "$device" != cuda ] ||
    nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -1
}
python3 "$here/server_table.py" "$raw" --rounds "$rounds" \
  --machine "$(describe | paste -sd, | sed 's/,/, /g')" ${json:+--json "$json"}
exit $failed
