# Sourced by run.sh and server.sh: what both begin with, and the library as benchmarks use it.

# Reads the options of both, and builds the library. Leaves the other arguments in `arguments`, the
# folder of what is built in `out`, and in `run` whether anything is run; the shell is in the root of
# the repository then.
begin_build() { # ARGUMENTS...
  local root
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
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
  build_library "$out"
}

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
