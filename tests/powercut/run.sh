#!/usr/bin/env bash
# Power cuts of a whole cluster under load; appends its tally to docs/results/powercut.md, also when it is interrupted.
#   run.sh [--cuts N] [--seed S] [--quorum]
# Needs root, loop devices and FUSE. See powercut.py; the binary is $OTTLA, default target/release/ottla.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=$(PYTHONPATH="$here/../lib" python3 -c "import installs; print(installs.python('confluent-kafka==2.16.1'))")
exec "$python" "$here/powercut.py" "$@"
