#!/usr/bin/env bash
# Real clients against a cluster: installs what each suite needs, runs it, prints a table, fails when any check fails.
#   run.sh [SUITE...]      all of them without an argument; their names stand in run.py
# BOOTSTRAP=host:port,... names a running cluster of three; without it `ottla local --ephemeral` is started ($OTTLA,
# default target/release/ottla). What was installed stays in $OTTLA_TEST_CACHE (default target/test-cache).
set -euo pipefail
exec python3 "$(dirname "$0")/run.py" "$@"
