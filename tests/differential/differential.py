#!/usr/bin/env python3
"""The same seeded sequences of requests, right and wrong, against Apache Kafka and Ottla: every field of every answer compared.

  differential.py [--seeds N] [--first SEED] [--verbose] [--kafka BOOTSTRAP] [--ottla BOOTSTRAP] [--results FILE] [--commit NAME] [KIND...]
  differential.py --record FILE [--seeds N] [KIND...]   writes sequences and Kafka's answers to a file (.gz: packed)
  differential.py --replay FILE                         asks Ottla only, what a file holds: no Kafka, no JVM

Kinds: admin, data, groups, moves, outages, transactions (all without an argument). Without addresses, both clusters of three nodes
are started: Kafka from Maven's artifacts, as benches/compare does, and $OTTLA or target/release/ottla; outages needs that, since it
kills nodes. A sequence is made up against Kafka, step by step, by what Kafka answers; then the same steps are performed against
Ottla. Both is kept below target/differential: what Kafka answered until this program changes (Kafka is started only where something
is missing), what was compared by commit. So an interrupted run goes on where it was. `--commit` is what the results name, where $OTTLA
was not built from what lies here. Exit code 1 where a difference is not in the table of expected ones.
"""
import argparse
import collections
import contextlib
import gzip
import hashlib
import json
import pathlib
import random
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / 'tests/lib'), str(ROOT / 'benches/compare')]
import cluster as clusters  # noqa: E402
import kafka  # noqa: E402
import results  # noqa: E402
from kinds import KINDS  # noqa: E402
from script import Script  # noqa: E402
from target import Target  # noqa: E402
from verdict import differences, split  # noqa: E402

KEPT = ROOT / 'target/differential'
# What both are started with, beside their defaults: few partitions of internal topics, groups that do not wait, and leaders
# that nobody moves but the sequence.
SETTINGS = {
    'offsets.topic.num.partitions': 4, 'transaction.state.log.num.partitions': 4, 'group.initial.rebalance.delay.ms': 0,
    'auto.create.topics.enable': 'false', 'min.insync.replicas': 2, 'log.segment.delete.delay.ms': 60_000,
    'group.min.session.timeout.ms': 100, 'group.consumer.assignment.interval.ms': 0, 'auto.leader.rebalance.enable': 'false'
}
# A throttled replica of Kafka's takes one fetch before it waits: one batch, so that a few of them hold a reassignment up.
OF_KAFKA = {'replica.fetch.max.bytes': 1}
JVM = ['-Xms512m', '-Xmx512m', '-XX:TieredStopAtLevel=1', *kafka.JVM[2:]]


def record(peer, kind, seed):
    """A sequence made up against Kafka, with its answers."""
    with Target(peer) as target:
        script = Script(target, random.Random(f'{kind} {seed}'))
        KINDS[kind](script)
        return {'kind': kind, 'seed': seed, 'steps': script.steps}


def compare(ottla, sequence):
    """What differs where Ottla is asked the same: to the step where one cluster did what the other refused, or did not come to."""
    out = {
        'kind': sequence['kind'], 'seed': sequence['seed'], 'requests': 0, 'left': 0, 'expected': collections.Counter(),
        'new': []
    }
    with Target(ottla) as target:
        for index, line in enumerate(sequence['steps']):
            step = line['step']
            answer = target.perform(step)
            found = differences(step, line['answer'], answer)
            out['requests'] += 'api' in step
            known, new = split(found)
            out['expected'].update(entry.reason for entry, _ in known)
            out['new'] += [[str(difference), index, step] for difference in new]
            if any(difference.parts() for difference in found) or never(answer) and not never(line['answer']):
                # What follows, follows from that.
                out['left'] = len(sequence['steps']) - index - 1
                break
    return out


def never(answer):
    """Whether what was waited for did not come."""
    return isinstance(answer, dict) and 'never' in answer


class Sides:
    """The two clusters, each started when it is first asked for."""

    def __init__(self, args, stack):
        self.stack = stack
        self.running = {
            name: clusters.Cluster(address, range(1, address.count(',') + 2))
            for name, address in (('kafka', args.kafka), ('ottla', args.ottla)) if address
        }

    def kafka(self):
        if 'kafka' not in self.running:
            kafka.JVM[:] = JVM
            peer = self.stack.enter_context(contextlib.closing(kafka.KafkaCluster({**SETTINGS, **OF_KAFKA})))
            peer.start_all()
            peer.wait_ready(180)
            self.running['kafka'] = peer
        return self.running['kafka']

    def ottla(self):
        if 'ottla' not in self.running:
            overrides = [f'{name}={value}' for name, value in SETTINGS.items()]
            self.running['ottla'] = self.stack.enter_context(contextlib.closing(clusters.OttlaCluster(overrides=overrides)))
        return self.running['ottla']


def kept(place, make):
    """What a file holds; made, and put there, where it is not there yet."""
    if place is None:
        return make()
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_suffix('.part')
        part.write_text(json.dumps(make()))
        part.rename(place)
    return json.loads(place.read_text())


def program():
    """Names what the sequences and their answers depend on."""
    files = [HERE / f'{name}.py' for name in ('script', 'target', 'normal', 'batches')]
    files += [ROOT / 'tests/lib/schema.py', *sorted((HERE / 'kinds').glob('*.py'))]
    settings = json.dumps([SETTINGS, OF_KAFKA]).encode()
    return hashlib.sha256(b''.join(file.read_bytes() for file in files) + settings).hexdigest()[:12]


def commit():
    out = subprocess.run(['git', 'describe', '--always', '--dirty'], cwd=ROOT, capture_output=True, text=True)
    return out.stdout.strip() or 'unknown'


def open_file(path, mode):
    return gzip.open(path, mode, encoding='utf-8') if path.endswith('.gz') else open(path, mode, encoding='utf-8')


def sequences(path):
    with open_file(path, 'rt') as lines:
        return [json.loads(line) for line in lines]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('kinds', nargs='*', metavar='KIND', help=', '.join(KINDS))
    parser.add_argument('--seeds', type=int, default=10)
    parser.add_argument('--first', type=int, default=1)
    parser.add_argument('--verbose', action='store_true', help='with the request that each difference was met at first')
    for name in ('kafka', 'ottla', 'record', 'replay', 'results', 'commit'):
        parser.add_argument(f'--{name}')
    args = parser.parse_args()
    unknown = set(args.kinds) - set(KINDS)
    if unknown:
        parser.error(f'no such kind: {", ".join(sorted(unknown))}')
    args.kinds = args.kinds or list(KINDS)
    return args


def asked_of_kafka(args, sides):
    """The sequences of these kinds and seeds, each made up unless it was before."""
    for kind in args.kinds:
        for seed in range(args.first, args.first + args.seeds):
            yield kept(KEPT / 'kafka' / program() / f'{kind}-{seed}.json', lambda: record(sides.kafka(), kind, seed))


def compared(sequence, now, sides):
    """What differs at this commit; looked up where that was compared before."""
    name = f'{sequence["kind"]}-{sequence["seed"]}.json'
    place = None if now.endswith('-dirty') else KEPT / f'{now}-{program()}' / name
    return kept(place, lambda: compare(sides.ottla(), sequence))


def main():
    args = arguments()
    with contextlib.ExitStack() as stack:
        sides, now = Sides(args, stack), commit()
        if args.record:
            with open_file(args.record, 'wt') as out:
                for sequence in asked_of_kafka(args, sides):
                    out.write(json.dumps(sequence, separators=(',', ':'), ensure_ascii=False) + '\n')
            return 0
        if args.replay:
            found = [compare(sides.ottla(), sequence) for sequence in sequences(args.replay)]
        else:
            found = [compared(sequence, now, sides) for sequence in asked_of_kafka(args, sides)]
        results.tell(found, args.verbose)
        if args.results:
            results.write(pathlib.Path(args.results), found, args.commit or now)
    return 1 if any(each['new'] for each in found) else 0


if __name__ == '__main__':
    sys.exit(main())
