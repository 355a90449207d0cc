#!/usr/bin/env python3
"""A chain through three topics, each record exactly once at its end, while brokers and clients are killed throughout.

  exactly_once.py [--records 1000000] [--broker-kills 60] [--client-kills 30] [--seed N] [--home DIR]

An idempotent producer writes numbers into the first topic; two applications move what is in it to the second in transactions, with
their offsets, and two more from there to the third (consume, transform, produce). The first two are a group of the classic protocol,
the others of the consumer protocol (KIP-848). Brokers (coordinators of transactions and of groups, leaders, the active controller,
now and then two at once) and applications are killed by kill -9, each at a number of records that its seed draws, and started again;
the next kill comes only when what was there before this one has arrived at the end. A reader of committed records follows the end all
the time.

Judged: what that reader saw, and what fresh readers find in all three topics. *Lost* are numbers that are not there, *duplicated*
those that are there again, *reordered* those behind a greater one of their partition. The offsets of the first group end at the end.

It may be stopped at any time (SIGTERM, Ctrl-C) and goes on where it was, with the data that is in DIR (default: in the test cache);
DIR is removed when all is sound. The tally goes to docs/results/exactly-once.md. Needs target/release/ottla (or $OTTLA).
"""
import argparse
import collections
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / 'lib'))
import cluster as clusters  # noqa: E402
import installs  # noqa: E402
from checks import eventually  # noqa: E402

if __name__ == '__main__':
    PYTHON = installs.python('confluent-kafka==2.16.1')
    if pathlib.Path(sys.executable) != PYTHON:
        os.execv(PYTHON, [str(PYTHON), *sys.argv])

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition  # noqa: E402
from confluent_kafka.admin import AdminClient, NewTopic  # noqa: E402

RESULTS = clusters.REPOSITORY / 'docs/results/exactly-once.md'
TOPICS = ['chain-a', 'chain-b', 'chain-c']
PARTITIONS = 6
# Of each stage: the protocol of its group. Stage i moves records from topic i to topic i + 1.
STAGES = ['classic', 'consumer']
WORKERS = 2
# Records of a transaction at most.
BATCH = 500
# An application that stands still for so long is ended, as a supervisor's probe would: librdkafka waits for ever in
# send_offsets_to_transaction once it has asked three times in vain for the group's coordinator.
STUCK_SECONDS = 30
# How long anything may take to go on.
PATIENCE = 180
IMPATIENT = {'retry.backoff.ms': 20, 'retry.backoff.max.ms': 200, 'reconnect.backoff.ms': 20, 'reconnect.backoff.max.ms': 200,
             'topic.metadata.refresh.fast.interval.ms': 50, 'socket.timeout.ms': 10_000, 'log_level': 0}
SETTINGS = ['group.initial.rebalance.delay.ms=0', 'group.consumer.min.session.timeout.ms=6000', 'group.consumer.session.timeout.ms=6000',
            'group.consumer.min.heartbeat.interval.ms=500', 'group.consumer.heartbeat.interval.ms=500']
# What is killed, and how often of a hundred.
VICTIMS = {'transaction coordinator': 30, 'group coordinator': 30, 'leader': 20, 'controller': 10, 'anybody': 10}
TWO_AT_ONCE = 0.15


# An application

class AgainFromTheStart(Exception):
    """The transaction is to be aborted, and the consumer begins where the group is."""


def application(bootstrap, stage, id, parent):
    """Moves records until it is killed. An error that an application is meant to survive is survived; any other ends it."""
    source, target, suffix = TOPICS[stage], TOPICS[stage + 1], b'.%d' % (stage + 1)
    producer = Producer({'bootstrap.servers': bootstrap, 'transactional.id': id, 'transaction.timeout.ms': 20_000, 'linger.ms': 2, **IMPATIENT})
    signal.alarm(STUCK_SECONDS)
    persist(lambda: producer.init_transactions(10))
    consumer = Consumer({'bootstrap.servers': bootstrap, 'group.id': group(stage), 'enable.auto.commit': False,
                         'auto.offset.reset': 'earliest', **protocol(STAGES[stage]), **IMPATIENT})
    moved = []
    consumer.subscribe([source], on_assign=lambda *_: moved.append(1), on_revoke=lambda *_: moved.append(1), on_lost=lambda *_: moved.append(1))
    while os.getppid() == parent:
        # Its default is the end of the process.
        signal.alarm(STUCK_SECONDS)
        moved.clear()
        messages = [m for m in consumer.consume(BATCH, 0.1) if not m.error()]
        if moved:
            # Some of it may be another member's by now.
            rewind(consumer)
        elif messages:
            try:
                transaction(producer, consumer, target, suffix, messages)
            except AgainFromTheStart:
                persist(lambda: producer.abort_transaction(10))
                rewind(consumer)


def protocol(name):
    if name == 'consumer':
        return {'group.protocol': 'consumer'}
    return {'session.timeout.ms': 6000, 'heartbeat.interval.ms': 500}


def group(stage):
    return f'chain-group-{stage + 1}'


def rewind(consumer):
    """To where the group is: what was read beyond that is read again."""
    for where in persist(lambda: consumer.committed(consumer.assignment(), timeout=10)):
        persist(lambda: consumer.seek(TopicPartition(where.topic, where.partition, max(where.offset, 0))))


def transaction(producer, consumer, target, suffix, messages):
    producer.begin_transaction()
    positions = {}
    for m in messages:
        while True:
            try:
                producer.produce(target, m.value() + suffix, partition=m.partition())
                break
            except BufferError:
                producer.poll(0.1)
            except KafkaException as e:
                if e.args[0].txn_requires_abort():
                    raise AgainFromTheStart from e
                raise
        positions[m.topic(), m.partition()] = m.offset() + 1
    offsets = [TopicPartition(topic, part, offset) for (topic, part), offset in positions.items()]
    persist(lambda: producer.send_offsets_to_transaction(offsets, consumer.consumer_group_metadata(), 10))
    persist(lambda: producer.commit_transaction(10))


def persist(call):
    """Calls again where the client says that it may be called again."""
    while True:
        try:
            return call()
        except KafkaException as e:
            if e.args[0].txn_requires_abort():
                raise AgainFromTheStart from e
            if not e.args[0].retriable():
                raise
            time.sleep(0.05)


class Application:
    """An application that is started again as often as it ends."""

    def __init__(self, chain, stage, number):
        self.chain, self.stage, self.id = chain, stage, f'chain-{stage + 1}-{number}'
        # How often it ended by itself.
        self.ended = 0
        self.start()

    def start(self):
        with open(self.chain.home / f'{self.id}.log', 'a') as log:
            command = [sys.executable, __file__, 'application', self.chain.cluster.bootstrap, str(self.stage), self.id, str(os.getpid())]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def keep_alive(self):
        if self.process.poll() is not None:
            self.ended += 1
            self.start()

    def kill(self):
        self.process.kill()
        self.process.wait()


# Who writes, and who reads

class Feeder(threading.Thread):
    """Writes each partition's numbers in order, as many as are asked for, whatever happens to the brokers."""

    def __init__(self, chain):
        super().__init__(daemon=True, name='feeder')
        self.chain, self.quota, self.error = chain, 0, None
        # Where an earlier run ended: it wrote in order and without gaps, so that the number of a record is its offset.
        self.next = [eventually(lambda: chain.end_of(TOPICS[0], p) + 1, 'the end of the first topic', 60) - 1 for p in range(PARTITIONS)]

    def run(self):
        try:
            producer = Producer({'bootstrap.servers': self.chain.cluster.bootstrap, 'enable.idempotence': True, 'acks': 'all', 'linger.ms': 5,
                                 'message.timeout.ms': 0, 'queue.buffering.max.messages': 20_000, **IMPATIENT})
            while not self.chain.over.is_set():
                part = min(range(PARTITIONS), key=lambda p: self.next[p])
                if sum(self.next) >= self.quota:
                    producer.poll(0.05)
                    continue
                try:
                    producer.produce(TOPICS[0], b'%d' % self.next[part], partition=part, on_delivery=self.delivered)
                    self.next[part] += 1
                    producer.poll(0)
                except BufferError:
                    producer.poll(0.1)
        except BaseException as e:
            self.error = e

    def delivered(self, error, _message):
        if error:
            self.error = RuntimeError(f'a record of the first topic: {error}')


class Follower(threading.Thread):
    """One reader of committed records at the end of the chain, from the first to the last."""

    def __init__(self, chain):
        super().__init__(daemon=True, name='follower')
        self.chain, self.error, self.values = chain, None, [[] for _ in range(PARTITIONS)]

    def count(self):
        return sum(map(len, self.values))

    def run(self):
        consumer = self.chain.reader()
        consumer.assign([TopicPartition(TOPICS[-1], p, 0) for p in range(PARTITIONS)])
        try:
            while not self.chain.over.is_set():
                for m in consumer.consume(1000, 0.1):
                    if not m.error():
                        self.values[m.partition()].append(m.value())
            consumer.close()
        except BaseException as e:
            self.error = e


# The run

class OwnCluster(clusters.OttlaCluster):
    """Nodes that end with this program, whatever ends it."""

    def command(self, node):
        return [*super().command(node), '--end-with-parent', str(os.getpid())]


class Chain:
    def __init__(self, home, given):
        self.home, self.given, self.over = home, given, threading.Event()
        self.note = home / 'state.json'
        if self.note.exists():
            self.state = json.loads(self.note.read_text())
        else:
            self.state = {'records': given.records, 'cycles': given.broker_kills, 'clients': given.client_kills,
                          'seed': given.seed or random.randrange(1, 1 << 31), 'done': 0, 'broker_kills': 0, 'coordinators': 0,
                          'client_kills': 0, 'ended': 0, 'seconds': 0.0}
            (home / 'cluster').mkdir(parents=True)
            self.save()
        self.cluster = OwnCluster(home / 'cluster', overrides=SETTINGS)
        self.applications = []

    def save(self):
        part = self.note.with_suffix('.part')
        part.write_text(json.dumps(self.state))
        part.rename(self.note)

    def close(self):
        self.over.set()
        for one in self.applications:
            one.kill()
        self.cluster.close()

    def reader(self):
        return Consumer({'bootstrap.servers': self.cluster.bootstrap, 'group.id': 'readers', 'enable.auto.commit': False, 'auto.offset.reset': 'error',
                         'isolation.level': 'read_committed', **IMPATIENT})

    def end_of(self, topic, partition):
        consumer = self.reader()
        try:
            return consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=5)[1]
        finally:
            consumer.close()

    def make_topics(self):
        admin = AdminClient({'bootstrap.servers': self.cluster.bootstrap, 'log_level': 0})
        there = eventually(lambda: admin.list_topics(timeout=10).topics, 'the topics', 60, pause=0.2) if self.state['done'] else {}
        missing = [t for t in TOPICS if t not in there]
        config = {'min.insync.replicas': '2'}
        for future in admin.create_topics([NewTopic(t, PARTITIONS, 3, config=config) for t in missing]).values() if missing else ():
            future.result(30)

    def run(self):
        """Plays all cycles that are left."""
        begun, state = time.monotonic(), self.state
        before = state['seconds']
        self.make_topics()
        self.settle()
        self.feeder, self.follower = Feeder(self), Follower(self)
        self.applications = [Application(self, stage, n) for stage in range(len(STAGES)) for n in range(WORKERS)]
        self.feeder.start()
        self.follower.start()
        try:
            while state['done'] < state['cycles']:
                self.cycle(state['done'])
                state['done'] += 1
                state['seconds'] = before + time.monotonic() - begun
                self.save()
            # What the kills' quota rounded down.
            self.feeder.quota = state['records']
            self.wait_for(state['records'])
        finally:
            state['seconds'] = before + time.monotonic() - begun
            state['ended'] += sum(one.ended for one in self.applications)
            self.save()

    def cycle(self, number):
        chance, state = random.Random(f'{self.state["seed"]}:{number}'), self.state
        chunk = state['records'] // state['cycles']
        self.feeder.quota = min(state['records'], (number + 2) * chunk)
        self.wait_for(int((number + chance.random()) * chunk))
        clients = state['clients'] * (number + 1) // state['cycles'] - state['clients'] * number // state['cycles']
        killed = [chance.choice(self.applications) for _ in range(clients)]
        early = chance.random() < 0.5
        if early:
            self.kill_applications(killed)
        kind, nodes = self.victims(chance)
        self.cluster.kill(*nodes)
        if not early:
            self.kill_applications(killed)
        if len(nodes) == 1 and chance.random() < 0.3:
            # The others go on meanwhile.
            self.wait_for(min(self.follower.count() + chunk // 4, (number + 1) * chunk))
        else:
            time.sleep(chance.uniform(0, 1.5))
        for node in nodes:
            self.cluster.start(node)
        state['broker_kills'] += len(nodes)
        state['coordinators'] += 'coordinator' in kind
        state['client_kills'] += len(killed)
        self.settle()
        self.wait_for((number + 1) * chunk)
        clients = f', and {", ".join(one.id for one in killed)}' if killed else ''
        print(f'{number + 1}/{state["cycles"]}: {kind}, node {" and ".join(map(str, nodes))}{clients}; {self.follower.count()} records', flush=True)

    def kill_applications(self, killed):
        for one in killed:
            one.kill()
            one.start()

    def victims(self, chance):
        kind = chance.choices(list(VICTIMS), VICTIMS.values())[0]
        stage = chance.randrange(len(STAGES))
        if kind == 'transaction coordinator':
            node = self.coordinator('__transaction_state', chance.choice(self.applications).id)
        elif kind == 'group coordinator':
            node = self.coordinator('__consumer_offsets', group(stage))
        elif kind == 'leader':
            node = self.cluster.leader_of(chance.choice(TOPICS), chance.randrange(PARTITIONS))
        elif kind == 'controller':
            node = self.cluster.active_controller()
        else:
            node = chance.choice(self.cluster.nodes)
        others = [n for n in self.cluster.nodes if n != node]
        return kind, [node, chance.choice(others)] if chance.random() < TWO_AT_ONCE else [node]

    def coordinator(self, topic, key):
        partitions = eventually(lambda: len(self.cluster.partitions(topic)), f'the partitions of {topic}', 60)
        return self.cluster.leader_of(topic, java_hash(key) % partitions)

    def settle(self):
        """All replicas are in sync again."""
        for topic in [*TOPICS, *(['__consumer_offsets', '__transaction_state'] if self.applications else [])]:
            self.cluster.wait_full_isr(topic)

    def wait_for(self, count):
        """Until so many records have arrived; whoever ended by itself is started again."""
        last, since = -1, time.monotonic()
        while (now := self.follower.count()) < count:
            for one in self.applications:
                one.keep_alive()
            for thread in (self.feeder, self.follower):
                if thread.error:
                    raise thread.error
            if now != last:
                last, since = now, time.monotonic()
            if time.monotonic() - since > PATIENCE:
                raise TimeoutError(f'{now} of {count} records have arrived, and no other for {PATIENCE} s')
            time.sleep(0.02)

    def judge(self):
        """What is wrong: {(what, topic): count}."""
        self.over.set()
        for thread in (self.feeder, self.follower):
            thread.join(60)
        for one in self.applications:
            one.kill()
        per_partition = [(self.state['records'] + PARTITIONS - 1 - p) // PARTITIONS for p in range(PARTITIONS)]
        found = collections.Counter()
        tell(found, 'the end, as it was followed', self.follower.values, per_partition, b'.1.2')
        for topic, suffix in zip(TOPICS, [b'', b'.1', b'.1.2']):
            tell(found, topic, self.everything(topic), per_partition, suffix)
        consumer = Consumer({'bootstrap.servers': self.cluster.bootstrap, 'group.id': group(0), **IMPATIENT})
        offsets = consumer.committed([TopicPartition(TOPICS[0], p) for p in range(PARTITIONS)], timeout=30)
        consumer.close()
        found['other', 'offsets of the first group'] += sum(each.offset != n for each, n in zip(offsets, per_partition))
        return {key: count for key, count in found.items() if count}

    def everything(self, topic):
        """[values by partition] that are committed, up to the ends of the partitions."""
        consumer = Consumer({'bootstrap.servers': self.cluster.bootstrap, 'group.id': 'readers', 'isolation.level': 'read_committed',
                             'enable.partition.eof': True, 'auto.offset.reset': 'error', **IMPATIENT})
        consumer.assign([TopicPartition(topic, p, 0) for p in range(PARTITIONS)])
        values, ended, deadline = [[] for _ in range(PARTITIONS)], set(), time.monotonic() + PATIENCE
        while len(ended) < PARTITIONS:
            if time.monotonic() > deadline:
                raise TimeoutError(f'the end of {topic} does not come')
            for m in consumer.consume(1000, 1):
                if m.error():
                    ended.add(m.partition())
                else:
                    values[m.partition()].append(m.value())
        consumer.close()
        return values


def java_hash(key):
    code = 0
    for char in key:
        code = (code * 31 + ord(char)) & 0xFFFFFFFF
    return abs(code - (1 << 32) if code >= 1 << 31 else code)


def tell(found, where, values, counts, suffix):
    """Counts what is wrong with a topic's values: `counts` numbers from zero on in each partition, in order, each with the suffix."""
    for part, count in zip(values, counts):
        numbers = [int(v[:len(v) - len(suffix)]) for v in part if v.endswith(suffix) and v[:len(v) - len(suffix)].isdigit()]
        found['other', where] += len(part) - len(numbers)
        seen, greatest = set(), -1
        for number in numbers:
            if number in seen:
                found['duplicated', where] += 1
            elif number < greatest:
                found['reordered', where] += 1
            seen.add(number)
            greatest = max(greatest, number)
        found['lost', where] += count - len(seen & set(range(count)))
        found['other', where] += len(seen - set(range(count)))


HEADER = """# Exactly once

`just exactly-once` (tests/chaos/exactly_once.py): records move through three topics in transactions with their offsets, by two applications
a stage (librdkafka), of the classic protocol in the first stage and of the consumer protocol in the second. Brokers and applications are
killed by kill -9 at numbers of records that the seed draws; the next kill comes when what was there before has arrived. *Coordinators*
are kills of the broker that coordinated transactions or a group of the chain. Lost, duplicated and reordered are counted in all topics
and by a reader that followed the end throughout. *Ended* are applications that ended by themselves, as librdkafka tells them to, and
were started again.

| commit | seed | records | broker kills | coordinators | client kills | ended | lost | duplicated | reordered | other | minutes |
|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|
"""


def tally(state, found):
    if not RESULTS.exists():
        RESULTS.write_text(HEADER)
    sums = collections.Counter()
    for (what, _), count in found.items():
        sums[what] += count
    done = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], cwd=clusters.REPOSITORY, capture_output=True, text=True)
    commit = os.environ.get('OTTLA_COMMIT') or done.stdout.strip()
    with open(RESULTS, 'a') as f:
        f.write(f'| {commit} | {state["seed"]} | {state["records"]:,} | {state["broker_kills"]} | {state["coordinators"]} | {state["client_kills"]} | '
                f'{state["ended"]} | {sums["lost"]} | {sums["duplicated"]} | {sums["reordered"]} | {sums["other"]} | {state["seconds"] / 60:.1f} |\n')


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument('--records', type=int, default=1_000_000)
    arguments.add_argument('--broker-kills', type=int, default=60, help='kills of a broker, or now and then of two at once')
    arguments.add_argument('--client-kills', type=int, default=30)
    arguments.add_argument('--seed', type=int)
    arguments.add_argument('--home', type=pathlib.Path, default=installs.CACHE / 'exactly-once')
    given = arguments.parse_args()
    given.home.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    chain = Chain(given.home, given)
    if chain.state['done']:
        print(f'goes on after {chain.state["done"]} of {chain.state["cycles"]} cycles, in {given.home}', flush=True)
    try:
        chain.run()
        found = chain.judge()
    finally:
        chain.close()
    tally(chain.state, found)
    for (what, where), count in sorted(found.items()):
        print(f'{what}: {count} in {where}')
    kept = f'; data and logs: {given.home}' if found else ''
    print(f'{chain.state["records"]} records, {chain.state["broker_kills"]} kills of brokers, {chain.state["client_kills"]} of clients, seed '
          f'{chain.state["seed"]}, {chain.state["seconds"]:.0f} s: {"FAIL" if found else "each exactly once"}{kept}', flush=True)
    if not found:
        shutil.rmtree(given.home, ignore_errors=True)
    # librdkafka's threads may outlive a failed run; the verdict is printed.
    os._exit(1 if found else 0)


if __name__ == '__main__':
    if sys.argv[1:2] == ['application']:
        application(sys.argv[2], int(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
    else:
        main()
