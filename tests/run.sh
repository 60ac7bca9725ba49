#!/usr/bin/env bash
# Everything that must hold before a change goes in, in one command:
#
#     tests/run.sh [STEP...]     # steps: format lint rust model races docs cpp speed (default: all)
#
# Needs Rust with rustfmt and clippy, a C++ compiler, make, and Python with pip; what else it needs
# (cmake, clang-format, clang-tidy, doctest) it fetches into the target folder. The last line is
# 'N passed, M failed': tests where a step counts them, else one for the step.
set -uo pipefail
cd "$(dirname "$0")/.."

export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"
export CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-never}"
tools="$CARGO_TARGET_DIR/tools"
logs="$CARGO_TARGET_DIR/logs"
build="$CARGO_TARGET_DIR/cmake"
jobs="${JOBS:-$(nproc)}"
passed=0
failed=0
mkdir -p "$logs"

heading() { printf '\n=== %s ===\n' "$1"; }

count() { passed=$((passed + $1)); failed=$((failed + $2)); }

# Runs a command under a heading; it counts as one test, unless `count_in` finds tests in its output.
step() {
  local name=$1 count_in=$2
  shift 2
  heading "$name"
  local log="$logs/${name//[^a-zA-Z0-9]/_}.log" status good bad
  "$@" 2>&1 | tee "$log"
  status=${PIPESTATUS[0]}
  read -r good bad < <("$count_in" "$log")
  if [ "$status" -ne 0 ] && [ "$bad" -eq 0 ]; then
    bad=1
    [ "$count_in" = count_one ] && good=0
  fi
  count "$good" "$bad"
  printf -- '--- %s: %s passed, %s failed\n' "$name" "$good" "$bad"
  [ "$bad" -eq 0 ]
}

count_one() { echo 1 0; }

# "test result: ok. 3 passed; 0 failed; ..."
count_cargo() {
  awk '/^test result:/ { for (i = 2; i <= NF; i++) {
         if ($i ~ /^passed/) good += $(i-1); if ($i ~ /^failed/) bad += $(i-1) } }
       END { print good + 0, bad + 0 }' "$1"
}

# "100% tests passed, 0 tests failed out of 11", or "100% tests passed out of 11"
count_ctest() {
  awk '/tests passed.* out of/ { all = $NF; bad = 0
         for (i = 2; i < NF; i++) if ($(i+1) == "tests" && $(i+2) == "failed") bad = $i
         good += all - bad; worse += bad }
       END { print good + 0, worse + 0 }' "$1"
}

# --- tools ---------------------------------------------------------------------------------------

install_python_tools() {
  [ -x "$tools/venv/bin/cmake" ] && [ -x "$tools/venv/bin/clang-format" ] &&
    [ -x "$tools/venv/bin/clang-tidy" ] && return 0
  python3 -m venv "$tools/venv" &&
    "$tools/venv/bin/pip" install --quiet --disable-pip-version-check \
      'cmake>=3.20,<5' 'clang-format==23.1.5' 'clang-tidy==23.1.4'
}

# doctest is one header. Debian's package is unpacked, not installed, so that no rights are needed.
install_doctest() {
  [ -e /usr/include/doctest/doctest.h ] && return 0
  [ -e "$tools/doctest/usr/include/doctest/doctest.h" ] && return 0
  mkdir -p "$tools/doctest" && cd "$tools/doctest" || return 1
  apt-get download doctest-dev || { apt-get update -qq && apt-get download doctest-dev; } || return 1
  dpkg-deb -x doctest-dev_*.deb .
}

install_tools() {
  install_python_tools || echo "no cmake, clang-format or clang-tidy: there is no way to fetch them with pip"
  (install_doctest) || echo "no doctest: install Debian's doctest-dev for the C++ tests"
  export PATH="$tools/venv/bin:$PATH"
  if [ -d "$tools/doctest/usr/include" ]; then
    export CMAKE_PREFIX_PATH="$tools/doctest/usr${CMAKE_PREFIX_PATH:+:$CMAKE_PREFIX_PATH}"
  fi
  command -v cmake && cmake --version | head -1
}

# --- steps ---------------------------------------------------------------------------------------

cpp_files() { git ls-files 'cpp/*.h' 'cpp/*.cc' 'tests/*.h' 'tests/*.cc' 'examples/*.h' 'examples/*.cc'; }

check_cpp_format() { cpp_files | xargs clang-format --dry-run -Werror; }

# C++ files stay short, and lines fit.
check_cpp_sizes() {
  cpp_files | xargs awk '
    FNR == 300 { print FILENAME ": 300 lines or more"; bad = 1 }
    length($0) > 100 { print FILENAME ":" FNR ": more than 100 columns"; bad = 1 }
    END { exit bad }'
}

run_format() {
  step "Rust format" count_one cargo fmt --check
  step "C++ format" count_one check_cpp_format
  step "C++ sizes" count_one check_cpp_sizes
}

run_lint() {
  step "Clippy" count_one \
    cargo clippy --locked -j "$jobs" --all-targets --all-features -- -D warnings
}

run_rust() {
  step "Rust tests and the installed package" count_cargo \
    cargo test --locked -j "$jobs" --all-features --lib --bins --tests --examples --no-fail-fast
}

# Code without locks in every order of its steps (docs/ARCHITECTURE.md).
run_model() {
  RUSTFLAGS="--cfg loom ${RUSTFLAGS:-}" CARGO_TARGET_DIR="$CARGO_TARGET_DIR/loom" \
    step "Model checking" count_cargo cargo test --locked -j "$jobs" --lib -- ::model::
}

run_races() { step "ThreadSanitizer" count_cargo tests/tsan.sh; }

run_docs() {
  step "Documentation tests" count_cargo cargo test --locked -j "$jobs" --all-features --doc
  RUSTDOCFLAGS="-D warnings" step "Documentation" count_one \
    cargo doc --locked -j "$jobs" --all-features --no-deps --lib
}

# What cargo compiled the C++ files with, less what has no bearing on the check.
check_cpp_tidy() {
  local bridge
  bridge=$(ls -td "$CARGO_TARGET_DIR"/release/build/plugalloc-*/out/cxxbridge/include | head -1)
  clang-tidy --quiet cpp/src/*.cc -- -std=c++17 -Icpp/include -Icpp/src "-I$bridge" \
    '-DPLUGALLOC_VERSION="0"'
}

run_cpp() {
  rm -rf "$build"
  step "CMake configuration" count_one \
    cmake -S . -B "$build" -DCMAKE_BUILD_TYPE=Release -DPLUGALLOC_STATIC=ON \
    -DPLUGALLOC_BUILD_TESTS=ON \
    "-DPLUGALLOC_CARGO_TARGET_DIR=$CARGO_TARGET_DIR" || return
  step "CMake build" count_one cmake --build "$build" -j "$jobs" || return
  step "C++ lint" count_one check_cpp_tidy
  step "C++ tests" count_ctest ctest --test-dir "$build" --output-on-failure
  step "Exported symbols" count_one tests/cpp/check_symbols.sh "$build/libplugalloc.so"
}

# A count, not a time: it is the same on a busy machine.
run_speed() {
  step "Instructions of a hot pair" count_one bash benches/instructions.sh --check
}

heading "Tools"
install_tools
[ "$#" -gt 0 ] || set -- format lint rust model races docs cpp speed
for name in "$@"; do
  case "$name" in
    format | lint | rust | model | races | docs | cpp | speed) "run_$name" ;;
    *) echo "unknown step $name" && exit 2 ;;
  esac
done

printf '\n%s passed, %s failed\n' "$passed" "$failed"
[ "$failed" -eq 0 ]
