#!/usr/bin/env python3
"""Hours of mixed load with a kill every minute: nothing is lost, and nothing grows.

  soak.py [--minutes 120] [--kill-every 60] [--rate 400] [--out soak.csv]

Three nodes; librdkafka clients that live as long as the run: an idempotent producer (acks=all), a group of two consumers that
commits, transactions of ten records over two topics with a read_committed reader, and topics that are made, written and deleted.
Every so often one node is killed (kill -9) and started again: all but the first in turn, which lives as long as the run. Each turn
prints a line and appends one to the file: records, the delay of an acknowledgement (p50, p99), and of the first node the resident
memory, open files and threads.

Judged at the end: every acknowledged record was read, in the order of its partition; every committed transaction was read whole and
once, no aborted one was; memory, files and threads of the last quarter are not above those of the second by more than is told in
`GROWTH`. The first quarter is warm-up: caches fill. Needs target/release/ottla (or OTTLA).
"""
import argparse
import collections
import os
import pathlib
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / 'lib'))
import cluster as clusters  # noqa: E402
import installs  # noqa: E402
from checks import eventually  # noqa: E402

PYTHON = installs.python('confluent-kafka==2.16.1')
if pathlib.Path(sys.executable) != PYTHON:
    os.execv(PYTHON, [str(PYTHON), *sys.argv])

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer  # noqa: E402
from confluent_kafka.admin import AdminClient, NewTopic  # noqa: E402

PARTITIONS = 12
# By how much the median of the last quarter may be above that of the second: memory in MiB, files and threads each.
GROWTH = {'rss': 24, 'files': 12, 'threads': 2}
# What retention leaves on the disks: a soak of any length fits, and after some minutes there is no segment more than there was.
BOUNDED = {'retention.bytes': str(6 << 20), 'segment.bytes': str(1 << 20)}


class Part(threading.Thread):
    """A part of the load: runs `turn` until the end; what it raises ends the run."""

    def __init__(self, soak):
        super().__init__(daemon=True)
        self.soak, self.failed = soak, None

    def run(self):
        try:
            while not self.soak.ended.is_set():
                self.turn()
            self.finish()
        except BaseException as e:
            self.failed = e
            self.soak.ended.set()

    def finish(self):
        pass


class Writer(Part):
    """Numbers each partition's records from zero on, at a steady rate."""

    def __init__(self, soak, rate):
        super().__init__(soak)
        self.rate, self.sent, self.delays = rate, 0, []
        self.next, self.acked = [0] * PARTITIONS, [0] * PARTITIONS
        self.producer = Producer({'bootstrap.servers': soak.bootstrap, 'enable.idempotence': True, 'linger.ms': 2,
                                  'delivery.timeout.ms': 120_000, 'retry.backoff.ms': 20})
        self.due = time.monotonic()

    def turn(self):
        self.due += 1 / self.rate
        while (wait := self.due - time.monotonic()) > 0:
            self.producer.poll(wait)
        partition = self.sent % PARTITIONS
        number, begun = self.next[partition], time.monotonic()

        def delivered(error, _message):
            if error:
                raise KafkaException(error)
            # Idempotent: acknowledged in order.
            assert number == self.acked[partition], f'{partition}: {number} acknowledged after {self.acked[partition]}'
            self.acked[partition] += 1
            self.delays.append(time.monotonic() - begun)

        value = number.to_bytes(8, 'big') + bytes(random.Random(number).randbytes(500))
        self.producer.produce('soak', value, partition=partition, on_delivery=delivered)
        self.next[partition] += 1
        self.sent += 1

    def finish(self):
        if self.producer.flush(120):
            raise RuntimeError('not everything was acknowledged within two minutes of the end')


class Reader(Part):
    """A member of the group: numbers go on from where the group stood, may be read twice after a rebalance, and never leave one out."""

    def __init__(self, soak, seen):
        super().__init__(soak)
        self.seen = seen
        self.consumer = Consumer({'bootstrap.servers': soak.bootstrap, 'group.id': 'soak', 'auto.offset.reset': 'earliest',
                                  'auto.commit.interval.ms': 1000, 'session.timeout.ms': 10_000})
        self.consumer.subscribe(['soak'])

    def turn(self):
        self.read(0.2)

    def read(self, timeout):
        messages = self.consumer.consume(500, timeout)
        for message in messages:
            if message.error():
                if message.error().code() in (KafkaError._PARTITION_EOF, KafkaError._ALL_BROKERS_DOWN) or message.error().retriable():
                    continue
                raise KafkaException(message.error())
            number, partition = int.from_bytes(message.value()[:8], 'big'), message.partition()
            assert message.value()[8:] == random.Random(number).randbytes(500), f'{partition}: {number} has another value'
            assert number <= self.seen[partition], f'soak-{partition}: {number} read after {self.seen[partition] - 1}'
            self.seen[partition] = max(self.seen[partition], number + 1)
        return messages

    def finish(self):
        self.soak.writer.join(180)
        self.soak.drain(lambda: self.read(0.2), lambda: self.seen == self.soak.writer.acked)
        self.consumer.close()


class Transactions(Part):
    """Ten records in two topics, each fifth one aborted; a new transaction each half second."""

    def __init__(self, soak):
        super().__init__(soak)
        self.number, self.committed, self.unknown = 0, set(), set()
        self.connect()

    def connect(self):
        self.producer = Producer({'bootstrap.servers': self.soak.bootstrap, 'transactional.id': 'soak', 'transaction.timeout.ms': 30_000})
        self.retried(lambda: self.producer.init_transactions(30))

    def retried(self, call):
        """Until it is done; only what the client itself calls retriable is tried again."""
        while True:
            try:
                return call()
            except KafkaException as e:
                if not e.args[0].retriable():
                    raise

    def turn(self):
        self.soak.ended.wait(0.5)
        self.number += 1
        number = self.number
        try:
            self.producer.begin_transaction()
            for i in range(10):
                self.producer.produce(f'transactions-{i % 2}', b'%d %d' % (number, i))
            if number % 5 == 0:
                self.retried(lambda: self.producer.abort_transaction(30))
                return
            self.unknown.add(number)
            self.retried(lambda: self.producer.commit_transaction(30))
            self.unknown.discard(number)
            self.committed.add(number)
        except KafkaException as e:
            if e.args[0].txn_requires_abort():
                self.retried(lambda: self.producer.abort_transaction(30))
                self.unknown.discard(number)
            elif e.args[0].fatal():
                self.connect()
            else:
                raise


class Committed(Part):
    """Reads what was committed, by itself, from the beginning on."""

    def __init__(self, soak):
        super().__init__(soak)
        self.found = collections.Counter()
        self.consumer = Consumer({'bootstrap.servers': soak.bootstrap, 'group.id': 'committed', 'isolation.level': 'read_committed',
                                  'auto.offset.reset': 'earliest', 'enable.auto.commit': False})
        self.consumer.subscribe(['transactions-0', 'transactions-1'])

    def turn(self):
        self.read(0.2)

    def read(self, timeout):
        for message in self.consumer.consume(500, timeout):
            if message.error():
                if message.error().retriable() or message.error().code() == KafkaError._ALL_BROKERS_DOWN:
                    continue
                raise KafkaException(message.error())
            number, i = message.value().split()
            self.found[int(number), int(i)] += 1

    def whole(self):
        return all(self.found[number, i] for number in self.soak.transactions.committed for i in range(10))

    def finish(self):
        self.soak.transactions.join(180)
        self.soak.drain(lambda: self.read(0.2), self.whole)
        twice = [key for key, count in self.found.items() if count > 1]
        # This reader is alone in its group and never leaves it: no record comes twice.
        assert not twice, f'read twice: {twice[:10]}'
        numbers = {number for number, _ in self.found}
        strange = numbers - self.soak.transactions.committed - self.soak.transactions.unknown
        assert not strange, f'aborted and read: {sorted(strange)[:10]}'
        torn = [n for n in numbers if sum(self.found[n, i] for i in range(10)) != 10]
        assert not torn, f'torn: {torn[:10]}'
        self.consumer.close()


class Passing(Part):
    """Topics, groups and connections that come and go."""

    def __init__(self, soak):
        super().__init__(soak)
        self.number, self.asked_again = 0, 0

    def decided(self, call, done):
        """Has the controller or a coordinator decide. One that is lost meanwhile leaves it open whether it did
        (REQUEST_TIMED_OUT), and so does a broker that is killed before it answers: asked again, the answer may be `done`."""
        try:
            return call()
        except KafkaException as e:
            if e.args[0].code() not in (KafkaError.REQUEST_TIMED_OUT, KafkaError._TRANSPORT):
                raise
        self.asked_again += 1
        try:
            return call()
        except KafkaException as e:
            if e.args[0].code() != done:
                raise

    def turn(self):
        self.number += 1
        name = f'passing-{self.number}'
        admin = AdminClient({'bootstrap.servers': self.soak.bootstrap})
        self.decided(lambda: admin.create_topics([NewTopic(name, 6, 3)], operation_timeout=20)[name].result(60),
                     KafkaError.TOPIC_ALREADY_EXISTS)
        producer = Producer({'bootstrap.servers': self.soak.bootstrap, 'enable.idempotence': True})
        for i in range(60):
            producer.produce(name, b'passing', partition=i % 6)
        assert not producer.flush(60), f'{name}: not everything was acknowledged'
        consumer = Consumer({'bootstrap.servers': self.soak.bootstrap, 'group.id': name, 'auto.offset.reset': 'earliest'})
        consumer.subscribe([name])
        read, deadline = 0, time.monotonic() + 90
        while read < 60:
            read += sum(not m.error() for m in consumer.consume(60, 0.5))
            assert time.monotonic() < deadline, f'{name}: {read} of 60 read in 90 s'
        consumer.close()
        self.decided(lambda: admin.delete_consumer_groups([name])[name].result(60), KafkaError.GROUP_ID_NOT_FOUND)
        self.decided(lambda: admin.delete_topics([name])[name].result(60), KafkaError.UNKNOWN_TOPIC_OR_PART)
        self.soak.ended.wait(10)


class Soak:
    def __init__(self, given, home):
        self.given, self.ended = given, threading.Event()
        self.cluster = clusters.OttlaCluster(home)
        self.bootstrap = self.cluster.bootstrap
        admin = AdminClient({'bootstrap.servers': self.bootstrap})
        topics = [NewTopic('soak', PARTITIONS, 3, config=BOUNDED), *(NewTopic(f'transactions-{i}', 3, 3, config=BOUNDED) for i in range(2))]
        for made in admin.create_topics(topics).values():
            made.result(30)
        for topic in topics:
            self.cluster.wait_full_isr(topic.topic)
        seen = [0] * PARTITIONS
        self.writer, self.transactions = Writer(self, given.rate), Transactions(self)
        self.readers, self.committed = [Reader(self, seen) for _ in range(2)], Committed(self)
        self.passing = Passing(self)
        self.parts = [self.writer, self.transactions, *self.readers, self.committed, self.passing]
        self.kills, self.rows = 0, []

    def drain(self, step, done):
        deadline = time.monotonic() + 120
        while not done():
            step()
            if time.monotonic() > deadline:
                raise RuntimeError('what was acknowledged is not all read two minutes after the end')

    def kill(self):
        victims = self.cluster.nodes[1:]
        node = victims[self.kills % len(victims)]
        self.kills += 1
        self.cluster.kill(node)
        self.ended.wait(2)
        self.cluster.start(node)
        self.cluster.wait_ready()

    def reading(self):
        """Memory, open files and threads of the node that is never killed."""
        process = pathlib.Path(f'/proc/{self.cluster.pid(self.cluster.nodes[0])}')
        status = dict(line.split(':', 1) for line in (process / 'status').read_text().splitlines() if ':' in line)
        return {'rss': int(status['VmRSS'].split()[0]) / 1024, 'files': len(os.listdir(process / 'fd')), 'threads': int(status['Threads'])}

    def row(self, minute):
        delays, self.writer.delays = sorted(self.writer.delays), []
        row = {'minute': minute, 'kills': self.kills, 'acknowledged': sum(self.writer.acked),
               'read': sum(self.readers[0].seen), 'transactions': len(self.transactions.committed),
               'p50 ms': delays[len(delays) // 2] * 1000 if delays else -1, 'p99 ms': delays[len(delays) * 99 // 100] * 1000 if delays else -1,
               **self.reading()}
        if not self.rows:
            self.say(','.join(row))
        self.rows.append(row)
        self.say(','.join(f'{v:.1f}' if isinstance(v, float) else str(v) for v in row.values()))

    def say(self, line):
        print(line, flush=True)
        with open(self.given.out, 'a') as out:
            out.write(line + '\n')

    def run(self):
        for part in self.parts:
            part.start()
        begun = time.monotonic()
        for minute in range(1, self.given.minutes + 1):
            if self.ended.wait(max(0, begun + minute * self.given.kill_every - time.monotonic() - 10)):
                break
            # Ten seconds before the kill: a reading of nodes that have served for a while.
            self.row(minute)
            if self.ended.wait(max(0, begun + minute * self.given.kill_every - time.monotonic())):
                break
            self.kill()
        self.ended.set()
        for part in self.parts:
            part.join(400)
            if part.failed:
                raise part.failed
            if part.is_alive():
                raise RuntimeError(f'{type(part).__name__} does not end')

    def judge(self):
        quarter = max(1, len(self.rows) // 4)
        second, last = self.rows[quarter:2 * quarter] or self.rows, self.rows[-quarter:]
        grown = []
        for what, most in GROWTH.items():
            before, after = (statistics.median(row[what] for row in rows) for rows in (second, last))
            print(f'{what}: {before:.0f} in the second quarter, {after:.0f} in the last')
            if after > before + most:
                grown.append(what)
        print(f'{self.kills} kills, {sum(self.writer.acked)} records acknowledged and read in order, '
              f'{len(self.transactions.committed)} transactions read whole and once; {self.passing.number} topics and groups came and '
              f'went, {self.passing.asked_again} times the loss of a node left open whether')
        if grown:
            raise SystemExit(f'grown: {", ".join(grown)}')


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument('--minutes', type=int, default=120, help='how many turns of --kill-every')
    arguments.add_argument('--kill-every', type=float, default=60, metavar='SECONDS')
    arguments.add_argument('--rate', type=float, default=400, metavar='RECORDS/S')
    arguments.add_argument('--out', default='soak.csv')
    given = arguments.parse_args()
    home = pathlib.Path(tempfile.mkdtemp(prefix='ottla-soak-', dir=installs.CACHE))
    soak = Soak(given, home)
    try:
        soak.run()
        soak.judge()
    except BaseException:
        print(f'failed: the nodes\' logs are in {home}', file=sys.stderr)
        raise
    finally:
        soak.cluster.close()
    shutil.rmtree(home, ignore_errors=True)
    os._exit(0)


if __name__ == '__main__':
    main()
