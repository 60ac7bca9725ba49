#!/usr/bin/env bash
# Runs a program under compute-sanitizer's memcheck with the full leak check, and fails on any
# finding. With the executable of the GPU's tests and nothing else, it runs those of them that
# depend neither on time nor on how much memory is free (the tool takes some), in mapped memory and in
# whole segments. Then it checks that a read past the end of a block is found in whole segments, which
# are the default under the tool, and that in mapped memory the tool is told nothing that it refuses.
#
#   tests/gpu/sanitize.sh target/debug/deps/gpu-0123456789abcdef
#   tests/gpu/sanitize.sh target/release/examples/kernel --some argument
#
# COMPUTE_SANITIZER names the tool where it is not on the PATH.
set -u

tool=${COMPUTE_SANITIZER:-compute-sanitizer}
if [ $# -lt 1 ]; then
  echo "usage: $0 PROGRAM [ARGUMENT...]" >&2
  exit 2
fi
if ! command -v "$tool" > /dev/null; then
  echo "no $tool here: install the CUDA toolkit, or set COMPUTE_SANITIZER" >&2
  exit 2
fi
program=$1
shift
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# Runs the program under the tool; what both print goes to the log. Calls of the driver that fail
# are no findings: running out of memory is what some tests are about.
under_tool() {
  timeout 900 "$tool" --tool memcheck --leak-check full --report-api-errors no --nvtx yes \
    --error-exitcode 99 "$program" "$@" > "$log" 2>&1
}

# Passes if the log tells of no error and no leak.
expect_nothing() {
  local status=$1 what=$2
  if [ "$status" -ne 0 ] || ! grep -q "ERROR SUMMARY: 0 errors" "$log" ||
    grep -E "LEAK SUMMARY: [1-9]|nvtxMem[A-Za-z]* failed" "$log"; then
    cat "$log"
    echo "FAILED: $what (status $status)"
    return 1
  fi
  grep -E "SUMMARY|test result" "$log"
  echo "passed: $what"
}

# Passes if the tool has found the read past the end of both blocks, and nothing before them.
expect_overrun() {
  local what=$1 found
  found=$(grep -c "Invalid __global__ read" "$log")
  if ! grep -q "within its blocks so far" "$log" || [ "$found" -lt 1 ] ||
    sed '/within its blocks so far/q' "$log" | grep -q "Invalid"; then
    cat "$log"
    echo "FAILED: $what ($found found)"
    return 1
  fi
  echo "passed: $what ($found found)"
}

failed=0
if [ $# -gt 0 ] || [[ $(basename "$program") != gpu* ]]; then
  under_tool "$@"
  expect_nothing $? "$(basename "$program") $*" || failed=1
  exit $failed
fi

tests=(
  captures::a_graph_over_allocated_blocks_replays_rightly_while_others_allocate
  engine::blocks_keep_their_bytes_while_others_come_and_go
  engine::a_request_larger_than_the_device_is_out_of_memory
  interop::streams_go_to_cudarc_and_come_back
  interop::values_go_to_cudarc_and_come_back_in_place
  memory::every_kind_of_stream_runs_work
  memory::memory_for_network_cards_is_made_where_the_device_can
  work::a_graph_of_kernels_replays_rightly_while_others_allocate
  work::patterns_survive_on_busy_streams_that_share_little_memory
)
# Segments of 20 MiB leave more of a small share unused than this allows.
mapped_only=engine::a_small_share_of_the_memory_runs_out_and_comes_back
for conf in expandable_segments:True ""; do
  if [ -n "$conf" ]; then tests+=("$mapped_only"); else unset 'tests[-1]'; fi
  PLUGALLOC_CONF=$conf under_tool --exact --test-threads=1 "${tests[@]}"
  expect_nothing $? "tests of the GPU, configuration '$conf'" || failed=1
  if ! grep -q "test result: ok. ${#tests[@]} passed" "$log"; then
    echo "FAILED: not all of the ${#tests[@]} tests ran"
    failed=1
  fi
done

export PLUGALLOC_OVERRUN=1
overrun=sanitizer::a_read_past_the_end_of_a_block
for conf in "" expandable_segments:False; do
  PLUGALLOC_CONF=$conf under_tool --exact --nocapture $overrun
  expect_overrun "a read past the end is found, configuration '$conf'" || failed=1
done
PLUGALLOC_CONF=expandable_segments:True under_tool --exact --nocapture $overrun
expect_nothing $? "in mapped memory nothing is told" || failed=1
exit $failed
