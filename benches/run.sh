#!/usr/bin/env bash
# Builds the host-time benchmarks and runs them; docs/BENCHMARKS.md says what the numbers mean.
#
#   bash benches/run.sh [--json FILE] [--torch LIBTORCH_DIR] [--rmm RMM_DIR]
#                       [--device auto|cuda|sim] [--rounds N] [--plot SVG] [--quick]
#   bash benches/run.sh --build-only DIR
#
# The second form leaves in DIR all that another machine needs, which then runs DIR/run-here.sh with
# the options of the first form. It needs neither cargo nor cmake there; for the peers it needs g++
# and CUDA's headers.
set -eu

. "$(dirname "${BASH_SOURCE[0]}")/library.sh"
begin_build "$@"
mkdir -p "$out/peers"
cargo bench --locked --bench rust_host --no-run --message-format=json 2>/dev/null |
  sed -n 's/.*"executable":"\([^"]*rust_host[^"]*\)".*/\1/p' >"$out/rust_host.path"
cp "$(cat "$out/rust_host.path")" "$out/rust_host"
rm "$out/rust_host.path"

"${CXX:-g++}" -O2 -std=c++17 -Wall -Wextra -Icpp/include -o "$out/plugalloc_host" \
  benches/cpp/plugalloc_host.cpp -L"$out" -lplugalloc -Wl,-rpath,'$ORIGIN' -pthread -ldl
[ "${BENCH_SYMBOLS:-no}" = yes ] || strip --strip-debug "$out/rust_host"
cp benches/run-here.sh benches/table.py benches/plot.py "$out/"
cp benches/cpp/*.hpp benches/cpp/torch_host.cpp benches/cpp/rmm_host.cpp \
  benches/cpp/stand_in_cudart.cpp "$out/peers/"

if [ $run = yes ]; then
  exec bash "$out/run-here.sh" ${arguments[@]+"${arguments[@]}"}
fi
echo "run it with: bash $out/run-here.sh" >&2
