#!/usr/bin/env python3
"""How long one node takes from its start to serving, after kill -9 and after a clean stop, with logs of different sizes.

  restart.py [--gigabytes 2 20] [--rounds 5] [--rate MB/s]

One node of its own (RF 1, 6 partitions, fresh data) is filled to each size in turn. Then, in turns: kill -9 under load, and
start; SIGTERM, and start. "Serving" is the first acknowledged produce to the topic (acks=all) by a client that asks every
millisecond, over sockets of its own (client libraries look again once a second), measured from the exec of the process;
"ready" the first connection. Beside them stands what a start with an empty log takes in the same sitting. Without --rate the
load before a kill is as much as the node takes, which may be more than its disk does: then what no sync has covered grows for
as long as that lasts. Needs target/release/ottla (or OTTLA).
"""
import argparse
import math
import os
import pathlib
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / 'tests/lib'))
import cluster as clusters  # noqa: E402
import installs  # noqa: E402
import wire  # noqa: E402
from checks import eventually  # noqa: E402

PYTHON = installs.python('confluent-kafka==2.16.1')
if pathlib.Path(sys.executable) != PYTHON:
    os.execv(PYTHON, [str(PYTHON), *sys.argv])

from confluent_kafka import Producer  # noqa: E402
from confluent_kafka.admin import AdminClient, NewTopic  # noqa: E402

PARTITIONS = 6
BATCH = wire.record_batch([b'x'])


class Filler:
    """Writes without a pause until it is stopped; survives the death of the node."""

    def __init__(self, bootstrap, topic, rate=math.inf):
        self.sent, self.rate, self.stop = 0, rate, threading.Event()
        self.thread = threading.Thread(target=self.run, args=(bootstrap, topic), daemon=True)
        self.thread.start()

    def run(self, bootstrap, topic):
        producer = Producer({'bootstrap.servers': bootstrap, 'acks': 1, 'batch.size': 1 << 20, 'linger.ms': 5, 'enable.idempotence': False,
                             'queue.buffering.max.kbytes': 64 << 10, 'message.timeout.ms': 2000})
        value = os.urandom(10_000)

        def delivered(error, _message):
            if not error:
                self.sent += len(value)

        begun, asked = time.monotonic(), 0
        while not self.stop.is_set():
            asked += len(value)
            while asked > (time.monotonic() - begun) * self.rate * 1e6:
                producer.poll(0.001)
            try:
                producer.produce(topic, value, on_delivery=delivered)
            except BufferError:
                producer.poll(0.01)
            producer.poll(0)
        producer.purge()

    def end(self):
        self.stop.set()
        self.thread.join(10)


def acknowledged(address, topic):
    """Whether one record is."""
    try:
        with wire.Connection(address) as connection:
            error, _ = wire.produce(connection, topic, 0, BATCH)
            return error == wire.NONE
    except OSError:
        return False


def started(cluster, topic):
    """Starts the node; gives the seconds to the first answer and to the first acknowledged produce."""
    begun = time.monotonic()
    cluster.start(1)
    ready = None
    while ready is None:
        with socket.socket() as s:
            if s.connect_ex(cluster.addresses[1]) == 0:
                ready = time.monotonic() - begun
            elif cluster.pid(1) is None:
                raise RuntimeError('the node has ended; see its stdout.log')
            else:
                time.sleep(0.001)
    while not acknowledged(cluster.addresses[1], topic):
        if time.monotonic() - begun > 120:
            raise RuntimeError('no acknowledgement in two minutes')
        time.sleep(0.001)
    return ready, time.monotonic() - begun


def measure(cluster, topic, how, rounds, rate):
    rows = []
    for _ in range(rounds):
        if how == 'kill -9':
            filler = Filler(cluster.bootstrap, topic, rate)
            # A second or two of load is what a kill finds that no checkpoint covers.
            time.sleep(2.5)
            cluster.kill(1)
            filler.end()
        else:
            cluster.stop(1)
        rows.append(started(cluster, topic))
    return rows


def size_of(cluster):
    return sum(f.stat().st_size for f in cluster.data_directory(1).rglob('*.log') if f.name != 'stdout.log')


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument('--gigabytes', type=float, nargs='*', default=[2, 20])
    arguments.add_argument('--rounds', type=int, default=5)
    arguments.add_argument('--rate', type=float, default=math.inf)
    given = arguments.parse_args()
    home = pathlib.Path(tempfile.mkdtemp(prefix='ottla-restart-', dir=installs.CACHE))
    cluster = clusters.OttlaCluster(home, nodes=1)
    topic = 'restart'
    try:
        config = {'retention.bytes': '-1', 'segment.bytes': str(1 << 30)}
        # A client that nobody holds is closed before it has an answer.
        admin = AdminClient({'bootstrap.servers': cluster.bootstrap})
        admin.create_topics([NewTopic(topic, PARTITIONS, 1, config=config)])[topic].result(30)
        eventually(lambda: len(cluster.partitions(topic)) == PARTITIONS, 'the topic', 30)
        print(f'{"log":>9}  {"stopped by":<10} {"ready s":>9} {"serving s, median":>18} {"worst":>7}', flush=True)
        for gigabytes in [0, *given.gigabytes]:
            filler = Filler(cluster.bootstrap, topic)
            eventually(lambda: size_of(cluster) >= gigabytes * 1e9, f'{gigabytes} GB', 3600, pause=0.5)
            filler.end()
            for how in ('kill -9', 'SIGTERM'):
                rows = measure(cluster, topic, how, given.rounds, given.rate)
                ready, serving = (statistics.median(column) for column in zip(*rows))
                print(f'{size_of(cluster) / 1e9:>6.1f} GB  {how:<10} {ready:>9.3f} {serving:>18.3f} {max(r[1] for r in rows):>7.3f}', flush=True)
    finally:
        cluster.close()
        shutil.rmtree(home, ignore_errors=True)
    os._exit(0)


if __name__ == '__main__':
    main()
