#!/usr/bin/env python3
"""What sync before ack costs through a whole node: one partition, and a thousand that are written at once.

  syncs.py [--rounds 30] [--partitions 1000] [--flush-ms 20]

One node of its own (RF 1, fresh data). In turns, over one connection each and a record of 1,000 bytes a partition: a produce
to one partition that is synced before it is acknowledged (flush.messages=1); one request to all partitions of such a topic;
the same to a topic of the page cache; and, by this program, a write with fdatasync on the same disk. Medians and ratios.
With --flush-ms on a disk of its own whose flushes take so long, as those of a disk in a network do: an ext4 on a loop device over
the disks of tests/powercut (root). Needs target/release/ottla (or OTTLA).
"""
import argparse
import os
import pathlib
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / 'tests/lib'))
sys.path.insert(0, str(HERE.parent / 'tests/powercut'))
import cluster as clusters  # noqa: E402
import disks  # noqa: E402
import installs  # noqa: E402
import wire  # noqa: E402
from checks import eventually  # noqa: E402

PYTHON = installs.python('confluent-kafka==2.16.1')
if pathlib.Path(sys.executable) != PYTHON:
    os.execv(PYTHON, [str(PYTHON), *sys.argv])

from confluent_kafka.admin import AdminClient, NewTopic  # noqa: E402

BATCH = wire.record_batch([os.urandom(1000)])
# So many of the small ones for each large one.
SMALL = 20


def body(topic, partitions):
    """A Produce v3 with a batch for each partition."""
    parts = b''.join(struct.pack('>ii', p, len(BATCH)) + BATCH for p in range(partitions))
    return (wire.string(None) + struct.pack('>hii', -1, 30_000, 1) + wire.string(topic)
            + struct.pack('>i', partitions) + parts)


def timed(connection, request, partitions):
    """Milliseconds until the answer was there; it must be without an error."""
    begun = time.monotonic()
    answer = connection.call(wire.PRODUCE, 3, request)
    took = (time.monotonic() - begun) * 1e3
    topics = answer.array(lambda: (answer.string(), answer.array(
        lambda: (answer.i32(), answer.i16(), answer.i64(), answer.i64()))))
    assert len(topics[0][1]) == partitions and all(error == wire.NONE for _, error, _, _ in topics[0][1])
    return took


def bare(file, position):
    begun = time.monotonic()
    os.pwrite(file, BATCH, position)
    os.fdatasync(file)
    return (time.monotonic() - begun) * 1e3


def slow_disk(home, flush_ms):
    """Where such a disk is mounted, and what it is taken away with."""
    devices = disks.Devices(home / 'device')
    file = devices.ask({'make': ['slow'], 'bytes': 8 << 30})['files']['slow']
    mount = home / 'slow'
    mount.mkdir()
    loop = devices.attach('slow', file, mount)
    subprocess.run(['mkfs.ext4', '-q', '-F', '-m', '0', '-E', 'nodiscard', loop], check=True)
    subprocess.run(['mount', loop, mount], check=True)
    devices.ask({'flush_ms': flush_ms})
    return mount, devices


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument('--rounds', type=int, default=30)
    arguments.add_argument('--partitions', type=int, default=1000)
    arguments.add_argument('--flush-ms', type=float, default=0)
    given = arguments.parse_args()
    home = pathlib.Path(tempfile.mkdtemp(prefix='ottla-syncs-', dir=installs.CACHE))
    place, devices = slow_disk(home, given.flush_ms) if given.flush_ms else (home, None)
    cluster = clusters.OttlaCluster(place, nodes=1)
    synced = {'flush.messages': '1'}
    topics = {'one': (1, synced), 'many': (given.partitions, synced), 'cached': (given.partitions, {})}
    times = {'bare': [], **{topic: [] for topic in topics}}
    try:
        admin = AdminClient({'bootstrap.servers': cluster.bootstrap})
        for topic, (partitions, config) in topics.items():
            admin.create_topics([NewTopic(topic, partitions, 1, config=config)])[topic].result(60)
            eventually(lambda: all(leader == 1 for leader, _, _ in cluster.partitions(topic).values()), topic, 60)
        requests = {topic: body(topic, partitions) for topic, (partitions, _) in topics.items()}
        file = os.open(place / 'bare', os.O_RDWR | os.O_CREAT)
        connections = {topic: wire.Connection(cluster.addresses[1], 60) for topic in topics}
        for number in range(given.rounds + 2):
            for small in range(SMALL):
                times['bare'].append(bare(file, (number * SMALL + small) * len(BATCH)))
                times['one'].append(timed(connections['one'], requests['one'], 1))
            for topic in ('many', 'cached'):
                times[topic].append(timed(connections[topic], requests[topic], given.partitions))
            if number == 1:
                # Directories and files were made.
                for some in times.values():
                    some.clear()
        medians = {name: statistics.median(some) for name, some in times.items()}
        ninth = {name: statistics.quantiles(some, n=10)[-1] for name, some in times.items()}
        print(f'{"":<42} {"p50 ms":>8} {"p90 ms":>8}')
        for name, what in (('bare', 'a write with fdatasync'), ('one', 'one partition, synced before ack'),
                           ('many', f'{given.partitions} partitions, synced before ack'),
                           ('cached', f'{given.partitions} partitions, page cache')):
            print(f'{what:<42} {medians[name]:>8.3f} {ninth[name]:>8.3f}')
        sync = medians['many'] - medians['cached']
        print(f'one partition: {medians["one"] / medians["bare"]:.2f} x a write with fdatasync')
        print(f'all at once: {medians["many"] / medians["one"]:.1f} x one partition; {medians["many"] / medians["cached"]:.2f} x '
              f'the page cache; what the sync adds is {sync:.2f} ms')
    finally:
        cluster.close()
        if devices:
            devices.close()
        shutil.rmtree(home, ignore_errors=True)
    os._exit(0)


if __name__ == '__main__':
    main()
