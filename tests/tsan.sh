#!/usr/bin/env bash
# Runs the tests of threads under ThreadSanitizer, the standard library and the C++ classes included:
#
#     tests/tsan.sh [TEST...]     # default: stress, threads, lanes, racing, peaks, pluggable, bridge
#
# The compiler ships the sanitizer's runtime, but the standard library it ships is not instrumented:
# its own locks would look like races. So the library is built from its source, which is fetched into
# the target folder where the toolchain has none. Both need flags that stable Rust keeps for itself
# (RUSTC_BOOTSTRAP). Where the source cannot be had, says so and succeeds.
set -euo pipefail
cd "$(dirname "$0")/.."

target="${CARGO_TARGET_DIR:-$PWD/target}"
tools="$target/tools"
host=$(rustc -vV | sed -n 's/^host: //p')
version=$(rustc -V | cut -d' ' -f2)
sysroot=$(rustc --print sysroot)
[ $# -gt 0 ] || set -- stress threads lanes racing peaks pluggable bridge

# A view of the toolchain with the library's source in its place. `rustc` looks for its own files
# where --sysroot says, and cargo asks it.
add_source() {
  local view="$tools/rust-$version-with-source" file="rust-src-$version"
  export RUSTC="$view/rustc"
  [ ! -x "$RUSTC" ] || return 0
  mkdir -p "$tools"
  rm -rf "$view"
  curl -fsSL --retry 2 -o "$tools/$file.tar.xz" \
    "https://static.rust-lang.org/dist/$file.tar.xz" || return 1
  tar -xJf "$tools/$file.tar.xz" -C "$tools"
  cp -as "$sysroot" "$view"
  mv "$tools/$file/rust-src/lib/rustlib/src" "$view/lib/rustlib/src"
  rm -rf "${tools:?}/$file" "$tools/$file.tar.xz"
  printf '#!/bin/sh\nexec "%s/bin/rustc" --sysroot "%s" "$@"\n' "$sysroot" "$view" >"$RUSTC"
  chmod +x "$RUSTC"
}

if [ ! -e "$sysroot/lib/rustlib/src/rust/library/Cargo.lock" ] && ! add_source; then
  echo "skipped: the source of Rust's standard library (rust-src) is not there and cannot be fetched"
  exit 0
fi

tests=()
for name in "$@"; do tests+=(--test "$name"); done
# A folder of its own, so that nothing else is built anew.
export CARGO_TARGET_DIR="$target/tsan"
export RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=thread ${RUSTFLAGS:-}"
export CXXFLAGS="-fsanitize=thread ${CXXFLAGS:-}"
export TSAN_OPTIONS="halt_on_error=0 exitcode=66 second_deadlock_stack=1 ${TSAN_OPTIONS:-}"
exec cargo test --locked -Zbuild-std --target "$host" "${tests[@]}" --no-fail-fast
