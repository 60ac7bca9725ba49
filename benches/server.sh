#!/usr/bin/env bash
# Builds the example server and runs it with each allocator; docs/BENCHMARKS.md says what the
# numbers mean.
#
#   bash benches/server.sh [--json FILE] [--device auto|cuda|sim] [--rounds N] [--quick]
#                          [-- OPTIONS OF cpp_server...]
#   bash benches/server.sh --build-only DIR
#
# The second form leaves in DIR all that another machine needs, which then runs DIR/server-here.sh
# with the options of the first form. It needs neither cargo nor cmake nor a compiler there.
set -eu

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
out=${CARGO_TARGET_DIR:-$root/target}/benches
run=yes
arguments=()
while [ $# -gt 0 ]; do
  case $1 in
    --build-only) out=${2:?"--build-only needs a directory"}; run=no; shift 2 ;;
    -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 0 ;;
    *) arguments+=("$1"); shift ;;
  esac
done

mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$root"
echo "building in $out" >&2
. benches/library.sh
build_library "$out"
"${CXX:-g++}" -O2 -std=c++17 -Wall -Wextra -Icpp/include -o "$out/cpp_server" \
  examples/cpp_server/*.cc -L"$out" -lplugalloc -Wl,-rpath,'$ORIGIN' -pthread -ldl
cp benches/server-here.sh benches/server_table.py "$out/"

if [ $run = yes ]; then
  exec bash "$out/server-here.sh" ${arguments[@]+"${arguments[@]}"}
fi
echo "run it with: bash $out/server-here.sh" >&2
