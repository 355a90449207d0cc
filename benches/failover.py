#!/usr/bin/env python3
"""How long a partition stands still when its leader is killed, stopped, paused, or cut off from the other nodes (R76, R77).

  failover.py [--rounds 10] [--cases pause isolate ...] [--verbose] [--json FILE] [--override NAME=VALUE]

Three nodes in network namespaces (root; see tests/chaos/networks.py), a topic of three partitions with three replicas, min ISR 2.
In turns, a leader is
  kill      killed
  stop      asked to stop (SIGTERM), and moves its leaderships first
  pause     stopped by SIGSTOP
  isolate   without packets from and to the other nodes; clients reach it
  deaf      without the packets that the other nodes send
  mute      with its packets to the other nodes dropped
and each once more where it is also the active controller (`pause+c`). The gap is the longest time without an acknowledgement
at acks=all, by tests/lib/gap.py. Beside it stand, from the fault on, when another controller was active and when the leader was
fenced, as the nodes' logs say. Needs target/release/ottla (or OTTLA).
"""
import argparse
import collections
import datetime
import json
import os
import pathlib
import random
import re
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / 'tests/lib'), str(HERE.parent / 'tests/chaos')]
import networks  # noqa: E402
import wire  # noqa: E402
from checks import eventually  # noqa: E402
from gap import Prober  # noqa: E402

KINDS = ['kill', 'stop', 'pause', 'isolate', 'deaf', 'mute']
PARTITIONS, LIMIT_SECONDS = 3, 30
ELECT_LEADERS = 43
MARKS = {'active': 'this controller is active', 'fenced': 'a broker is fenced'}
STAMP = re.compile(r'^(\d{4}-\d\d-\d\dT[\d:.]+)Z')


def prefer(cluster):
    """Leaders go back to the first of their replicas (ElectLeaders v0, all partitions)."""
    with wire.Connection(cluster.addresses[cluster.active_controller()]) as c:
        c.call(ELECT_LEADERS, 0, struct.pack('>ii', -1, 10_000))


def choose(cluster, topic, controls):
    """A partition whose leader is, or is not, the active controller."""
    def find():
        active, parts = cluster.active_controller(), cluster.partitions(topic)
        fits = [p for p, (leader, _, _) in parts.items() if (leader == active) == controls]
        if not fits:
            prefer(cluster)
            return None
        part = random.choice(fits)
        # From 1 on, so that partition 0 is found too.
        return part + 1, parts[part][0], active
    part, leader, active = eventually(find, 'a leader that fits', 60)
    return part - 1, leader, active


class Logs:
    """What the nodes' logs say from now on."""

    def __init__(self, cluster):
        self.files = {n: cluster.directory / f'node-{n}/stdout.log' for n in cluster.nodes}
        self.begun = {n: file.stat().st_size for n, file in self.files.items()}

    def marks(self, since, victim):
        """The first time of each mark after `since` (of time.time()), in seconds from there, on other nodes than the victim."""
        found = {}
        for node, file in self.files.items():
            if node == victim:
                continue
            with open(file, errors='replace') as f:
                f.seek(self.begun[node])
                for line in f:
                    stamp = STAMP.match(line)
                    for name, text in MARKS.items():
                        if stamp and text in line:
                            at = datetime.datetime.fromisoformat(stamp[1]).replace(tzinfo=datetime.timezone.utc).timestamp()
                            found[name] = min(found.get(name, at - since), at - since)
        return {name: at for name, at in found.items() if at >= 0}


def harm(cluster, kind, node):
    away = [networks.address(n) for n in cluster.nodes if n != node]
    signals = {'kill': signal.SIGKILL, 'stop': signal.SIGTERM, 'pause': signal.SIGSTOP}
    if kind in signals:
        cluster.signal(node, signals[kind])
    else:
        cluster.drop(node, heard=away if kind != 'mute' else (), told=away if kind != 'deaf' else ())


def heal(cluster, kind, node, topic):
    if kind in ('kill', 'stop'):
        cluster.processes[node].wait(30)
        cluster.start(node)
    elif kind == 'pause':
        cluster.resume(node)
    else:
        cluster.heal()
    cluster.wait_ready(timeout=90)
    cluster.wait_full_isr(topic)


def round_(cluster, topic, case):
    kind, controls = case.removesuffix('+c'), case.endswith('+c')
    part, node, _ = choose(cluster, topic, controls)
    with Prober(cluster.addresses, topic, part) as prober:
        begun = time.monotonic()
        if prober.wait_acked(begun, LIMIT_SECONDS) is None:
            raise RuntimeError('nothing is acknowledged before the fault')
        # Where in the course of heartbeats and keepalives the fault comes is chance.
        time.sleep(random.uniform(0.5, 1.5))
        logs, at, wall = Logs(cluster), time.monotonic(), time.time()
        harm(cluster, kind, node)
        again = prober.wait_acked(at, LIMIT_SECONDS, other_than=node)
        # What comes at once may be what was under way.
        time.sleep(0.2)
        gap = prober.gap(at, time.monotonic()) if again else LIMIT_SECONDS
        heal(cluster, kind, node, topic)
    return {'case': case, 'gap': gap, **logs.marks(wall, node)}


def settle(cluster, topic):
    """Nobody is fenced, and the leaders are spread."""
    prefer(cluster)
    cluster.wait_full_isr(topic)
    time.sleep(random.uniform(0.5, 1))


def show(results):
    print(f'{"case":<12}{"rounds":>7}{"gap median":>12}{"worst":>9}{"active":>9}{"fenced":>9}')
    for case, rounds in results.items():
        def median(name):
            values = [r[name] for r in rounds if name in r]
            return f'{statistics.median(values):.2f} s' if values else '–'
        print(f'{case:<12}{len(rounds):>7}{median("gap"):>12}{max(r["gap"] for r in rounds):>7.2f} s{median("active"):>9}{median("fenced"):>9}')
    sys.stdout.flush()


def inside(given, prefix):
    with tempfile.TemporaryDirectory(prefix='failover-') as directory:
        cluster = networks.NetCluster(pathlib.Path(directory), prefix, given.override)
        results = collections.defaultdict(list)
        try:
            topic = wire.unique('failover')
            if wire.create_topic(cluster.addresses[1], topic, PARTITIONS, 3):
                raise RuntimeError('the topic is not created')
            cluster.wait_full_isr(topic)
            for number in range(given.rounds):
                for case in given.cases:
                    settle(cluster, topic)
                    result = round_(cluster, topic, case)
                    results[case].append(result)
                    if given.verbose:
                        print(number, {k: round(v, 3) if isinstance(v, float) else v for k, v in result.items()}, flush=True)
        finally:
            if results:
                show(results)
            cluster.close()
    if given.json:
        pathlib.Path(given.json).write_text(json.dumps(results, indent=1))


def main():
    cases = [kind + suffix for kind in KINDS for suffix in ('', '+c')]
    arguments = argparse.ArgumentParser()
    arguments.add_argument('--rounds', type=int, default=10)
    arguments.add_argument('--cases', nargs='+', default=cases, choices=cases)
    arguments.add_argument('--override', action='append', default=[], help='name=value for the nodes')
    arguments.add_argument('--verbose', action='store_true')
    arguments.add_argument('--json')
    arguments.add_argument('--inside', help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.inside:
        return inside(given, given.inside)
    with networks.Namespaces([1, 2, 3]) as made:
        # The clients are in the hub.
        command = ['ip', 'netns', 'exec', made.name(), sys.executable, __file__, *sys.argv[1:], '--inside', made.prefix]
        child = subprocess.Popen(command)
        signal.signal(signal.SIGTERM, lambda *_: child.terminate())
        code = child.wait()
    sys.exit(code)


if __name__ == '__main__':
    main()
