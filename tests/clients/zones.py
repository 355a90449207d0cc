"""Reads that stay in their zone (KIP-392): consumers that tell their rack read from the replica there, as the nodes' own counters
of what they sent say, and read on when that node is killed. On a cluster of its own, whose nodes 1, 2, 3 are in the racks a, b, c.

KAFKA_CLASS_PATH is what Java's console consumer is run from.
"""
import os
import pathlib
import queue
import subprocess
import sys
import threading
import time
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / 'lib'))
import cluster as clusters  # noqa: E402
from checks import Suite, equal, eventually  # noqa: E402
from wire import unique  # noqa: E402

from confluent_kafka import Consumer, Producer, TopicPartition  # noqa: E402
from confluent_kafka.admin import AdminClient, NewTopic  # noqa: E402

suite = Suite('zones')
SELECTOR = 'replica.selector.class=org.apache.kafka.common.replica.RackAwareReplicaSelector'
cluster = clusters.OttlaCluster(overrides=[SELECTOR])
B = cluster.bootstrap
ADMIN = AdminClient({'bootstrap.servers': B})
NEAR = 2
COUNT = 500
VALUE = 'x' * 200


def topic():
    """One partition, led by node 1; its followers are nodes 2 and 3."""
    name = unique('zones')
    new = NewTopic(name, 1, replica_assignment=[[1, 2, 3]])
    ADMIN.create_topics([new])[name].result(30)
    cluster.wait_full_isr(name)
    equal(cluster.leader_of(name, 0), 1, 'who leads')
    return name


def write(name, start, count=COUNT):
    """Values that begin with a number each; a record a batch, so that a reader has many answers."""
    producer = Producer({'bootstrap.servers': B, 'acks': 'all', 'batch.num.messages': 1, 'linger.ms': 0})
    for number in range(start, start + count):
        producer.produce(name, f'{number} {VALUE}', partition=0)
    equal(producer.flush(60), 0, 'records left unsent')


def sent(name):
    """Bytes of a topic's records that each node that runs has sent to consumers."""
    def of(node):
        host, port = cluster.addresses[node]
        text = urllib.request.urlopen(f'http://{host}:{port + 3000}/metrics', timeout=5).read().decode()
        lines = [line for line in text.splitlines()
                 if line.startswith('kafka_server_brokertopicmetrics_bytesout_total{') and f'"{name}"' in line]
        return sum(float(line.rsplit(' ', 1)[1]) for line in lines)

    return {node: of(node) for node in cluster.nodes if cluster.pid(node)}


class LibrdkafkaReader:
    """librdkafka, by hand, with a rack."""

    def __init__(self, name, rack):
        self.consumer = Consumer({'bootstrap.servers': B, 'group.id': unique('g'), 'client.rack': rack,
                                  'enable.auto.commit': False, 'auto.offset.reset': 'error'})
        self.consumer.assign([TopicPartition(name, 0, 0)])

    def take(self, count, timeout=60):
        found, deadline = [], time.monotonic() + timeout
        while len(found) < count and time.monotonic() < deadline:
            found += [m.value().decode() for m in self.consumer.consume(count - len(found), 0.2) if not m.error()]
        return found

    def close(self):
        self.consumer.close()


class JavaReader:
    """Java's console consumer with a rack: a line a record."""

    def __init__(self, name, rack):
        command = ['java', '-Xmx256m', '-XX:+UseSerialGC', '-XX:TieredStopAtLevel=1', '-Dlog4j2.level=OFF', '-cp',
                   os.environ['KAFKA_CLASS_PATH'], 'org.apache.kafka.tools.consumer.ConsoleConsumer', '--bootstrap-server', B,
                   '--topic', name, '--partition', '0', '--offset', '0', '--command-property', f'client.rack={rack}',
                   '--command-property', 'auto.offset.reset=none']
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                                        stdin=subprocess.DEVNULL)
        self.lines = queue.Queue()
        threading.Thread(target=lambda: [self.lines.put(line.rstrip('\n')) for line in self.process.stdout], daemon=True).start()

    def take(self, count, timeout=60):
        found, deadline = [], time.monotonic() + timeout
        while len(found) < count and time.monotonic() < deadline:
            try:
                found.append(self.lines.get(timeout=0.2))
            except queue.Empty:
                pass
        return found

    def close(self):
        self.process.kill()
        self.process.wait()


def numbers(values):
    return [int(value.split(' ', 1)[0]) for value in values]


def stays_in_its_zone(reader_of):
    """Reads all, of which the leader and the node of another rack send nothing."""
    name = topic()
    write(name, 0)
    reader = reader_of(name, 'b')
    try:
        equal(numbers(reader.take(COUNT)), list(range(COUNT)), 'what was read')
        # What is written while it reads at the follower comes from there, too.
        write(name, COUNT)
        equal(numbers(reader.take(COUNT)), list(range(COUNT, 2 * COUNT)), 'what was read later')
    finally:
        reader.close()
    out = sent(name)
    assert out[NEAR] >= 2 * COUNT * len(VALUE), out
    equal([out[1], out[3]], [0, 0], 'bytes sent by the leader, and from rack c')


def survives_its_follower(reader_of):
    """Reads on from the leader when the node in its rack is killed, each record once and in order."""
    name = topic()
    write(name, 0)
    reader = reader_of(name, 'b')
    try:
        equal(numbers(reader.take(COUNT)), list(range(COUNT)), 'what was read')
        equal(sent(name)[1], 0, 'bytes sent by the leader before')
        cluster.kill(NEAR)
        write(name, COUNT)
        equal(numbers(reader.take(COUNT)), list(range(COUNT, 2 * COUNT)), 'what was read after the node was killed')
        out = sent(name)
        assert out[1] >= COUNT * len(VALUE) and out[3] == 0, out
    finally:
        reader.close()
        if not cluster.pid(NEAR):
            cluster.start(NEAR)
            cluster.wait_ready()
    # Once the node is back in sync, whoever comes is sent there again.
    cluster.wait_full_isr(name)
    eventually(lambda: cluster.leader_of(name, 0) == 1, 'node 1 to lead')
    before, again = sent(name), reader_of(name, 'b')
    try:
        equal(numbers(again.take(2 * COUNT)), list(range(2 * COUNT)), 'what was read again')
    finally:
        again.close()
    after = sent(name)
    equal(after[1] - before[1], 0, 'bytes sent by the leader again')
    assert after[NEAR] - before[NEAR] >= 2 * COUNT * len(VALUE), (before, after)


@suite.check
def librdkafka_stays():
    """librdkafka: a consumer with a rack reads from the follower there, and not from the leader"""
    stays_in_its_zone(LibrdkafkaReader)


@suite.check
def java_stays():
    """Java: a consumer with a rack reads from the follower there, and not from the leader"""
    stays_in_its_zone(JavaReader)


@suite.check
def librdkafka_survives():
    """librdkafka: a consumer whose follower is killed reads on from the leader, and the next one from the follower that is back"""
    survives_its_follower(LibrdkafkaReader)


@suite.check
def java_survives():
    """Java: a consumer whose follower is killed reads on from the leader, and the next one from the follower that is back"""
    survives_its_follower(JavaReader)


@suite.check
def no_rack():
    """A consumer without a rack, or of one that has no replica, reads from the leader"""
    name = topic()
    write(name, 0)
    for rack in ('', 'd'):
        reader = LibrdkafkaReader(name, rack)
        try:
            equal(numbers(reader.take(COUNT)), list(range(COUNT)), 'what was read')
        finally:
            reader.close()
    out = sent(name)
    assert out[1] >= 2 * COUNT * len(VALUE), out
    equal([out[2], out[3]], [0, 0], 'bytes sent by followers')


if __name__ == '__main__':
    suite.main(cluster.close)
