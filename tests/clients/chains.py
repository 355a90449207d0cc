"""Chains: applications that read a topic and write another in transactions, with their offsets, while they and the brokers
they need are killed with kill -9. On a cluster of its own.

`chains.py worker BOOTSTRAP SOURCE TARGET GROUP ID` is such an application.
"""
import pathlib
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / 'lib'))
from checks import Suite, equal, eventually  # noqa: E402
from wire import unique  # noqa: E402

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition  # noqa: E402
from confluent_kafka.admin import AdminClient, NewTopic  # noqa: E402

PARTITIONS = 3


class AgainFromTheStart(Exception):
    """The transaction is to be aborted, and the consumer begins where the group is."""


def worker(bootstrap, source, target, group, id):
    """Moves records until it is killed. An error that an application is meant to survive is survived; any other ends it."""
    producer = Producer({'bootstrap.servers': bootstrap, 'transactional.id': id, 'transaction.timeout.ms': 10_000})
    persist(lambda: producer.init_transactions(10))
    c = Consumer({'bootstrap.servers': bootstrap, 'group.id': group, 'enable.auto.commit': False,
                  'auto.offset.reset': 'earliest', 'session.timeout.ms': 6000, 'heartbeat.interval.ms': 500})
    c.subscribe([source])
    while True:
        messages = [m for m in c.consume(20, 0.2) if not m.error()]
        if messages:
            try:
                transaction(producer, c, target, messages)
                print('moved', len(messages), flush=True)
            except AgainFromTheStart:
                persist(lambda: producer.abort_transaction(10))
                for committed in persist(lambda: c.committed(c.assignment(), timeout=10)):
                    c.seek(TopicPartition(source, committed.partition, max(committed.offset, 0)))


def transaction(producer, c, target, messages):
    producer.begin_transaction()
    for message in messages:
        producer.produce(target, message.value(), partition=message.partition())
    persist(lambda: producer.send_offsets_to_transaction(c.position(c.assignment()), c.consumer_group_metadata(), 10))
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
            time.sleep(0.1)


class Worker:
    """A worker that is started again as often as it ends."""

    def __init__(self, *arguments):
        self.arguments, self.process = arguments, None
        self.start()

    def start(self):
        self.process = subprocess.Popen([sys.executable, __file__, 'worker', *self.arguments],
                                        stdout=subprocess.PIPE, text=True)

    def wait_move(self):
        """Returns when it has committed another transaction."""
        deadline = time.monotonic() + 60
        while not self.process.stdout.readline():
            assert time.monotonic() < deadline, 'the worker ends again and again'
            self.process.wait()
            self.keep_alive()

    def keep_alive(self):
        """One that ended by itself is started again, as a supervisor does."""
        if self.process.poll() is not None:
            self.start()

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()


def group_partition(group):
    code = 0
    for char in group:
        code = (code * 31 + ord(char)) & 0xFFFFFFFF
    return abs(code - (1 << 32) if code >= 1 << 31 else code) % 50


def everything(bootstrap, name):
    """[values by partition] that are committed, up to the ends of the partitions."""
    c = Consumer({'bootstrap.servers': bootstrap, 'group.id': unique('g'), 'isolation.level': 'read_committed',
                  'enable.partition.eof': True, 'auto.offset.reset': 'earliest'})
    c.assign([TopicPartition(name, p, 0) for p in range(PARTITIONS)])
    values, ended = [[] for _ in range(PARTITIONS)], set()
    while len(ended) < PARTITIONS:
        message = c.poll(30)
        assert message is not None, 'the end of a partition does not come'
        if message.error():
            ended.add(message.partition())
        else:
            values[message.partition()].append(int(message.value()))
    c.close()
    return values


def run():
    import cluster
    suite = Suite('chains')
    own = cluster.OttlaCluster(overrides=['group.initial.rebalance.delay.ms=0'])

    def topics(*names):
        # It must live until the answer is there.
        admin = AdminClient({'bootstrap.servers': own.bootstrap})
        made = admin.create_topics([NewTopic(name, PARTITIONS, 3) for name in names], operation_timeout=30)
        for future in made.values():
            future.result(30)

    def kill(topic, partition):
        node = own.leader_of(topic, partition)
        own.kill(node)
        return node

    @suite.check
    def chain():
        """a chain whose worker and whose coordinators are killed moves each record once, in order, and its offsets with it"""
        source, target, group, id, count = unique('in'), unique('out'), unique('g'), unique('tx'), 1000
        topics(source, target)
        producer = Producer({'bootstrap.servers': own.bootstrap, 'enable.idempotence': True})
        for i in range(count * PARTITIONS):
            producer.produce(source, b'%d' % (i // PARTITIONS), partition=i % PARTITIONS)
        equal(producer.flush(60), 0, 'records left')
        w = Worker(own.bootstrap, source, target, group, id)
        try:
            for step in range(6):
                for _ in range(3):
                    w.wait_move()
                dead = None
                if step % 3 == 1:
                    dead = kill('__consumer_offsets', group_partition(group))
                elif step % 3 == 2:
                    dead = kill('__transaction_state', group_partition(id))
                if step % 3 != 1:
                    w.kill()
                    w.start()
                w.wait_move()
                if dead:
                    own.start(dead)
                    own.wait_ready()
            done = [list(range(count))] * PARTITIONS

            def all_moved():
                w.keep_alive()
                return sum(map(len, everything(own.bootstrap, target))) >= count * PARTITIONS

            eventually(all_moved, 'all records to be moved', 60, pause=0.5)
            equal(everything(own.bootstrap, target), done, 'records, each once and in order')
            c = Consumer({'bootstrap.servers': own.bootstrap, 'group.id': group})
            found = c.committed([TopicPartition(source, p) for p in range(PARTITIONS)], timeout=30)
            c.close()
            equal([each.offset for each in found], [count] * PARTITIONS, 'the offsets of the group')
        finally:
            w.kill()

    suite.main(close=own.close)


if __name__ == '__main__':
    if sys.argv[1:2] == ['worker']:
        worker(*sys.argv[2:])
    else:
        run()
