#!/usr/bin/env python3
"""What it costs a node to serve a log that is in no tail cache: CPU a gigabyte, and MB/s, of one consumer.

  cold.py [--gigabytes 2] [--batch 16 1000] [--fetch 64 256 1024] [--rounds 3] [--evict | --tail] [BINARY…]

One node of its own (RF 1, one partition, fresh data) is filled with batches of so many KiB and started again: nothing of them
is in the tail cache then, all of it in the page cache, or nothing of it with --evict. Then a consumer that looks at nothing
but the batches' headers reads it from end to end, with fetches of so many KiB, in turns from each binary (or
target/release/ottla). Beside it, in the same sitting: the same file sent by bare sendfile to a socket of this machine, whose
other end throws it away. CPU is the sender's alone: the node's, or of the process that calls sendfile. With --tail the tail cache is
larger than the log and the node is not started again: everything is read from there.
"""
import argparse
import os
import pathlib
import shutil
import socket
import statistics
import struct
import sys
import tempfile
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

TOPIC = 'cold'
HEADER = struct.Struct('>qi11xi')


def fill(bootstrap, size, batch):
    # A little less than what the broker takes of a batch.
    room = min(batch << 10, 1_000_000) - 1_000
    producer = Producer({'bootstrap.servers': bootstrap, 'acks': 1, 'batch.size': room, 'linger.ms': 50, 'queue.buffering.max.kbytes': 128 << 10})
    value = os.urandom(min(10_000, room // 2))
    for _ in range(size // len(value)):
        while True:
            try:
                producer.produce(TOPIC, value, partition=0)
                break
            except BufferError:
                producer.poll(0.05)
        producer.poll(0)
    producer.flush(60)


def fetch(connection, into, offset, size):
    """One fetch; the bytes of the records, and the next offset."""
    partition = struct.pack('>iqi', 0, offset, size)
    body = struct.pack('>iiiib', -1, 0, 1, size, 0) + struct.pack('>i', 1) + wire.string(TOPIC) + struct.pack('>i', 1) + partition
    connection.send_raw(wire.frame(wire.request(wire.FETCH, 4, body)))
    (length,) = struct.unpack('>i', connection.receive_exactly(4))
    view, got = memoryview(into)[:length], 0
    while got < length:
        got += connection.sock.recv_into(view[got:])
    at = 4 + 4 + 4 + 2 + len(TOPIC) + 4
    _, error, _, _, aborted = struct.unpack_from('>ihqqi', into, at)
    if error:
        raise RuntimeError(f'the fetch at {offset} failed with {error}')
    at += 26 + max(aborted, 0) * 16
    (size,) = struct.unpack_from('>i', into, at)
    at += 4
    end = at + size
    while end - at >= 61:
        base, rest, last = HEADER.unpack_from(into, at)
        if at + 12 + rest > end:
            break
        at, offset = at + 12 + rest, base + last + 1
    return size, offset


def consume(cluster, size):
    """Reads all of it; seconds, CPU seconds of the node, bytes."""
    into, offset, total = bytearray(16 << 20), 0, 0
    with wire.Connection(cluster.addresses[1], 60) as connection:
        began, cpu = time.monotonic(), cluster.cpu_seconds()
        while True:
            got, offset = fetch(connection, into, offset, size)
            if got == 0:
                return time.monotonic() - began, cluster.cpu_seconds() - cpu, total
            total += got


def bare(files):
    """The same files by sendfile, by a process that does nothing else."""
    with socket.create_server(('127.0.0.1', 0)) as server:
        if (reader := os.fork()) == 0:
            with socket.create_connection(server.getsockname()) as client:
                into = bytearray(1 << 20)
                while client.recv_into(into):
                    pass
            os._exit(0)
        to, _ = server.accept()
    total, began, cpu = 0, time.monotonic(), time.process_time()
    with to:
        for path in files:
            with open(path, 'rb') as file:
                while sent := os.sendfile(to.fileno(), file.fileno(), None, 1 << 20):
                    total += sent
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    os.waitpid(reader, 0)
    return seconds, cpu, total


def settle(files, evict):
    """All of the files is on the disk, and in the page cache or not at all."""
    os.sync()
    for path in files:
        with open(path, 'rb') as file:
            if evict:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            else:
                while file.read(1 << 20):
                    pass


def row(name, runs):
    rates = [total / 1e6 / seconds for seconds, _, total in runs]
    costs = [cpu / (total / 1e9) for _, cpu, total in runs]
    print(f'  {name:<44} {statistics.median(rates):>7.0f} MB/s  {statistics.median(costs):>6.3f} s/GB  '
          f'({min(costs):.3f} to {max(costs):.3f})', flush=True)


def measure(binaries, batch, given):
    home = pathlib.Path(tempfile.mkdtemp(prefix='ottla-cold-', dir=installs.CACHE))
    os.environ['OTTLA'] = binaries[0]
    overrides = [f'ottla.tail.cache.bytes={int(given.gigabytes * 1.5e9)}'] if given.tail else []
    cluster = clusters.OttlaCluster(home, nodes=1, overrides=overrides)
    try:
        admin = AdminClient({'bootstrap.servers': cluster.bootstrap})
        admin.create_topics([NewTopic(TOPIC, 1, 1, config={'segment.bytes': str(1 << 30)})])[TOPIC].result(30)
        eventually(lambda: len(cluster.partitions(TOPIC)) == 1, 'the topic', 30)
        fill(cluster.bootstrap, int(given.gigabytes * 1e9), batch)
        files = sorted(cluster.partition_directory(1, TOPIC, 0).glob('*.log'))
        print(f'{sum(f.stat().st_size for f in files) / 1e9:.1f} GB in batches of {batch} KiB, '
              f'{"in the tail cache" if given.tail else "on the disk" if given.evict else "in the page cache"}', flush=True)
        runs = {}
        for _ in range(given.rounds):
            settle(files, given.evict)
            runs.setdefault('bare sendfile', []).append(bare(files))
            for binary in binaries:
                if not given.tail:
                    cluster.stop(1)
                    os.environ['OTTLA'] = binary
                    cluster.start(1)
                    cluster.wait_ready()
                for size in given.fetch:
                    settle(files, given.evict)
                    runs.setdefault(f'{binary[-24:]} fetches of {size} KiB', []).append(consume(cluster, size << 10))
        for name in runs:
            row(name, runs[name])
    finally:
        cluster.close()
        shutil.rmtree(home, ignore_errors=True)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument('binaries', nargs='*', default=[])
    arguments.add_argument('--gigabytes', type=float, default=2)
    arguments.add_argument('--batch', type=int, nargs='*', default=[16, 1000])
    arguments.add_argument('--fetch', type=int, nargs='*', default=[64, 256, 1024])
    arguments.add_argument('--rounds', type=int, default=3)
    arguments.add_argument('--evict', action='store_true')
    arguments.add_argument('--tail', action='store_true', help='with one binary')
    given = arguments.parse_args()
    binaries = given.binaries or [clusters.ottla_binary()]
    for batch in given.batch:
        measure(binaries, batch, given)


if __name__ == '__main__':
    main()
