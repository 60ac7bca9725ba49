# Sourced by run.sh and server.sh, in the root of the repository: the library as benchmarks use it.

# Builds the shared library in a folder, as CMakeLists.txt links it. The name has no version, so
# that one file is enough on another machine.
build_library() { # DIR
  local target=${CARGO_TARGET_DIR:-target}
  cargo build --release --locked --lib >&2
  "${CXX:-g++}" -shared -o "$1/libplugalloc.so" -Wl,-soname,libplugalloc.so -Wl,--gc-sections \
    -Wl,--version-script=cpp/cmake/exports.map \
    -Wl,--whole-archive "$target/release/libplugalloc.a" -Wl,--no-whole-archive \
    -lpthread -ldl -lm -lgcc_s
  [ "${BENCH_SYMBOLS:-no}" = yes ] || strip --strip-debug "$1/libplugalloc.so"
}
