"""The load beside the faults: idempotent producers with acks=all, a consumer group that commits, and a watcher that fetches
what was committed. Everything is recorded into a `History`."""
import pathlib
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / 'lib'))
from checks import eventually  # noqa: E402
from history import FAILED, OK, UNKNOWN, Commit, Committed, History, Poll, Produce, read_replica  # noqa: E402
from wire import unique  # noqa: E402

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition  # noqa: E402
from confluent_kafka.admin import AdminClient, NewTopic  # noqa: E402

# A client that looks again soon, so that what is measured is the cluster's fail-over and not the client's back-off.
IMPATIENT = {'retry.backoff.ms': 20, 'retry.backoff.max.ms': 200, 'reconnect.backoff.ms': 20, 'reconnect.backoff.max.ms': 200,
             'topic.metadata.refresh.fast.interval.ms': 50, 'socket.timeout.ms': 10_000}
# What librdkafka tells of broken connections while it goes on by itself.
CONNECTION_NEWS = (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._RESOLVE, KafkaError._TIMED_OUT)


class Workload:
    """Runs from `with` to its end; `finish` stops the producers, reads everything back and returns the history."""

    def __init__(self, cluster, partitions=3, producers=3, rate=200, message_timeout=120):
        self.cluster, self.partitions = cluster, partitions
        self.producers, self.rate, self.message_timeout = producers, rate, message_timeout
        self.topic, self.group = unique('faults'), unique('faults-group')
        self.history, self.lock = History(), threading.Lock()
        self.client_errors = []
        self.sending, self.consuming = threading.Event(), threading.Event()
        self.acked = [0] * partitions
        self.positions = {}
        self.threads = []

    def note(self, text):
        self.history.events.append((time.monotonic(), text))

    def __enter__(self):
        admin = AdminClient({'bootstrap.servers': self.cluster.bootstrap})
        new = NewTopic(self.topic, self.partitions, 3, config={'min.insync.replicas': '2'})
        admin.create_topics([new])[self.topic].result(30)
        self.cluster.wait_full_isr(self.topic)
        self.send_threads = [self.spawn(self.produce, f'p{i}') for i in range(self.producers)]
        self.read_threads = [self.spawn(self.consume, f'c{i}') for i in range(2)] + [self.spawn(self.watch_commits)]
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

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def told(self, who):
        """A client's error callback: what is more than a broken connection counts as an error at the client."""
        def callback(error):
            if error.code() not in CONNECTION_NEWS:
                self.client_errors.append(f'{who}: {error}')
        return callback

    def progress(self, n=50, timeout=90):
        """Waits until every partition has acknowledged n more records."""
        goal = [a + n for a in self.acked]
        eventually(lambda: all(a >= g for a, g in zip(self.acked, goal)), f'{n} more acknowledged records in every partition', timeout)

    def tried_enough(self):
        """Whether so much was done that a history without an anomaly says something."""
        return sum(self.acked) >= 500 and sum(c.status == OK for c in list(self.history.commits)) >= 3 and len(self.history.committed) >= 3

    # Threads

    def produce(self, name):
        producer = Producer({'bootstrap.servers': self.cluster.bootstrap, 'acks': 'all', 'enable.idempotence': True, 'linger.ms': 2,
                             'message.timeout.ms': self.message_timeout * 1000, 'error_cb': self.told(name), **IMPATIENT})
        sent = [0] * self.partitions

        def delivered(op):
            def callback(error, message):
                op.complete = time.monotonic()
                if error:
                    op.error = str(error)
                else:
                    # No offset: a retry that the broker answered as a duplicate.
                    op.status, op.offset = OK, -1 if message.offset() is None else message.offset()
                    with self.lock:
                        self.acked[op.partition] += 1
            return callback

        due = time.monotonic()
        while not self.sending.is_set():
            part = sum(sent) % self.partitions
            op = Produce(name, part, sent[part], f'{name}-{part}-{sent[part]}', time.monotonic())
            try:
                producer.produce(self.topic, op.value, partition=part, on_delivery=delivered(op))
            except BufferError as e:
                op.status, op.error, op.complete = FAILED, str(e), time.monotonic()
            sent[part] += 1
            self.history.produces.append(op)
            due = max(due + 1 / self.rate, time.monotonic() - 0.1)
            while True:
                producer.poll(max(0.0, min(due - time.monotonic(), 0.1)))
                if time.monotonic() >= due or self.sending.is_set():
                    break
        if producer.flush(self.message_timeout + 10):
            raise RuntimeError('records without an outcome after their timeout')

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

        consumer = Consumer({'bootstrap.servers': self.cluster.bootstrap, 'group.id': self.group, 'auto.offset.reset': 'earliest',
                             'enable.auto.commit': False, 'session.timeout.ms': 10_000, 'heartbeat.interval.ms': 1000,
                             'error_cb': self.told(name), **IMPATIENT})
        consumer.subscribe([self.topic], on_assign=assigned, on_revoke=revoked, on_lost=revoked)
        next_commit = time.monotonic() + 0.5
        try:
            while not self.consuming.is_set():
                m = consumer.poll(0.1)
                if m is not None and m.error():
                    self.client_errors.append(f'{name}: {m.error()}')
                elif m is not None:
                    self.history.polls.append(Poll(name, sessions[m.partition()], m.partition(), m.offset(), m.value().decode(), time.monotonic()))
                    position[m.partition()] = m.offset() + 1
                    self.positions[m.partition()] = m.offset() + 1
                if time.monotonic() >= next_commit:
                    next_commit = time.monotonic() + 0.5
                    open_positions = {p: o for p, o in position.items() if committed.get(p) != o}
                    if self.commit(consumer, open_positions):
                        committed.update(open_positions)
        finally:
            consumer.close()

    def commit(self, consumer, position):
        """Commits and records it; whether it is known to have succeeded."""
        if not position:
            return True
        invoke, status, error = time.monotonic(), OK, ''
        try:
            for part in consumer.commit(offsets=[TopicPartition(self.topic, p, o) for p, o in position.items()], asynchronous=False):
                if part.error:
                    status, error = UNKNOWN, str(part.error)
        except KafkaException as e:
            status, error = UNKNOWN, str(e)
        for p, o in position.items():
            self.history.commits.append(Commit(p, o, invoke, time.monotonic(), status, error))
        return status == OK

    def watch_commits(self):
        consumer = Consumer({'bootstrap.servers': self.cluster.bootstrap, 'group.id': self.group, 'error_cb': self.told('watcher'), **IMPATIENT})
        parts = [TopicPartition(self.topic, p) for p in range(self.partitions)]
        try:
            while not self.consuming.wait(0.3):
                invoke = time.monotonic()
                try:
                    for p in consumer.committed(parts, timeout=10):
                        if not p.error:
                            self.history.committed.append(Committed(p.partition, max(-1, p.offset), invoke, time.monotonic()))
                except KafkaException as e:
                    self.note(f'fetching commits: {e}')
        finally:
            consumer.close()

    # The end

    def finish(self):
        eventually(self.tried_enough, 'records and commits enough to judge', 60)
        self.note('finish')
        self.sending.set()
        self.join(self.send_threads, self.message_timeout + 30)
        self.cluster.wait_full_isr(self.topic)
        self.read_back()
        eventually(lambda: all(self.positions.get(p, 0) == end for p, end in self.history.high_watermark.items()),
                   'the group to read to the end', 60)
        eventually(lambda: {c.partition: c.offset for c in list(self.history.committed)} == self.history.high_watermark,
                   'the group to commit to the end', 60)
        self.consuming.set()
        self.join(self.read_threads, 60)
        for part in range(self.partitions):
            self.history.replicas[part] = {
                node: read_replica(self.cluster.partition_directory(node, self.topic, part)) for node in self.cluster.nodes}
        return self.history

    def join(self, threads, timeout):
        deadline = time.monotonic() + timeout
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                raise TimeoutError(f'a client thread does not end within {timeout} s')

    def read_back(self):
        """The whole log by a reader of its own, up to the high watermark that it is told first."""
        consumer = Consumer({'bootstrap.servers': self.cluster.bootstrap, 'group.id': unique('reader'), 'enable.auto.commit': False,
                             'auto.offset.reset': 'error', 'check.crcs': True, 'enable.partition.eof': False})
        try:
            for part in range(self.partitions):
                where = TopicPartition(self.topic, part, 0)
                self.history.high_watermark[part] = end = consumer.get_watermark_offsets(where, timeout=30)[1]
                records, deadline = [], time.monotonic() + 60
                consumer.assign([where])
                while len(records) < end:
                    m = consumer.poll(1)
                    if m is not None and m.error():
                        raise KafkaException(m.error())
                    if m is not None:
                        records.append((m.offset(), m.value().decode()))
                        if m.offset() >= end - 1:
                            break
                    elif time.monotonic() > deadline:
                        break
                self.history.log[part] = records
        finally:
            consumer.close()

    def longest_gap(self):
        """The longest time without an acknowledgement, in ms."""
        times = sorted(op.complete for op in self.history.produces if op.status == OK)
        return round(1000 * max((b - a for a, b in zip(times, times[1:])), default=0))
