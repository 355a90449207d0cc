#!/usr/bin/env bash
# Ottla beside Apache Kafka on this machine, interleaved; prints a table. See compare.py for cases and options.
# Needs target/release/ottla (or OTTLA), a JDK 17 and Maven; installs librdkafka and a C compiler by Debian's packages.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$here/../../tests/lib"
python=$(python3 -c "
import installs
installs.debian('gcc', 'gcc', 'libc6-dev')
import pathlib
if not pathlib.Path('/usr/include/librdkafka/rdkafka.h').exists():
    installs.debian('', 'librdkafka-dev')
print(installs.python('confluent-kafka==2.16.1'))")
cache=$(python3 -c 'import installs; print(installs.CACHE)')
gcc -O2 -o "$cache/compare-load" "$here/load.c" -lrdkafka
exec "$python" "$here/compare.py" "$@"
