#!/usr/bin/env python3
"""What idle partitions cost one node: memory, open files, processor time, and the start after a stop and after a kill.

  idle.py [--partitions 0 10000 100000] [--settle 30] [--seconds 30] [--rounds 3]

One node of its own (RF 1, fresh data, topics of 1,000 partitions) has so many partitions in turn, none of them ever written
but one. Then it is left alone until the copy of its metadata in sled is written, too, which is some ten seconds later; its processor
time is read over some more, and it is started anew as in restart.py.
Needs target/release/ottla (or OTTLA).
"""
import argparse
import os
import pathlib
import shutil
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import restart  # noqa: E402
from restart import AdminClient, NewTopic, clusters, eventually, installs  # noqa: E402

EACH = 1000


def fill(cluster, topics, count):
    """Topics of 1,000 partitions until there are so many."""
    admin = AdminClient({'bootstrap.servers': cluster.bootstrap})
    begun = time.monotonic()
    while topics * EACH < count:
        name = f'idle-{topics}'
        admin.create_topics([NewTopic(name, EACH, 1)], request_timeout=60)[name].result(60)
        topics += 1
    if topics:
        last = f'idle-{topics - 1}'
        eventually(lambda: all(leader == 1 for leader, _, _ in cluster.partitions(last).values()), f'leaders of {last}', 120)
    return topics, time.monotonic() - begun


def files(cluster):
    return len(os.listdir(f'/proc/{cluster.pid(1)}/fd'))


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument('--partitions', type=int, nargs='*', default=[0, 10_000, 100_000])
    arguments.add_argument('--settle', type=float, default=30)
    arguments.add_argument('--seconds', type=float, default=30)
    arguments.add_argument('--rounds', type=int, default=3)
    given = arguments.parse_args()
    home = pathlib.Path(tempfile.mkdtemp(prefix='ottla-idle-', dir=installs.CACHE))
    cluster = clusters.OttlaCluster(home, nodes=1)
    topic, topics = 'written', 0
    try:
        admin = AdminClient({'bootstrap.servers': cluster.bootstrap})
        admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(30)
        print(f'{"partitions":>10} {"made in s":>9} {"RSS MiB":>8} {"files":>6} {"% of a core":>11} {"stopped by":>10} '
              f'{"ready s":>8} {"serving s":>9}', flush=True)
        for count in given.partitions:
            topics, took = fill(cluster, topics, count)
            # What making them left to do is done.
            time.sleep(given.settle)
            before = cluster.cpu_seconds()
            time.sleep(given.seconds)
            busy = (cluster.cpu_seconds() - before) / given.seconds * 100
            costs = f'{count:>10} {took:>9.1f} {cluster.resident_mib():>8.0f} {files(cluster):>6} {busy:>11.2f}'
            for how in ('SIGTERM', 'kill -9'):
                rows = []
                for _ in range(given.rounds):
                    if how == 'SIGTERM':
                        cluster.stop(1)
                    else:
                        cluster.kill(1)
                    rows.append(restart.started(cluster, topic))
                ready, serving = (statistics.median(column) for column in zip(*rows))
                print(f'{costs} {how:>10} {ready:>8.3f} {serving:>9.3f}', flush=True)
                costs = ' ' * len(costs)
    finally:
        cluster.close()
        shutil.rmtree(home, ignore_errors=True)
    os._exit(0)


if __name__ == '__main__':
    main()
