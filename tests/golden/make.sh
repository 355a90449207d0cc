#!/usr/bin/env bash
# Makes the data directory of a milestone, which every later build must open: tests/golden/make.sh NAME [BINARY].
# One node, stopped cleanly. Topic `golden` has two partitions: 0 holds five batches of two records, one batch a codec
# (none, gzip, snappy, lz4, zstd), with keys k0… and values v0-xxx… (200 x); 1 holds v0 to v9, one batch each, without keys. Group
# `golden-group` has committed offset 4 in both. The test in crates/ottla/tests/it/golden.rs expects exactly this. Needs kcat.
# A directory that is kept is never made again: a new milestone gets a new one.
set -euo pipefail
cd "$(dirname "$0")"
name=$1 ottla=$(realpath "${2:-../../target/release/ottla}") base=${BASE_PORT:-27292}
[ ! -e "$name" ] || { echo "$name is there already, and is never made again" >&2; exit 1; }
work=$(mktemp -d)
trap 'kill $local 2>/dev/null || true; wait; rm -rf "$work"' EXIT
"$ottla" local --nodes 1 --data "$work" --base-port "$base" > "$work/local.out" &
local=$!
until grep -sq '^ready' "$work/local.out"; do kill -0 $local; sleep 0.05; done
export OTTLA_BOOTSTRAP=127.0.0.1:$base
"$ottla" topic create golden --partitions 2 --config retention.ms=-1 --config segment.bytes=1048576
# A client sends a batch as it is where compression does not make it smaller.
padding=$(printf 'x%.0s' $(seq 200)) record=0
for codec in none gzip snappy lz4 zstd; do
    printf "k%d=v%d-$padding\nk%d=v%d-$padding\n" $record $record $((record + 1)) $((record + 1)) |
        kcat -P -b "$OTTLA_BOOTSTRAP" -t golden -p 0 -K = -z $codec -X acks=all -X linger.ms=200
    record=$((record + 2))
done
for value in $(seq 0 9); do echo "v$value" | "$ottla" produce golden --partition 1; done
"$ottla" group reset golden-group --topic golden --to-offset 4
kill -TERM $local
wait $local
# What the next start writes anew is not kept: the lock, the log, the configuration, and the image (R73).
mkdir -p "$name"
cp -r "$work/node-1/data/." "$name/"
rm -rf "$name/.lock" "$name"/__cluster_metadata/image.sled
du -s --apparent-size "$name"
