#!/usr/bin/env python3
"""Whether a broker that gets too little of the processors is taken for a dead one (R76). It must not be.

  starved.py [--minutes 30] [--loops N]

Three nodes as processes under a steady load (acks=all), with busy loops at the nodes' own priority beside them: twice as many as
there are processors, unless told. Counts what the controllers did: brokers that were fenced (there must be none), controllers that
became active after the first one, and the longest time without an acknowledgement (tests/lib/gap.py). Ends with 1 where a broker
was fenced. Needs target/release/ottla (or OTTLA).
"""
import argparse
import multiprocessing
import os
import pathlib
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / 'tests/lib'))
import cluster as clusters  # noqa: E402
import wire  # noqa: E402
from gap import Prober  # noqa: E402


def spin():
    while True:
        pass


def count(cluster, text):
    logs = [(cluster.directory / f'node-{n}/stdout.log').read_text(errors='replace') for n in cluster.nodes]
    return sum(text in line for log in logs for line in log.splitlines())


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument('--minutes', type=float, default=30)
    arguments.add_argument('--loops', type=int, default=2 * os.cpu_count())
    given = arguments.parse_args()
    cluster = clusters.OttlaCluster()
    loops = [multiprocessing.Process(target=spin, daemon=True) for _ in range(given.loops)]
    try:
        topic = wire.unique('starved')
        if wire.create_topic(cluster.addresses[1], topic, 1, 3):
            raise RuntimeError('the topic is not created')
        cluster.wait_full_isr(topic)
        before = {what: count(cluster, what) for what in ('a broker is fenced', 'this controller is active')}
        with Prober(cluster.addresses, topic, 0) as prober:
            begun = time.monotonic()
            if prober.wait_acked(begun, 30) is None:
                raise RuntimeError('nothing is acknowledged')
            for loop in loops:
                loop.start()
            end = begun + given.minutes * 60
            while time.monotonic() < end:
                # The length of the run is the measurement.
                time.sleep(min(60, max(0, end - time.monotonic())))
                fenced, active = (count(cluster, what) - known for what, known in before.items())
                print(f'{(time.monotonic() - begun) / 60:.1f} min: {fenced} fenced, {active} elections of a controller, '
                      f'{len(prober.acked)} acknowledged, at most {prober.gap(begun, time.monotonic()):.2f} s without', flush=True)
    finally:
        for loop in loops:
            if loop.is_alive():
                loop.kill()
        cluster.close()
    sys.exit(1 if fenced else 0)


if __name__ == '__main__':
    main()
