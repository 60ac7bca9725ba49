#!/bin/sh
# Fails if the shared library exports anything but plugalloc's own symbols, or has no SONAME.
set -eu
library=$1
exported=$(nm -D --defined-only "$library" | awk '{ print $NF }')
if [ -z "$exported" ]; then
  echo "$library exports nothing"
  exit 1
fi
foreign=$(printf '%s\n' "$exported" | grep -v '^_ZT\?[A-Z]*N\?K\?9plugalloc2v1' || true)
if [ -n "$foreign" ]; then
  echo "$library exports symbols that are not plugalloc's:"
  printf '%s\n' "$foreign" | head -20
  exit 1
fi
if ! readelf -d "$library" | grep -q SONAME; then
  echo "$library has no SONAME"
  exit 1
fi
echo "$(printf '%s\n' "$exported" | wc -l) exported symbols, all of plugalloc's"
