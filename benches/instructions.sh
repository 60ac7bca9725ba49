#!/usr/bin/env bash
# Counts the instructions of a hot pair of 512 bytes through the C++ virtual calls, under callgrind,
# as the difference of two runs: the caller's loop is in it, start and end are not.
#
#   bash benches/instructions.sh            prints the number
#   bash benches/instructions.sh --check    fails if it is more than 10 % above the baseline
#   bash benches/instructions.sh --update   writes the baseline
#   bash benches/instructions.sh --lines    says in which source lines they are
#
# BENCH_DIR names a folder that `benches/run.sh --build-only` has filled; without it that is done
# here. Where there is no valgrind and none can be installed, it says so and succeeds.
set -eu

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
baseline=$here/instructions.baseline
mode=${1:-}
case $mode in
  "" | --check | --update | --lines) ;;
  *) echo "unknown option '$mode': --check, --update or --lines" >&2; exit 2 ;;
esac

if ! command -v valgrind >/dev/null; then
  if ! { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null &&
    apt-get install -y -qq valgrind >/dev/null 2>&1; }; then
    echo "skipped: valgrind is not installed, and could not be"
    exit 0
  fi
fi

dir=${BENCH_DIR:-}
if [ -z "$dir" ]; then
  dir=${CARGO_TARGET_DIR:-$root/target}/benches
  [ "$mode" != --lines ] || export BENCH_SYMBOLS=yes
  bash "$here/run.sh" --build-only "$dir" >/dev/null
fi
profile=$(mktemp)
trap 'rm -f "$profile"' EXIT

count() { # PAIRS
  valgrind --tool=callgrind --callgrind-out-file="$profile" \
    "$dir/plugalloc_host" --mode pairs "$1" 2>&1 >/dev/null |
    awk '/Collected/ { total = $NF } END { if (total == "") exit 1; print total }' ||
    { echo "callgrind gave no count" >&2; exit 1; }
}

# Instructions a pair: first by file and the function that its code was inlined into, then by source
# line of the project.
lines() { # PROFILE PAIRS
  callgrind_annotate --auto=no --threshold=95 "$1" |
    awk -v pairs="$2" '/^ *[0-9,]+ \(.*:.*plugalloc/ { n = $1; gsub(",", "", n); n /= pairs
      if (n >= 1) { sub(/^[^)]*\) */, ""); printf "%6.1f  %s\n", n, $0 } }'
  echo
  awk -v pairs="$2" '
    function name(text) {
      if (match(text, /^\([0-9]+\)/)) {
        id = substr(text, 1, RLENGTH); rest = substr(text, RLENGTH + 2)
        if (rest != "") names[id] = rest
        return names[id]
      }
      return text
    }
    /^(fl|fi|fe)=/ { file = name(substr($0, 4)); next }
    /^cfi=|^cfl=/ { name(substr($0, 5)); next }
    /^calls=/ { getline; next }
    /^[0-9+*-]/ {
      if ($1 ~ /^[+-]/) at += $1; else if ($1 != "*") at = $1
      cost[file ":" at] += $2
    }
    END { for (line in cost) if (cost[line] >= pairs && line ~ /\/(src|cpp)\//)
      printf "%6.1f  %s\n", cost[line] / pairs, line }' "$1" |
    grep -v -e /library/ -e /registry/ | sort -rn
}

pairs=20000
short=$(count 1000)
long=$(count $((1000 + pairs)))
now=$(((long - short + pairs / 2) / pairs))
echo "$now instructions a hot pair of 512 bytes (C++ virtual calls)"

case $mode in
  --lines) lines "$profile" $((1000 + pairs)) ;;
  --update) echo "$now" >"$baseline" ;;
  --check)
    allowed=$(cat "$baseline")
    if [ $((now * 10)) -gt $((allowed * 11)) ]; then
      echo "more than 10 % above the baseline of $allowed (benches/instructions.baseline)" >&2
      exit 1
    fi
    echo "within 10 % of the baseline of $allowed"
    ;;
esac
