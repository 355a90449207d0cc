#!/usr/bin/env bash
# The models of the cores beyond what the tests explore, each with its row in docs/results/models.md.
#
#   run.sh                      everything but the mutations
#   run.sh exhaust [NAME...]    to the end of each model; what this commit has a row of is not done again
#   run.sh walk [SECONDS]       random walks, so long in each model (60)
#   run.sh mutations [RULE...]  each rule switched off; docs/results/models-mutations.md is written anew where all are asked for
set -euo pipefail
cd "$(dirname "$0")/../.."
tally=docs/results/models.md
commit=$(git rev-parse --short=7 HEAD)
cargo build --release --quiet -p modelcheck --features mutations --example models
models=target/release/examples/models

exhaust() {
    grep -F "| $commit |" "$tally" >target/models.done || true
    "$models" exhaust target/models.done "$@" | while read -r row; do echo "| $commit $row"; done | tee -a "$tally"
}
walk() {
    "$models" walk "${1:-60}" | while read -r row; do echo "| $commit $row"; done | tee -a "$tally"
}
mutations() {
    local table=docs/results/models-mutations.md
    if [ $# -gt 0 ]; then
        "$models" mutations /dev/null "$@"
        return
    fi
    sed -n '1,/^|--/p' "$table" >target/models.head
    "$models" mutations /dev/null | tee target/models.rows
    cat target/models.head target/models.rows >"$table"
}

case "${1:-}" in
    exhaust | walk | mutations) "$@" ;;
    "") exhaust && walk ;;
    *) sed -n '2,8p' "$0" && exit 2 ;;
esac
