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

. "$(dirname "${BASH_SOURCE[0]}")/library.sh"
begin_build "$@"
"${CXX:-g++}" -O2 -std=c++17 -Wall -Wextra -Icpp/include -o "$out/cpp_server" \
  examples/cpp_server/*.cc -L"$out" -lplugalloc -Wl,-rpath,'$ORIGIN' -pthread -ldl
cp benches/server-here.sh benches/server_table.py "$out/"

if [ $run = yes ]; then
  exec bash "$out/server-here.sh" ${arguments[@]+"${arguments[@]}"}
fi
echo "run it with: bash $out/server-here.sh" >&2
