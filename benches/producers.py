#!/usr/bin/env python3
"""What a hundred thousand idempotent producers cost one node: memory, and the start after a stop and after a kill.

  producers.py [--producers 100000] [--partitions 10] [--batches 5] [--rounds 3]

One node of its own (RF 1, fresh data). Each producer id writes one batch, then as many as the table remembers of each (`R40`), in
turn; each must be acknowledged. Then the node is stopped and started, killed and started, as in restart.py; after each start a
duplicate of a remembered batch must be answered with its old offset, and one out of order must be refused.
Needs target/release/ottla (or OTTLA).
"""
import argparse
import os
import pathlib
import shutil
import statistics
import struct
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import restart  # noqa: E402
from restart import AdminClient, NewTopic, clusters, eventually, installs, wire  # noqa: E402

TOPIC = 'producers'
OUT_OF_ORDER_SEQUENCE_NUMBER = 45
# Requests on their way at a time.
WINDOW = 200
RECORD = b'\0' + wire.varint(0) + wire.varint(0) + wire.varint(-1) + wire.varint(1) + b'x' + wire.varint(0)


def batch(producer, sequence):
    """One record of an idempotent producer in its first epoch."""
    now = 1_700_000_000_000
    after_crc = (struct.pack('>hiqqqhii', 0, 0, now, now, producer, 0, sequence, 1) + wire.varint(len(RECORD)) + RECORD)
    body = struct.pack('>ibI', -1, 2, wire.crc32c(after_crc)) + after_crc
    return struct.pack('>qi', 0, len(body)) + body


def send(connection, partition, records):
    connection.correlation += 1
    body = (wire.string(None) + struct.pack('>hii', -1, 10_000, 1) + wire.string(TOPIC)
            + struct.pack('>iii', 1, partition, len(records)) + records)
    connection.send_raw(wire.frame(wire.request(wire.PRODUCE, 3, body, connection.correlation)))


def answer(connection):
    """The error and the offset of the oldest request that waits."""
    _, body = connection.receive()
    return struct.unpack('>hq', body[4 + 2 + len(TOPIC) + 4 + 4:][:10])


def write(address, producers, partitions, sequence):
    """Each producer writes its batch of `sequence`; gives the offset of each."""
    offsets = []

    def take():
        error, offset = answer(connection)
        assert error == 0, (len(offsets), sequence, error)
        offsets.append(offset)

    with wire.Connection(address, 60) as connection:
        for number in range(producers):
            if number >= WINDOW:
                take()
            send(connection, number % partitions, batch(number, sequence))
        while len(offsets) < producers:
            take()
    return offsets


def remembered(address, producers, partitions, sequence, offsets):
    """What the table says of some producers of each partition."""
    with wire.Connection(address, 60) as connection:
        for number in range(0, producers, max(1, producers // 1000)):
            send(connection, number % partitions, batch(number, sequence))
            error, offset = answer(connection)
            assert (error, offset) == (0, offsets[number]), (number, error, offset, offsets[number])
            send(connection, number % partitions, batch(number, sequence + 7))
            error, _ = answer(connection)
            assert error == OUT_OF_ORDER_SEQUENCE_NUMBER, (number, error)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument('--producers', type=int, default=100_000)
    arguments.add_argument('--partitions', type=int, default=10)
    arguments.add_argument('--batches', type=int, default=5)
    arguments.add_argument('--rounds', type=int, default=3)
    given = arguments.parse_args()
    home = pathlib.Path(tempfile.mkdtemp(prefix='ottla-producers-', dir=installs.CACHE))
    cluster = clusters.OttlaCluster(home, nodes=1)
    address = cluster.addresses[1]
    try:
        admin = AdminClient({'bootstrap.servers': cluster.bootstrap})
        admin.create_topics([NewTopic(TOPIC, given.partitions, 1)])[TOPIC].result(30)
        eventually(lambda: all(leader == 1 for leader, _, _ in cluster.partitions(TOPIC).values()), 'leaders', 30)
        print(f'before: {cluster.resident_mib():.0f} MiB', flush=True)
        for sequence in range(given.batches):
            begun = time.monotonic()
            offsets = write(address, given.producers, given.partitions, sequence)
            print(f'{given.producers} producers, {sequence + 1} batches each: {cluster.resident_mib():.0f} MiB, '
                  f'{given.producers / (time.monotonic() - begun):.0f} batches/s', flush=True)
        for how in ('SIGTERM', 'kill -9'):
            rows = []
            for _ in range(given.rounds):
                (cluster.stop if how == 'SIGTERM' else cluster.kill)(1)
                rows.append(restart.started(cluster, TOPIC)[1])
                remembered(address, given.producers, given.partitions, given.batches - 1, offsets)
            print(f'{how}: serves again after {statistics.median(rows):.3f} s (worst {max(rows):.3f}), '
                  f'{cluster.resident_mib():.0f} MiB', flush=True)
    finally:
        cluster.close()
        shutil.rmtree(home, ignore_errors=True)
    os._exit(0)


if __name__ == '__main__':
    main()
