#!/usr/bin/env bash
# Faults over real processes under a verifying load; prints a table, fails on any anomaly, keeps histories of failures.
#   run.sh [SCENARIO...]   kill_leader kill_follower kill_controller kill_in_turn kill_all pause_leader restart_all rolling_restart
#                       kill_two kill_at_start wipe_node corrupt_log lose_replicas noise_in_image recreate_topic
#                       directory_fails no_space (root, loop devices, FUSE: else they are skipped, and say so) chaos
# Starts three `ottla server` processes of its own ($OTTLA, default target/release/ottla). See lib/cluster.py for running the
# same against another cluster. `ottla chaos check` judges ($OTTLA_CHECKER, default $OTTLA). What is installed and kept is in $OTTLA_TEST_CACHE (default target/test-cache).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=$(PYTHONPATH="$here/../lib" python3 -c "import installs; print(installs.python('confluent-kafka==2.16.1'))")
exec "$python" "$here/scenarios.py" "$@"
