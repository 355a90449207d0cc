#!/usr/bin/env python3
"""How long it takes to move a thousand replicas off a node under load, whether the throttle is kept, and what clients notice.

  reassign.py [--partitions 1000] [--gigabytes 5] [--throttle-mb 100] [--rate 500]

Four nodes; every partition has one replica on node 4 and one on another. They are filled to so many gigabytes in all; then
`ottla cluster rebalance --drain 4 --execute` moves node 4's replicas to the others while an idempotent producer (acks=all) and a
consumer go on. Each second the logs of the nodes that take replicas are measured. Needs target/release/ottla (or OTTLA).
"""
import argparse
import os
import pathlib
import shutil
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
from checks import eventually  # noqa: E402

PYTHON = installs.python('confluent-kafka==2.16.1')
if pathlib.Path(sys.executable) != PYTHON:
    os.execv(PYTHON, [str(PYTHON), *sys.argv])

from confluent_kafka import Consumer, Producer  # noqa: E402
from confluent_kafka.admin import AdminClient, NewTopic  # noqa: E402

TOPIC, LEAVING = 'moving', 4


class Load:
    """A steady producer and a consumer of all partitions; what a client would see as an error is kept."""

    def __init__(self, bootstrap, partitions, rate):
        self.bootstrap, self.partitions, self.rate = bootstrap, partitions, rate
        self.errors, self.delays, self.acked, self.read = [], [], 0, 0
        self.ended = threading.Event()
        self.threads = [threading.Thread(target=t, daemon=True) for t in (self.produce, self.consume)]
        for thread in self.threads:
            thread.start()

    def produce(self):
        producer = Producer({'bootstrap.servers': self.bootstrap, 'enable.idempotence': True, 'linger.ms': 2})
        sent, begun = 0, time.monotonic()
        while not self.ended.is_set():
            while (wait := begun + sent / self.rate - time.monotonic()) > 0:
                producer.poll(wait)
            at = time.monotonic()

            def delivered(error, _message, at=at):
                self.acked += not error
                self.delays.append(time.monotonic() - at)
                if error:
                    self.errors.append(f'produce: {error}')

            producer.produce(TOPIC, b'load' * 250, partition=sent % self.partitions, on_delivery=delivered)
            sent += 1
        if producer.flush(60):
            self.errors.append('produce: not everything was acknowledged after a minute')

    def consume(self):
        consumer = Consumer({'bootstrap.servers': self.bootstrap, 'group.id': 'load', 'auto.offset.reset': 'latest'})
        consumer.subscribe([TOPIC])
        while not self.ended.is_set():
            for message in consumer.consume(500, 0.2):
                if message.error():
                    self.errors.append(f'consume: {message.error()}')
                else:
                    self.read += 1
        consumer.close()

    def end(self):
        self.ended.set()
        for thread in self.threads:
            thread.join(90)


def fill(bootstrap, partitions, size):
    producer = Producer({'bootstrap.servers': bootstrap, 'acks': 1, 'batch.size': 1 << 20, 'linger.ms': 20, 'queue.buffering.max.kbytes': 256 << 10})
    value, failed = os.urandom(100_000), []
    for number in range(int(size / len(value))):
        while True:
            try:
                producer.produce(TOPIC, value, partition=number % partitions, on_delivery=lambda e, _: failed.append(e) if e else None)
                break
            except BufferError:
                producer.poll(0.05)
        producer.poll(0)
    assert producer.flush(300) == 0 and not failed, failed[:3]


def sizes(cluster):
    """Bytes of the topic's logs on each node that takes replicas."""
    total = {}
    for node in cluster.nodes:
        if node != LEAVING:
            files = cluster.data_directory(node).rglob(f'{TOPIC}-*/*.log')
            total[node] = sum(file.stat().st_size for file in files)
    return total


def watch(cluster, mover):
    """What each node took in each second until the move has ended, in bytes."""
    taken, before, then = [], sizes(cluster), time.monotonic()
    while mover.poll() is None:
        time.sleep(1)
        after, now = sizes(cluster), time.monotonic()
        taken.extend((after[node] - before[node]) / (now - then) for node in after)
        before, then = after, now
    return taken


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument('--partitions', type=int, default=1000)
    arguments.add_argument('--gigabytes', type=float, default=5)
    arguments.add_argument('--throttle-mb', type=float, default=100)
    arguments.add_argument('--rate', type=float, default=500, help='records of 1 kB a second, meanwhile')
    given = arguments.parse_args()
    home = pathlib.Path(tempfile.mkdtemp(prefix='ottla-reassign-', dir=installs.CACHE))
    cluster = clusters.OttlaCluster(home, nodes=4)
    try:
        admin = AdminClient({'bootstrap.servers': cluster.bootstrap})
        others = [node for node in cluster.nodes if node != LEAVING]
        assignment = [[LEAVING, others[p % 3]] if p % 2 else [others[p % 3], LEAVING] for p in range(given.partitions)]
        topic = NewTopic(TOPIC, given.partitions, replica_assignment=assignment)
        admin.create_topics([topic])[TOPIC].result(60)
        cluster.wait_full_isr(TOPIC)
        fill(cluster.bootstrap, given.partitions, given.gigabytes * 1e9)
        print(f'{given.partitions} partitions, {given.gigabytes} GB', flush=True)
        load = Load(cluster.bootstrap, given.partitions, given.rate)
        eventually(lambda: load.read > 5 * given.rate, 'the load', 60)
        load.delays.clear()
        begun = time.monotonic()
        mover = subprocess.Popen([clusters.ottla_binary(), 'cluster', 'rebalance', '--drain', str(LEAVING), '--execute',
                                  '--throttle', str(int(given.throttle_mb * 1e6)), '--bootstrap', cluster.bootstrap],
                                 stdout=open(home / 'move.log', 'w'), stderr=subprocess.STDOUT)
        taken = watch(cluster, mover)
        took = time.monotonic() - begun
        load.end()
        delays = sorted(load.delays)
        parts = cluster.partitions(TOPIC)
        left = sum(LEAVING in replicas for _, replicas, _ in parts.values())
        # What the load itself appends comes on top of what is throttled.
        own = given.rate * 1100 * 2 / 3
        print(f'moved in {took:.1f} s (exit code {mover.returncode}), {left} replicas left on node {LEAVING}')
        print(f'a node took {statistics.median(taken) / 1e6:.0f} MB/s at the median, {max(taken) / 1e6:.0f} at most in a second; '
              f'throttle {given.throttle_mb:.0f}, load {own / 1e6:.1f}')
        print(f'{load.acked} records acknowledged meanwhile, {load.read} read, {len(load.errors)} errors at clients {load.errors[:3]}, '
              f'p50 {delays[len(delays) // 2] * 1000:.1f} ms, p99 {delays[len(delays) * 99 // 100] * 1000:.1f} ms, '
              f'worst {delays[-1] * 1000:.0f} ms')
        print((home / 'move.log').read_text()[-400:])
    finally:
        cluster.close()
        shutil.rmtree(home, ignore_errors=True)
    os._exit(0)


if __name__ == '__main__':
    main()
