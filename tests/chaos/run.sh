#!/usr/bin/env bash
# Rounds of faults of every kind over real processes under a verifying load; tallies go to docs/results/chaos.md.
#   run.sh [--disks] [--rounds N] [--minutes N] [--seed N]
# Needs root: network namespaces and nftables, or with --disks /dev/fuse and loop devices. It goes on with the next seed where
# an earlier run ended. The nodes are $OTTLA (default target/release/ottla), and `ottla chaos check` judges ($OTTLA_CHECKER,
# default $OTTLA). What is installed and kept is in $OTTLA_TEST_CACHE (default target/test-cache).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=$(PYTHONPATH="$here/../lib" python3 -c "import installs; print(installs.python('confluent-kafka==2.16.1'))")
PYTHONPATH="$here/../lib" python3 -c "import installs; installs.debian('nft', 'nftables'); installs.debian('ip', 'iproute2'); installs.debian('mkfs.ext4', 'e2fsprogs')"
exec "$python" "$here/chaos.py" "$@"
