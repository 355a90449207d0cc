"""The load beside faults: idempotent producers with acks=all, a consumer group that commits, a transactional producer with a
read_committed reader, and a watcher that fetches what was committed. All of it becomes a history."""
import faulthandler
import os
import threading
import time

import history as histories
from checks import eventually
from wire import unique

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

# A client that looks again soon, so that what is measured is the cluster's fail-over and not the client's back-off.
IMPATIENT = {'retry.backoff.ms': 20, 'retry.backoff.max.ms': 200, 'reconnect.backoff.ms': 20, 'reconnect.backoff.max.ms': 200,
             'topic.metadata.refresh.fast.interval.ms': 50, 'socket.timeout.ms': 10_000, 'log_level': 0}
# What librdkafka tells of broken connections while it goes on by itself.
CONNECTION_NEWS = (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._RESOLVE, KafkaError._TIMED_OUT)
# Partitions of the topic of transactions, and records of each.
WIDTH, RECORDS = 2, 4


class Workload:
    """Runs from `with` to its end; `finish` stops the producers and reads everything back into the history."""

    def __init__(self, cluster, history, partitions=3, producers=3, rate=200, message_timeout=120, transactions=False, config=None):
        self.cluster, self.history, self.partitions = cluster, history, partitions
        self.producers, self.rate, self.message_timeout = producers, rate, message_timeout
        self.config = {'min.insync.replicas': '2', **(config or {})}
        self.topic, self.group = unique('faults'), unique('faults-group')
        self.transactional = f'{self.topic}-transactions' if transactions else None
        self.lock = threading.Lock()
        self.client_errors = []
        self.sending, self.consuming = threading.Event(), threading.Event()
        self.acked, self.unsure, self.last_error = [0] * partitions, 0, ''
        self.acked_at = [time.monotonic()]
        self.longest, self.commits, self.fetched, self.decided = 0.0, 0, {}, 0
        self.high_watermark, self.positions = {}, {}

    def note(self, text):
        self.history.note(text)

    def topics(self):
        """{topic: partitions}"""
        both = {self.topic: self.partitions}
        return {**both, self.transactional: WIDTH} if self.transactional else both

    def __enter__(self):
        admin = AdminClient({'bootstrap.servers': self.cluster.bootstrap, 'log_level': 0})
        for made in admin.create_topics([NewTopic(t, n, 3, config=self.config) for t, n in self.topics().items()]).values():
            made.result(30)
        for topic in self.topics():
            self.cluster.wait_full_isr(topic)
        self.send_threads = [self.spawn(self.produce, f'p{i}') for i in range(self.producers)]
        self.read_threads = [self.spawn(self.consume, f'c{i}') for i in range(2)] + [self.spawn(self.watch_commits)]
        if self.transactional:
            self.send_threads.append(self.spawn(self.transact, 't0'))
            self.read_threads.append(self.spawn(self.read_committed, 'r0'))
        self.progress(20)
        return self

    def __exit__(self, *_):
        self.sending.set()
        self.consuming.set()

    def spawn(self, target, *arguments):
        def run():
            try:
                target(*arguments)
            except Exception as e:
                self.client_errors.append(f'{target.__name__} {arguments}: {e!r}')

        thread = threading.Thread(target=run, daemon=True, name=' '.join([target.__name__, *arguments]))
        thread.start()
        return thread

    def client(self, who, **settings):
        """The settings of a client whose errors are told: what is more than a broken connection counts as one at the client."""
        def callback(error):
            if error.code() not in CONNECTION_NEWS:
                self.client_errors.append(f'{who}: {error}')
        return {'bootstrap.servers': self.cluster.bootstrap, 'error_cb': callback, **IMPATIENT, **settings}

    def progress(self, n=50, timeout=90):
        """Waits until every partition has acknowledged n more records."""
        goal = [a + n for a in self.acked]
        eventually(lambda: all(a >= g for a, g in zip(self.acked, goal)), f'{n} more acknowledged records in every partition', timeout)

    def settle(self):
        """Waits until all replicas are in sync and everything goes on: the faults so far are over."""
        self.history.heal()
        for topic in self.topics():
            self.cluster.wait_full_isr(topic)
        self.progress()
        self.history.settle()

    def tried_enough(self):
        """Whether so much was done that a history without an anomaly says something."""
        return sum(self.acked) >= 500 and self.commits >= 3 and bool(self.fetched) and (not self.transactional or self.decided >= 10)

    # Producers

    def sent(self, process, topic, partition, seq, value, **more):
        return {'process': process, 'topic': topic, 'partition': partition, 'seq': seq, 'value': value, 'invoke': self.history.now(), **more}

    def outcome(self, op, outcome, error='', offset=None):
        told = {**({'offset': offset} if offset is not None and offset >= 0 else {}), **({'error': error} if error else {})}
        self.history.write('produce', **op, complete=self.history.now(), outcome=outcome, **told)

    def delivered(self, op, count=True, pending=None):
        def callback(error, message):
            if pending is not None and pending.pop(op['value'], None) is None:
                # It was given up already.
                return
            if error:
                self.outcome(op, 'unknown', str(error))
            else:
                # No offset: a retry that the broker answered as a duplicate.
                self.outcome(op, 'ok', offset=message.offset())
            if count:
                self.count(op['partition'], error)
        return callback

    def count(self, partition, error):
        with self.lock:
            if error:
                self.unsure, self.last_error = self.unsure + 1, str(error)
                return
            self.acked[partition] += 1
            now = time.monotonic()
            self.longest, self.acked_at[0] = max(self.longest, now - self.acked_at[0]), now

    def produce(self, name):
        producer = Producer(self.client(name, **{'acks': 'all', 'enable.idempotence': True, 'linger.ms': 2,
                                                 'message.timeout.ms': self.message_timeout * 1000}))
        sent = [0] * self.partitions
        due = time.monotonic()
        while not self.sending.is_set():
            part = sum(sent) % self.partitions
            op = self.sent(name, self.topic, part, sent[part], f'{name}-{part}-{sent[part]}')
            try:
                producer.produce(self.topic, op['value'], partition=part, on_delivery=self.delivered(op))
            except BufferError as e:
                self.outcome(op, 'failed', str(e))
            sent[part] += 1
            due = max(due + 1 / self.rate, time.monotonic() - 0.1)
            while True:
                producer.poll(max(0.0, min(due - time.monotonic(), 0.1)))
                if time.monotonic() >= due or self.sending.is_set():
                    break
        if producer.flush(self.message_timeout + 10):
            raise RuntimeError('records without an outcome after their timeout')

    # Transactions

    def transact(self, name):
        """Transactions of some records and one offset of a group, one in five aborted on purpose."""
        member = Consumer({'bootstrap.servers': self.cluster.bootstrap, 'group.id': self.group + '-transactions', 'log_level': 0})
        producer, number, seq, pending = None, 0, [0] * WIDTH, {}
        try:
            while not self.sending.is_set():
                if producer is None:
                    self.give_up(pending)
                    producer = self.transactional_producer(name)
                    continue
                number += 1
                transaction = f'{name}:{number}'
                try:
                    self.fill(producer, name, transaction, number, seq, member, pending)
                except (KafkaException, BufferError) as e:
                    self.note(f'{transaction}: {e}')
                    producer = producer if self.end(producer, transaction, commit=False) else None
                    continue
                except TimeoutError as e:
                    # Its commit was never asked for and cannot be any more: the next producer of the name ends it.
                    self.note(f'{transaction}: {e}')
                    self.history.write('transaction', name=transaction, invoke=self.history.now(), complete=self.history.now(), end='aborted')
                    producer = None
                    continue
                producer = producer if self.end(producer, transaction, commit=number % 5 != 0) else None
            if producer is not None:
                producer.poll(0)
            self.give_up(pending)
            # The coordinator lets the next producer of the name begin when all markers of the last transaction are written.
            eventually(lambda: self.transactional_producer(name), f'{name} to end its last transaction', 60)
        finally:
            member.close()

    def give_up(self, pending):
        """Whatever the client has not told by now it will not tell."""
        for value in list(pending):
            op = pending.pop(value, None)
            if op is not None:
                self.outcome(op, 'unknown', 'its producer was given up')

    def transactional_producer(self, name):
        producer = Producer(self.client(name, **{'transactional.id': self.topic, 'transaction.timeout.ms': 60_000, 'linger.ms': 1}))
        try:
            producer.init_transactions(20)
            return producer
        except KafkaException as e:
            self.note(f'{name} is not initialised: {e}')
            return None

    def fill(self, producer, name, transaction, number, seq, member, pending):
        producer.begin_transaction()
        for i in range(RECORDS):
            part = i % WIDTH
            op = self.sent(name, self.transactional, part, seq[part], f'{transaction}-{i}', transaction=transaction)
            seq[part] += 1
            pending[op['value']] = op
            producer.produce(self.transactional, op['value'], partition=part, on_delivery=self.delivered(op, False, pending))
        offset = {'group': self.group + '-transactions', 'topic': self.transactional, 'partition': 0, 'offset': number,
                  'transaction': transaction, 'invoke': self.history.now()}
        outcome = 'unknown'
        try:
            where = [TopicPartition(self.transactional, 0, number)]
            within(40, lambda: producer.send_offsets_to_transaction(where, member.consumer_group_metadata(), 20), 'send_offsets_to_transaction')
            outcome = 'ok'
        finally:
            self.history.write('commit', **offset, complete=self.history.now(), outcome=outcome)

    def end(self, producer, transaction, commit):
        """Ends a transaction, and says whether its producer may go on. What a commit that failed came to nobody knows."""
        invoke, end, error, usable = self.history.now(), 'unknown', '', False
        deadline = time.monotonic() + 60
        while True:
            try:
                (producer.commit_transaction if commit else producer.abort_transaction)(20)
                end, usable = ('committed' if commit else 'aborted'), True
                self.decided += 1
            except KafkaException as e:
                error = str(e)
                if e.args[0].retriable() and time.monotonic() < deadline:
                    continue
                if commit and e.args[0].txn_requires_abort():
                    # It was refused, and is not committed any more.
                    return self.end(producer, transaction, commit=False)
                # A transaction that was never to be committed ends as nothing else.
                end = end if commit else 'aborted'
            break
        self.history.write('transaction', name=transaction, invoke=invoke, complete=self.history.now(), end=end, error=error)
        return usable

    def read_committed(self, name):
        """One reader over all: one assignment from the first record to the last. With READER_DEBUG in the environment (say
        cgrp,topic,fetch,broker) librdkafka tells what it does on the standard error."""
        debug = {'debug': os.environ['READER_DEBUG'], 'log_level': 7} if 'READER_DEBUG' in os.environ else {}
        consumer = Consumer(self.client(name, **{'group.id': unique('reader'), 'enable.auto.commit': False, 'auto.offset.reset': 'error',
                                                 'isolation.level': 'read_committed', **debug}))
        consumer.assign([TopicPartition(self.transactional, p, 0) for p in range(WIDTH)])
        try:
            while not self.consuming.is_set():
                self.take(consumer.poll(0.1), name, 'alone', 1, 'read_committed')
        finally:
            consumer.close()

    # Consumers

    def take(self, m, name, group, session, isolation='read_uncommitted'):
        if m is None:
            return
        if m.error():
            self.client_errors.append(f'{name}: {m.error()}')
            return
        self.history.write('poll', process=name, group=group, session=session, topic=m.topic(), partition=m.partition(),
                           complete=self.history.now(), isolation=isolation, records=[[m.offset(), m.value().decode()]])

    def consume(self, name):
        # What it owns, where it stands in that, and what of it is known to be committed.
        sessions, owned, position, committed = {}, set(), {}, {}

        def assigned(_consumer, parts):
            for p in parts:
                sessions[p.partition] = sessions.get(p.partition, 0) + 1
                owned.add(p.partition)

        def revoked(_consumer, parts):
            for p in parts:
                owned.discard(p.partition)
                position.pop(p.partition, None)

        consumer = Consumer(self.client(name, **{'group.id': self.group, 'auto.offset.reset': 'earliest', 'enable.auto.commit': False,
                                                 'session.timeout.ms': 10_000, 'heartbeat.interval.ms': 1000}))
        consumer.subscribe([self.topic], on_assign=assigned, on_revoke=revoked, on_lost=revoked)
        next_commit = time.monotonic() + 0.5
        try:
            while not self.consuming.is_set():
                m = consumer.poll(0.1)
                self.take(m, name, self.group, sessions.get(m.partition(), 0) if m is not None and not m.error() else 0)
                if m is not None and not m.error():
                    position[m.partition()] = m.offset() + 1
                    self.positions[m.partition()] = m.offset() + 1
                if time.monotonic() >= next_commit:
                    next_commit = time.monotonic() + 0.5
                    open_positions = {p: o for p, o in position.items() if committed.get(p) != o}
                    if self.commit(consumer, name, open_positions):
                        committed.update(open_positions)
        finally:
            consumer.close()

    def commit(self, consumer, name, position):
        """Commits and records it; whether it is known to have succeeded."""
        if not position:
            return True
        invoke, outcome, error = self.history.now(), 'ok', ''
        try:
            for part in consumer.commit(offsets=[TopicPartition(self.topic, p, o) for p, o in position.items()], asynchronous=False):
                if part.error:
                    outcome, error = 'unknown', str(part.error)
        except KafkaException as e:
            outcome, error = 'unknown', str(e)
        for p, o in position.items():
            self.history.write('commit', process=name, group=self.group, topic=self.topic, partition=p, offset=o, invoke=invoke,
                               complete=self.history.now(), outcome=outcome, error=error)
        self.commits += outcome == 'ok'
        return outcome == 'ok'

    def watch_commits(self):
        watched = [(self.group, [TopicPartition(self.topic, p) for p in range(self.partitions)])]
        if self.transactional:
            watched.append((self.group + '-transactions', [TopicPartition(self.transactional, 0)]))
        consumers = [(group, parts, Consumer(self.client('watcher', **{'group.id': group}))) for group, parts in watched]
        try:
            while not self.consuming.wait(0.3):
                for group, parts, consumer in consumers:
                    self.fetch_commits(group, parts, consumer)
        finally:
            for _, _, consumer in consumers:
                consumer.close()

    def fetch_commits(self, group, parts, consumer):
        invoke = self.history.now()
        try:
            for p in consumer.committed(parts, timeout=10):
                if not p.error:
                    offset = max(-1, p.offset)
                    self.history.write('committed', group=group, topic=p.topic, partition=p.partition, offset=offset, invoke=invoke,
                                       complete=self.history.now())
                    if group == self.group:
                        self.fetched[p.partition] = offset
        except KafkaException as e:
            self.note(f'fetching commits: {e}')

    # The end

    def finish(self):
        eventually(self.tried_enough, 'records and commits enough to judge', 60)
        self.note('finish')
        self.sending.set()
        self.join(self.send_threads, self.message_timeout + 30)
        for topic in self.topics():
            self.cluster.wait_full_isr(topic)
        self.read_back(self.topic, self.partitions, 'read_uncommitted')
        if self.transactional:
            self.read_back(self.transactional, WIDTH, 'read_uncommitted')
            self.read_back(self.transactional, WIDTH, 'read_committed')
        ends = {p: self.high_watermark[self.topic, p] for p in range(self.partitions)}
        eventually(lambda: {p: self.positions.get(p, 0) for p in ends} == ends, 'the group to read to the end', 60)
        eventually(lambda: self.fetched == ends, 'the group to commit to the end', 60)
        self.consuming.set()
        self.join(self.read_threads, 60)
        for topic, count in self.topics().items():
            in_sync = {part: isr for part, (_, _, isr) in self.cluster.partitions(topic).items()}
            for part in range(count):
                for node in self.cluster.nodes:
                    histories.add_replica(self.history, self.cluster, node, topic, part, node in in_sync[part])
        self.history.close()

    def join(self, threads, timeout):
        deadline = time.monotonic() + timeout
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                # Where each stands: in a call of the client that does not return, or in our own code.
                faulthandler.dump_traceback()
                raise TimeoutError(f'{thread.name} does not end within {timeout} s')

    def read_back(self, topic, partitions, isolation):
        """The whole topic by a reader of its own, up to the high watermark that it is told first."""
        consumer = Consumer({'bootstrap.servers': self.cluster.bootstrap, 'group.id': unique('reader'), 'enable.auto.commit': False,
                             'auto.offset.reset': 'error', 'check.crcs': True, 'enable.partition.eof': True,
                             'isolation.level': isolation, 'log_level': 0})
        try:
            for part in range(partitions):
                where = TopicPartition(topic, part, 0)
                if (topic, part) not in self.high_watermark:
                    end = eventually(lambda: watermarks(consumer, where), f'the high watermark of {topic}-{part}', 30)[1]
                    self.high_watermark[topic, part] = end
                    self.history.write('end', topic=topic, partition=part, high_watermark=end)
                records = read_to_end(consumer, where)
                self.history.write('log', topic=topic, partition=part, isolation=isolation, records=records)
        finally:
            consumer.close()

    def longest_gap(self):
        """The longest time without an acknowledgement, in ms."""
        return round(1000 * self.longest)


def within(seconds, call, what):
    """A call that may hang whatever timeout it is given: librdkafka waits for ever for the offsets of a transaction once it has asked
    three times in vain for the group's coordinator. Whoever called it may not use its producer any more."""
    done = []

    def run():
        try:
            call()
            done.append(None)
        except Exception as e:
            done.append(e)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not done:
        raise TimeoutError(f'{what} hangs')
    if done[0]:
        raise done[0]


def read_to_end(consumer, where):
    """[(offset, value)] until the consumer says that there is no more; without the end of a partition, what came in a minute."""
    records, deadline = [], time.monotonic() + 60
    consumer.assign([where])
    while time.monotonic() < deadline:
        m = consumer.poll(1)
        if m is not None and m.error():
            if m.error().code() == KafkaError._PARTITION_EOF:
                return records
            raise KafkaException(m.error())
        if m is not None:
            records.append((m.offset(), m.value().decode()))
    return records


def watermarks(consumer, where):
    try:
        return consumer.get_watermark_offsets(where, timeout=10)
    except KafkaException as error:
        # A leader that was just elected does not know yet what is committed (R19).
        if error.args[0].retriable():
            return None
        raise
