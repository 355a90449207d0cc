#!/usr/bin/env python3
"""How long a group coordinator takes to load: from its process's start to its first answer about a group's offsets.

  load.py [--groups 1000] [--partitions 1000] [--rounds 3]

One node with one partition of __consumer_offsets; every group commits an offset for each partition of one topic, in requests of
a thousand offsets each (1,000,000 offset commits in all, unless told otherwise). Then the node is stopped in order and killed
with -9 in turn, and started again each time; a client asks for an offset of the last group all the while. The answer must be
the offset that was committed. Told are the seconds until the port answers at all, and until the coordinator does.
"""
import argparse
import pathlib
import signal
import statistics
import struct
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / 'tests/lib'))
import cluster as clusters  # noqa: E402
import wire  # noqa: E402
from wire import string  # noqa: E402

OFFSET_COMMIT, OFFSET_FETCH, FIND_COORDINATOR = 8, 9, 10
# It loads, is not available, is another one: the client asks again.
NOT_YET = {14, 15, 16}
# Seconds until who is still told NOT_YET gives up.
PATIENCE = 60


def array(items):
    return struct.pack('>i', len(items)) + b''.join(items)


def group(number):
    return f'group-{number:06}'


def commit(connection, number, topic, partitions):
    offsets = array([struct.pack('>iq', p, number + p) + string('') for p in range(partitions)])
    body = string(group(number)) + struct.pack('>i', -1) + string('') + struct.pack('>q', -1) + array([string(topic) + offsets])
    answer = connection.call(OFFSET_COMMIT, 4, body)
    answer.i32()
    errors = answer.array(lambda: (answer.string(), answer.array(lambda: (answer.i32(), answer.i16())[1]))[1])[0]
    wrong = next((error for error in errors if error), 0)
    return wrong, len(errors)


def fetch(connection, number, topic, partition):
    """(error, the offset of one partition)"""
    body = string(group(number)) + array([string(topic) + array([struct.pack('>i', partition)])])
    answer = connection.call(OFFSET_FETCH, 3, body)
    answer.i32()
    found = answer.array(lambda: (answer.string(), answer.array(lambda: (
        answer.i32(), answer.i64(), answer.string(), answer.i16())))[1])
    if error := answer.i16():
        return error, -1
    (_, offset, _, error), = found[0]
    return error, offset


def wait_for_coordinator(connection):
    """Who asks for a group's coordinator makes the topic of the offsets be created: nobody coordinates anything before that."""
    until = time.monotonic() + PATIENCE
    while (error := connection.call(FIND_COORDINATOR, 0, string(group(0))).i16()) in NOT_YET:
        assert time.monotonic() < until, f'FindCoordinator: {error}'
        time.sleep(0.05)
    assert error == 0, f'FindCoordinator: {error}'


def fill(address, topic, options):
    connection = wire.Connection(address, 60)
    wait_for_coordinator(connection)
    begun, done = time.monotonic(), 0
    for number in range(options.groups):
        until = time.monotonic() + PATIENCE
        while (told := commit(connection, number, topic, options.partitions))[0] in NOT_YET:
            assert time.monotonic() < until, f'OffsetCommit: {told[0]}'
            time.sleep(0.05)
        assert told[0] == 0, f'OffsetCommit: {told[0]}'
        done += told[1]
    return done, time.monotonic() - begun


def loaded(address, topic, options):
    """Seconds from now until the broker answers, and until the coordinator does."""
    begun, answered, last = time.monotonic(), None, options.groups - 1
    while True:
        assert time.monotonic() - begun < 300, 'it does not load'
        try:
            connection = wire.Connection(address, 10)
            while True:
                error, offset = fetch(connection, last, topic, options.partitions - 1)
                answered = answered or time.monotonic() - begun
                if error == 0:
                    assert offset == last + options.partitions - 1, offset
                    return answered, time.monotonic() - begun
                assert error in NOT_YET, error
                time.sleep(0.002)
        except (OSError, wire.Closed):
            time.sleep(0.002)


def main(options):
    cluster = clusters.OttlaCluster(nodes=1, overrides=['offsets.topic.num.partitions=1'])
    try:
        address, topic = cluster.addresses[1], wire.unique('load')
        assert wire.create_topic(address, topic, options.partitions, 1) == 0
        done, seconds = fill(address, topic, options)
        print(f'{done:,} offset commits in {seconds:.1f} s', flush=True)
        for how, number in [('stopped', signal.SIGTERM), ('kill -9', signal.SIGKILL)]:
            rounds = []
            for _ in range(options.rounds):
                process = cluster.processes[1]
                process.send_signal(number)
                process.wait(60)
                cluster.start(1)
                rounds.append(loaded(address, topic, options))
            port, coordinator = ([round_[i] for round_ in rounds] for i in (0, 1))
            print(f'{how}: answers after {statistics.median(port):.2f} s, loaded after {statistics.median(coordinator):.2f} s '
                  f'(worst {max(coordinator):.2f} s)', flush=True)
    finally:
        cluster.close()


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--groups', type=int, default=1000)
    parser.add_argument('--partitions', type=int, default=1000)
    parser.add_argument('--rounds', type=int, default=3)
    main(parser.parse_args())
