"""librdkafka, through PyPI confluent-kafka: produce, consume, groups, admin, and the errors an application meets."""
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / 'lib'))
from checks import Suite, addresses, bootstrap, equal, eventually, raises, wait_topic  # noqa: E402
from wire import unique  # noqa: E402

from confluent_kafka import (Consumer, ConsumerGroupTopicPartitions, KafkaError, KafkaException, Producer,  # noqa: E402
                             TIMESTAMP_CREATE_TIME, TopicCollection, TopicPartition)
from confluent_kafka.admin import (AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewPartitions,  # noqa: E402
                                   NewTopic, OffsetSpec, ResourceType)

suite = Suite('librdkafka')
B = bootstrap()
# The time of the first record where a check sets times: recent, or retention would take the records away.
T0 = int(time.time() * 1000) - 600_000
TEN_MB = 10 * 1024 * 1024


ADMIN = AdminClient({'bootstrap.servers': B})


def admin():
    return ADMIN


def only(futures):
    return next(iter(futures.values())).result(30)


def topic(partitions=1, replicas=3, **config):
    name = unique('rdk')
    only(admin().create_topics([NewTopic(name, partitions, replicas, config=config)], operation_timeout=30))
    wait_topic(name, partitions)
    return name


def describe(name):
    return admin().list_topics(name, timeout=10).topics[name]


def send(name, values, partition=0, config=None, **fields):
    """Produces the values to one partition and returns the delivery reports in order; raises the first error."""
    producer = Producer({'bootstrap.servers': B, 'linger.ms': 5, **(config or {})})
    reports, errors = [], []

    def delivered(error, message):
        (errors if error else reports).append(error or message)

    for value in values:
        producer.produce(name, value, partition=partition, on_delivery=delivered, **fields)
    left = producer.flush(60)
    if errors:
        raise KafkaException(errors[0])
    equal(left, 0, 'records left unsent')
    return reports


def consumer(group=None, **config):
    return Consumer({'bootstrap.servers': B, 'group.id': group or unique('g'), 'enable.auto.commit': False,
                     'auto.offset.reset': 'earliest', 'session.timeout.ms': 6000, 'heartbeat.interval.ms': 500,
                     **{k.replace('_', '.'): v for k, v in config.items()}})


def take(c, n, timeout=30):
    """The next n records; fails on an error and when they do not come."""
    out, deadline = [], time.monotonic() + timeout
    while len(out) < n:
        m = c.poll(0.2)
        if m is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f'{len(out)} of {n} records within {timeout} s')
            continue
        if m.error():
            raise KafkaException(m.error())
        out.append(m)
    return out


def read(name, n, partition=0, offset=0, **config):
    c = consumer(**config)
    try:
        c.assign([TopicPartition(name, partition, offset)])
        return take(c, n)
    finally:
        c.close()


def refused(code):
    return raises(KafkaException, lambda e: e.args[0].code() == code, f'error {code}')


# Produce and consume

@suite.check
def round_trip():
    """records come back in order at the offsets that were acknowledged"""
    name = topic()
    reports = send(name, [b'v%d' % i for i in range(1000)])
    equal([r.offset() for r in reports], list(range(1000)), 'acknowledged offsets')
    equal([(m.offset(), m.value()) for m in read(name, 1000)], [(i, b'v%d' % i) for i in range(1000)], 'records')


@suite.check
def compressions():
    """all five compressions are stored and read back, mixed in one partition"""
    name, want = topic(), []
    for codec in ('none', 'gzip', 'snappy', 'lz4', 'zstd'):
        values = [f'{codec} {i} '.encode() * 50 for i in range(100)]
        send(name, values, config={'compression.type': codec})
        want += values
    equal([m.value() for m in read(name, len(want), check_crcs=True)], want, 'values')


@suite.check
def recompression():
    """a topic with compression.type=gzip takes records that were sent with zstd, and gives them back"""
    name = topic(**{'compression.type': 'gzip'})
    values = [b'abc' * 100 + b'%d' % i for i in range(50)]
    send(name, values, config={'compression.type': 'zstd'})
    equal([m.value() for m in read(name, 50, check_crcs=True)], values, 'values')


@suite.check
def headers_and_nulls():
    """headers (also repeated, empty and null ones), null keys, null values and empty ones are kept apart"""
    name = topic()
    headers = [('a', b'1'), ('a', b'2'), ('empty', b''), ('null', None), ('utf-8 ü', 'ü'.encode())]
    send(name, [b'x'], key=b'k', headers=headers)
    send(name, [None], key=b'tombstone')
    send(name, [b''], key=b'')
    send(name, [b'no key'])
    a, b, c, d = read(name, 4)
    equal(a.headers(), headers, 'headers')
    equal((b.key(), b.value(), b.headers()), (b'tombstone', None, None), 'null value')
    equal((c.key(), c.value()), (b'', b''), 'empty key and value')
    equal((d.key(), d.value()), (None, b'no key'), 'null key')


@suite.check
def keys():
    """records of one key go to one partition, in order"""
    name = topic(partitions=6)
    p = Producer({'bootstrap.servers': B})
    for i in range(600):
        p.produce(name, b'%d' % i, key=b'key-%d' % (i % 20))
    equal(p.flush(30), 0, 'unsent')
    c = consumer()
    c.assign([TopicPartition(name, i, 0) for i in range(6)])
    home, order = {}, {}
    for m in take(c, 600):
        equal(home.setdefault(m.key(), m.partition()), m.partition(), 'partition of a key')
        order.setdefault(m.key(), []).append(int(m.value()))
    c.close()
    equal(len(order), 20, 'keys')
    assert all(v == sorted(v) for v in order.values()), 'a key is out of order'


@suite.check
def timestamps():
    """a record keeps the time its producer gave, and log append time overrides it where the topic says so"""
    name, appended = topic(), topic(**{'message.timestamp.type': 'LogAppendTime'})
    send(name, [b'x'], timestamp=T0 + 123)
    equal(read(name, 1)[0].timestamp(), (TIMESTAMP_CREATE_TIME, T0 + 123), 'create time')
    before = int(time.time() * 1000)
    send(appended, [b'x'], timestamp=T0 + 123)
    kind, at = read(appended, 1)[0].timestamp()
    assert kind == 2 and before - 1000 <= at <= int(time.time() * 1000) + 1000, f'log append time: {kind} {at}'


@suite.check
def acks():
    """acks 0, 1 and all are served"""
    name = topic()
    for value, level in ((b'all', 'all'), (b'one', 1), (b'zero', 0)):
        send(name, [value], config={'acks': level})
    equal([m.value() for m in read(name, 3)], [b'all', b'one', b'zero'], 'values')


@suite.check
def idempotence():
    """an idempotent producer writes each record once and in order, with five requests in flight"""
    name = topic(partitions=2)
    p = Producer({'bootstrap.servers': B, 'enable.idempotence': True, 'linger.ms': 1, 'batch.num.messages': 10})
    for i in range(5000):
        p.produce(name, b'%d' % i, partition=i % 2)
        p.poll(0)
    equal(p.flush(60), 0, 'unsent')
    for part in range(2):
        equal([int(m.value()) for m in read(name, 2500, part)], list(range(part, 5000, 2)), f'partition {part}')


@suite.check
def ten_megabytes():
    """a record of 10 MB passes where the limits are raised"""
    name = topic(**{'max.message.bytes': str(TEN_MB + 65536)})
    value = os.urandom(TEN_MB)
    send(name, [value, b'after'], config={'message.max.bytes': TEN_MB + 65536})
    a, b = read(name, 2, fetch_message_max_bytes=TEN_MB + 65536)
    assert a.value() == value, 'the 10 MB value differs'
    equal(b.value(), b'after', 'the record after it')


@suite.check
def cold_log():
    """a log of more than a broker keeps in memory is read from its beginning and from its middle, checksums and all"""
    name, many = topic(partitions=2, replicas=1), 1200
    value = os.urandom(50_000)
    for partition in (0, 1):
        producer = Producer({'bootstrap.servers': B, 'linger.ms': 5})
        for i in range(many):
            producer.produce(name, b'%d/%d ' % (partition, i) + value, partition=partition)
            producer.poll(0)
            if i % 100 == 99:
                equal(producer.flush(60), 0, 'records left unsent')
    for offset in (0, 3, many // 2):
        for config in ({}, {'fetch_message_max_bytes': 300_000}, {'isolation_level': 'read_uncommitted'}):
            c = consumer(check_crcs=True, **config)
            c.assign([TopicPartition(name, partition, offset) for partition in (0, 1)])
            left = {0: offset, 1: offset}
            for m in take(c, 2 * (many - offset), timeout=60):
                if (m.offset(), m.value()) != (left[m.partition()], b'%d/%d ' % (m.partition(), m.offset()) + value):
                    raise AssertionError(f'partition {m.partition()}: other bytes at offset {m.offset()}')
                left[m.partition()] += 1
            c.close()


@suite.check
def large_beyond_fetch_size():
    """a record larger than the consumer's fetch size is still delivered, so that the consumer moves on"""
    name = topic()
    send(name, [b'x' * 900_000, b'small'])
    got = read(name, 2, fetch_message_max_bytes=10_000)
    equal([len(m.value()) for m in got], [900_000, 5], 'sizes')


@suite.check
def long_poll():
    """a waiting consumer gets a record at once, not at the end of its fetch.wait.max.ms"""
    name = topic()
    c = consumer(fetch_wait_max_ms=8000)
    c.assign([TopicPartition(name, 0, 0)])
    c.poll(1.5)
    begun = time.monotonic()
    send(name, [b'wake'])
    take(c, 1)
    took = time.monotonic() - begun
    c.close()
    assert took < 4, f'{took:.1f} s'


# Offsets

@suite.check
def offset_reset():
    """auto.offset.reset: earliest reads all, latest reads what comes, error tells"""
    name = topic()
    send(name, [b'old'])
    c = consumer(auto_offset_reset='earliest')
    c.subscribe([name])
    equal(take(c, 1)[0].value(), b'old', 'earliest')
    c.close()
    c = consumer(auto_offset_reset='latest')
    c.subscribe([name])
    eventually(lambda: c.poll(0.2) is None and c.assignment(), 'an assignment')
    done = threading.Event()

    def keep_sending():
        while not done.wait(0.2):
            send(name, [b'new'])

    sender = threading.Thread(target=keep_sending)
    sender.start()
    got = take(c, 1)[0]
    done.set()
    sender.join()
    c.close()
    equal(got.value(), b'new', 'latest')
    c = consumer(auto_offset_reset='error')
    c.subscribe([name])
    message = eventually(lambda: c.poll(0.2), 'an error')
    equal(message.error().code(), KafkaError._AUTO_OFFSET_RESET, 'error')
    c.close()


@suite.check
def out_of_range():
    """an offset beyond the end resets by policy"""
    name = topic()
    send(name, [b'a', b'b'])
    equal(read(name, 2, offset=1000, auto_offset_reset='earliest')[0].offset(), 0, 'offset')


@suite.check
def watermarks():
    """earliest, latest and watermarks follow what was produced"""
    name = topic()
    c = consumer()
    equal(c.get_watermark_offsets(TopicPartition(name, 0), timeout=10), (0, 0), 'empty')
    send(name, [b'x'] * 7)
    equal(c.get_watermark_offsets(TopicPartition(name, 0), timeout=10), (0, 7), 'after seven')
    c.close()


@suite.check
def offsets_by_time():
    """an offset is found by timestamp: exact, between, before all and after all"""
    name = topic()
    for i in range(5):
        send(name, [b'%d' % i], timestamp=T0 + i * 1000)
    c = consumer()

    def at(ms):
        return c.offsets_for_times([TopicPartition(name, 0, ms)], timeout=10)[0].offset

    equal([at(T0 + d) for d in (-5000, 0, 1500, 4000)], [0, 0, 2, 4], 'offsets')
    equal(at(T0 + 5000), -1, 'after all')
    c.close()


@suite.check
def list_offsets():
    """the admin's list offsets: earliest, latest, max timestamp, by time"""
    name = topic()
    for i, ms in enumerate((1000, 3000, 2000)):
        send(name, [b'%d' % i], timestamp=T0 + ms)
    part = TopicPartition(name, 0)

    def ask(spec):
        return only(admin().list_offsets({part: spec}))

    equal(ask(OffsetSpec.earliest()).offset, 0, 'earliest')
    equal(ask(OffsetSpec.latest()).offset, 3, 'latest')
    newest = ask(OffsetSpec.max_timestamp())
    equal((newest.offset, newest.timestamp), (1, T0 + 3000), 'max timestamp')
    equal(ask(OffsetSpec.for_timestamp(T0 + 1500)).offset, 1, 'by time')


@suite.check
def commits():
    """a commit is fetched back with its metadata, by the consumer and by the admin; an unknown group has none"""
    name, group = topic(partitions=2), unique('g')
    c = consumer(group)
    part = TopicPartition(name, 0, 41, metadata='made by hand')
    c.commit(offsets=[part], asynchronous=False)
    got = c.committed([TopicPartition(name, 0), TopicPartition(name, 1)], timeout=10)
    equal([(p.offset, p.metadata) for p in got], [(41, 'made by hand'), (-1001, None)], 'committed')
    c.close()
    result = only(admin().list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)]))
    equal([(p.partition, p.offset) for p in result.topic_partitions], [(0, 41)], 'by the admin')
    c = consumer()
    equal(c.committed([TopicPartition(name, 0)], timeout=10)[0].offset, -1001, 'unknown group')
    c.close()


@suite.check
def resume():
    """a group goes on where it committed"""
    name, group = topic(), unique('g')
    send(name, [b'%d' % i for i in range(10)])
    c = consumer(group)
    c.subscribe([name])
    got = take(c, 4)
    c.commit(message=got[-1], asynchronous=False)
    c.close()
    c = consumer(group)
    c.subscribe([name])
    equal([m.value() for m in take(c, 6)], [b'%d' % i for i in range(4, 10)], 'the rest')
    c.close()


# Groups

class Member:
    """A group member that polls on a thread of its own, and what it was assigned and has seen."""

    def __init__(self, group, topics, **config):
        self.seen, self.errors, self.owned, self.stop = [], [], set(), threading.Event()
        self.consumer = consumer(group, **config)
        self.consumer.subscribe(topics, on_assign=self.assigned, on_revoke=self.revoked, on_lost=self.revoked)
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    # The client assigns and unassigns by itself, eagerly or cooperatively, when a callback does not.
    def assigned(self, _consumer, parts):
        self.owned = self.owned | {(p.topic, p.partition) for p in parts}

    def revoked(self, _consumer, parts):
        self.owned = self.owned - {(p.topic, p.partition) for p in parts}

    def run(self):
        while not self.stop.is_set():
            m = self.consumer.poll(0.1)
            if m is None:
                continue
            if m.error():
                self.errors.append(str(m.error()))
            else:
                self.seen.append(m.value())

    def leave(self):
        self.stop.set()
        self.thread.join(15)
        self.consumer.close()


def shared_out(members, parts):
    """Every partition owned once, and nobody idle while there is enough for all."""
    owned = [p for m in members for p in m.owned]
    return len(owned) == len(set(owned)) == parts and all(m.owned for m in members)


def group_life(**config):
    name, group = topic(partitions=6), unique('g')
    members = [Member(group, [name], **config)]
    try:
        eventually(lambda: shared_out(members, 6), 'one member to own all')
        members += [Member(group, [name], **config), Member(group, [name], **config)]
        eventually(lambda: shared_out(members, 6), 'three members to share')
        for part in range(6):
            send(name, [b'%d-%d' % (part, i) for i in range(10)], part)
        eventually(lambda: len({v for m in members for v in m.seen}) == 60, 'all records')
        members.pop().leave()
        eventually(lambda: shared_out(members, 6), 'two members after one left')
        equal([e for m in members for e in m.errors], [], 'errors')
    finally:
        for m in members:
            m.leave()


@suite.check
def groups_range():
    """three consumers join and leave a group, eager: every partition has one owner each time"""
    group_life(**{'partition.assignment.strategy': 'range'})


@suite.check
def groups_cooperative():
    """the same with cooperative-sticky"""
    group_life(**{'partition.assignment.strategy': 'cooperative-sticky'})


DYING = """
import sys
from confluent_kafka import Consumer
c = Consumer({'bootstrap.servers': sys.argv[1], 'group.id': sys.argv[2], 'session.timeout.ms': 6000, 'heartbeat.interval.ms': 500})
c.subscribe([sys.argv[3]])
while True:
    c.poll(0.1)
    if c.assignment():
        print('assigned', flush=True)
"""


@suite.check
def group_death():
    """a consumer that dies without leaving loses its partitions to the other within its session timeout"""
    name, group = topic(partitions=4), unique('g')
    member = Member(group, [name])
    eventually(lambda: shared_out([member], 4), 'the first member to own all')
    other = subprocess.Popen([sys.executable, '-c', DYING, B, group, name], stdout=subprocess.PIPE, text=True)
    try:
        equal(other.stdout.readline().strip(), 'assigned', 'the second member')
        eventually(lambda: len(member.owned) == 2, 'the partitions to be shared')
        other.send_signal(signal.SIGKILL)
        begun = time.monotonic()
        eventually(lambda: len(member.owned) == 4, 'the survivor to own all', 20)
        took = time.monotonic() - begun
        assert took > 2, f'{took:.1f} s: the member cannot have been timed out'
    finally:
        other.kill()
        other.wait()
        member.leave()


@suite.check
def static_membership():
    """a static member that comes back within its session gets its partitions back without a rebalance of the others"""
    name, group = topic(partitions=4), unique('g')
    config = {'partition.assignment.strategy': 'range'}
    a, b = (Member(group, [name], **{'group.instance.id': i, 'session.timeout.ms': 30000}, **config) for i in 'ab')
    try:
        eventually(lambda: shared_out([a, b], 4), 'two static members')
        owned_a, owned_b = set(a.owned), set(b.owned)
        b.leave()
        b = Member(group, [name], **{'group.instance.id': 'b', 'session.timeout.ms': 30000}, **config)
        eventually(lambda: b.owned == owned_b, 'the same partitions again')
        equal(a.owned, owned_a, 'the other member')
    finally:
        a.leave()
        b.leave()


@suite.check
def regex():
    """a regex subscription finds its topics, also one created later"""
    prefix = unique('re')
    names = [f'{prefix}-a', f'{prefix}-b']
    for n in names:
        only(admin().create_topics([NewTopic(n, 1, 3)]))
    for n in names:
        eventually(lambda n=n: send(n, [n.encode()]), f'{n} to take records')
    member = Member(unique('g'), [f'^{prefix}-.*'], **{'topic.metadata.refresh.interval.ms': 500})
    try:
        eventually(lambda: set(member.seen) == {n.encode() for n in names}, 'both topics')
        late = f'{prefix}-late'
        only(admin().create_topics([NewTopic(late, 1, 3)]))
        eventually(lambda: send(late, [b'late']), f'{late} to take records')
        eventually(lambda: b'late' in member.seen, 'the late topic')
    finally:
        member.leave()


@suite.check
def group_admin():
    """groups are listed, described with their members, and deleted only when empty"""
    name, group = topic(partitions=2), unique('g')
    member = Member(group, [name], **{'client.id': 'the-client'})
    try:
        eventually(lambda: shared_out([member], 2), 'the member to own all')
        eventually(lambda: group in {g.group_id for g in admin().list_consumer_groups().result(30).valid}, 'the group in the list')

        def stable():
            got = only(admin().describe_consumer_groups([group]))
            return got if got.state.name == 'STABLE' else None

        described = eventually(stable, 'the group to be stable')
        equal(len(described.members), 1, 'members')
        equal(described.members[0].client_id, 'the-client', 'client id')
        equal({(p.topic, p.partition) for p in described.members[0].assignment.topic_partitions},
              {(name, 0), (name, 1)}, 'assignment')
        with refused(KafkaError.NON_EMPTY_GROUP):
            only(admin().delete_consumer_groups([group]))
    finally:
        member.leave()
    only(admin().alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, [TopicPartition(name, 0, 1)])]))
    eventually(lambda: only(admin().describe_consumer_groups([group])).state.name == 'EMPTY', 'the group to be empty')
    only(admin().delete_consumer_groups([group]))
    with refused(KafkaError.GROUP_ID_NOT_FOUND):
        only(admin().delete_consumer_groups([group]))


@suite.check
def alter_group_offsets():
    """offsets of an empty group are altered by the admin, and read back"""
    name, group = topic(), unique('g')
    send(name, [b'%d' % i for i in range(5)])
    wanted = ConsumerGroupTopicPartitions(group, [TopicPartition(name, 0, 3)])
    only(admin().alter_consumer_group_offsets([wanted]))
    c = consumer(group)
    c.subscribe([name])
    equal(take(c, 1)[0].offset(), 3, 'first offset')
    c.close()


# Admin

@suite.check
def cluster():
    """the cluster is described: id, three nodes with their racks, a controller among them"""
    got = admin().describe_cluster().result(30)
    assert got.cluster_id, 'no cluster id'
    equal(len(got.nodes), len(addresses()), 'nodes')
    assert all(n.rack for n in got.nodes), 'a node without a rack'
    assert got.controller.id in {n.id for n in got.nodes}, 'the controller is not a node'


@suite.check
def topics():
    """topics are created, described with id and replicas, listed and deleted"""
    name = topic(partitions=3)
    got = only(admin().describe_topics(TopicCollection([name])))
    equal((got.name, len(got.partitions), got.is_internal), (name, 3, False), 'description')
    assert str(got.topic_id) and str(got.topic_id) != 'AAAAAAAAAAAAAAAAAAAAAA', 'no topic id'
    assert all(len(p.replicas) == len(p.isr) == 3 for p in got.partitions), 'replicas'
    leaders = {p.leader.id for p in got.partitions}
    equal(len(leaders), 3, 'leaders spread over the nodes')
    assert name in admin().list_topics(timeout=10).topics, 'not listed'
    only(admin().delete_topics([name], operation_timeout=30))
    eventually(lambda: name not in admin().list_topics(timeout=10).topics, 'the topic to go')
    with refused(KafkaError.UNKNOWN_TOPIC_OR_PART):
        only(admin().delete_topics([name]))


@suite.check
def recreate():
    """a topic deleted and created again is empty, and its old bytes do not come back"""
    name = topic()
    send(name, [b'old'] * 3)
    only(admin().delete_topics([name], operation_timeout=30))

    def create():
        only(admin().create_topics([NewTopic(name, 1, 3)]))
        return True

    eventually(create, 'the topic to be created again')
    eventually(lambda: send(name, [b'new']), 'the new topic to take records')
    equal([(m.offset(), m.value()) for m in read(name, 1)], [(0, b'new')], 'records')


@suite.check
def assignment():
    """an explicit replica assignment is kept, and the first replica leads"""
    name = unique('rdk')
    only(admin().create_topics([NewTopic(name, 2, replica_assignment=[[2, 3], [3, 1]])]))
    eventually(lambda: len(describe(name).partitions) == 2, 'the topic')
    parts = describe(name).partitions
    equal([(parts[i].replicas, parts[i].leader) for i in (0, 1)], [([2, 3], 2), ([3, 1], 3)], 'replicas')


@suite.check
def validate_only():
    """validate_only checks and creates nothing"""
    name = unique('rdk')
    only(admin().create_topics([NewTopic(name, 1, 3)], validate_only=True))
    assert name not in admin().list_topics(timeout=10).topics, 'it was created'


@suite.check
def partitions():
    """partitions are added, keep what was written, and are never taken away"""
    name = topic()
    send(name, [b'x'])
    only(admin().create_partitions([NewPartitions(name, 4)]))
    wait_topic(name, 4)
    eventually(lambda: send(name, [b'y'], 3), 'the new partition to take records')
    equal(read(name, 1)[0].value(), b'x', 'the old record')
    with refused(KafkaError.INVALID_PARTITIONS):
        only(admin().create_partitions([NewPartitions(name, 2)]))


def config_of(kind, name):
    return only(admin().describe_configs([ConfigResource(kind, name)]))


@suite.check
def configs():
    """topic configs are described with their source, altered incrementally and set back"""
    name = topic(**{'retention.ms': '7200000'})
    got = config_of(ResourceType.TOPIC, name)
    equal((got['retention.ms'].value, got['retention.ms'].is_default), ('7200000', False), 'retention.ms')
    equal((got['cleanup.policy'].value, got['cleanup.policy'].is_default), ('delete', True), 'cleanup.policy')

    def alter(key, value, op):
        entry = ConfigEntry(key, value, incremental_operation=op)
        only(admin().incremental_alter_configs([ConfigResource(ResourceType.TOPIC, name, incremental_configs=[entry])]))

    alter('segment.bytes', '2097152', AlterConfigOpType.SET)
    eventually(lambda: config_of(ResourceType.TOPIC, name)['segment.bytes'].value == '2097152', 'the new value')
    equal(config_of(ResourceType.TOPIC, name)['retention.ms'].value, '7200000', 'the other value')
    alter('cleanup.policy', 'compact', AlterConfigOpType.APPEND)
    eventually(lambda: config_of(ResourceType.TOPIC, name)['cleanup.policy'].value == 'delete,compact', 'the appended list')
    alter('cleanup.policy', 'delete', AlterConfigOpType.SUBTRACT)
    eventually(lambda: config_of(ResourceType.TOPIC, name)['cleanup.policy'].value == 'compact', 'the shorter list')
    alter('segment.bytes', None, AlterConfigOpType.DELETE)
    eventually(lambda: config_of(ResourceType.TOPIC, name)['segment.bytes'].is_default, 'the default again')


@suite.check
def configs_replaced():
    """the older AlterConfigs replaces the whole set"""
    name = topic(**{'retention.ms': '7200000'})
    only(admin().alter_configs([ConfigResource(ResourceType.TOPIC, name, set_config={'segment.ms': '60000000'})]))
    eventually(lambda: config_of(ResourceType.TOPIC, name)['segment.ms'].value == '60000000', 'the new value')
    assert config_of(ResourceType.TOPIC, name)['retention.ms'].is_default, 'the old value is still there'


@suite.check
def broker_configs():
    """a broker's configs are described, and a dynamic one is altered for one broker and set back"""
    got = config_of(ResourceType.BROKER, '1')
    equal(got['node.id'].value, '1', 'node.id')
    assert got['node.id'].is_read_only, 'node.id is read only'
    key = 'log.cleaner.backoff.ms'

    def alter(value, op):
        entry = ConfigEntry(key, value, incremental_operation=op)
        only(admin().incremental_alter_configs([ConfigResource(ResourceType.BROKER, '1', incremental_configs=[entry])]))

    alter('14000', AlterConfigOpType.SET)
    eventually(lambda: config_of(ResourceType.BROKER, '1')[key].value == '14000', 'the new value')
    alter(None, AlterConfigOpType.DELETE)
    eventually(lambda: config_of(ResourceType.BROKER, '1')[key].value == '15000', 'the default again')


@suite.check
def delete_records():
    """deleted records are gone: the log start moves, and a read at 0 resets to it"""
    name = topic()
    send(name, [b'%d' % i for i in range(10)])
    got = only(admin().delete_records([TopicPartition(name, 0, 6)]))
    equal(got.low_watermark, 6, 'low watermark')
    c = consumer()
    equal(c.get_watermark_offsets(TopicPartition(name, 0), timeout=10), (6, 10), 'watermarks')
    c.close()
    equal(read(name, 1)[0].offset(), 6, 'first record')
    with refused(KafkaError.OFFSET_OUT_OF_RANGE):
        only(admin().delete_records([TopicPartition(name, 0, 11)]))


@suite.check
def internal_topic():
    """__consumer_offsets exists once a group has committed, and is described as internal"""
    c = consumer()
    c.commit(offsets=[TopicPartition(topic(), 0, 1)], asynchronous=False)
    c.close()
    got = only(admin().describe_topics(TopicCollection(['__consumer_offsets'])))
    assert got.is_internal, 'not flagged as internal'


# Errors

@suite.check
def unknown_topic():
    """a topic that is not there and may not be created: UNKNOWN_TOPIC_OR_PART"""
    c = consumer(allow_auto_create_topics=False)
    c.subscribe([unique('nothing')])
    message = eventually(lambda: c.poll(0.2), 'an error')
    equal(message.error().code(), KafkaError.UNKNOWN_TOPIC_OR_PART, 'error')
    c.close()
    with refused(KafkaError._UNKNOWN_PARTITION):
        send(topic(), [b'x'], partition=7, config={'topic.metadata.propagation.max.ms': 500})


@suite.check
def auto_creation():
    """a topic that is produced to comes into being"""
    name = unique('auto')
    send(name, [b'x'])
    equal(read(name, 1)[0].value(), b'x', 'record')


@suite.check
def invalid_names():
    """an invalid topic name: INVALID_TOPIC_EXCEPTION, by the admin and by the producer"""
    for name in ('a b', 'ü', 'x' * 250, '..'):
        with refused(KafkaError.TOPIC_EXCEPTION):
            only(admin().create_topics([NewTopic(name, 1, 3)]))
    with refused(KafkaError.TOPIC_EXCEPTION):
        send('not valid!', [b'x'], config={'message.timeout.ms': 5000})


@suite.check
def too_large():
    """a batch above max.message.bytes: MSG_SIZE_TOO_LARGE, and the next one passes"""
    name = topic(**{'max.message.bytes': '10000'})
    with refused(KafkaError.MSG_SIZE_TOO_LARGE):
        send(name, [os.urandom(20_000)])
    send(name, [b'small'])
    equal(read(name, 1)[0].value(), b'small', 'record')


@suite.check
def invalid_configs():
    """a bad value and an unknown name: INVALID_CONFIG"""
    for key, value in (('retention.ms', 'soon'), ('no.such.config', '1'), ('cleanup.policy', 'shred'),
                       ('segment.bytes', '100')):
        with refused(KafkaError.INVALID_CONFIG):
            only(admin().create_topics([NewTopic(unique('rdk'), 1, 3, config={key: value})]))
    with refused(KafkaError.INVALID_CONFIG):
        entry = ConfigEntry('min.insync.replicas', '0', incremental_operation=AlterConfigOpType.SET)
        only(admin().incremental_alter_configs([ConfigResource(ResourceType.TOPIC, topic(), incremental_configs=[entry])]))


@suite.check
def existing_topic():
    """a topic created twice: TOPIC_ALREADY_EXISTS; one that differs from another in . and _ only: TOPIC_EXCEPTION"""
    name = topic()
    with refused(KafkaError.TOPIC_ALREADY_EXISTS):
        only(admin().create_topics([NewTopic(name, 1, 3)]))
    stem = unique('rdk').replace('-', '')
    only(admin().create_topics([NewTopic(f'{stem}.a', 1, 3)]))
    with refused(KafkaError.TOPIC_EXCEPTION):
        only(admin().create_topics([NewTopic(f'{stem}_a', 1, 3)]))


@suite.check
def bad_replication():
    """more replicas than brokers, none, an unknown broker, no partitions: the error that names it"""
    with refused(KafkaError.INVALID_REPLICATION_FACTOR):
        only(admin().create_topics([NewTopic(unique('rdk'), 1, 9)]))
    with refused(KafkaError.INVALID_REPLICATION_FACTOR):
        only(admin().create_topics([NewTopic(unique('rdk'), 1, 0)]))
    with refused(KafkaError.INVALID_REPLICA_ASSIGNMENT):
        only(admin().create_topics([NewTopic(unique('rdk'), 1, replica_assignment=[[1, 99]])]))
    with refused(KafkaError.INVALID_PARTITIONS):
        only(admin().create_topics([NewTopic(unique('rdk'), 0, 3)]))


@suite.check
def min_isr_is_bounded():
    """min.insync.replicas above the replication factor counts as the replication factor"""
    name = topic(replicas=1, **{'min.insync.replicas': '2'})
    send(name, [b'x'])
    equal(read(name, 1)[0].value(), b'x', 'record')


@suite.check
def large_commit_metadata():
    """commit metadata above 4,096 bytes: OFFSET_METADATA_TOO_LARGE"""
    c = consumer()
    with refused(KafkaError.OFFSET_METADATA_TOO_LARGE):
        got = c.commit(offsets=[TopicPartition(topic(), 0, 1, metadata='m' * 5000)], asynchronous=False)
        raise KafkaException(got[0].error)
    c.close()


def transactional(name):
    producer = Producer({'bootstrap.servers': B, 'transactional.id': name})
    producer.init_transactions(30)
    return producer


def everything(name, partitions, isolation):
    """The values of all partitions up to their ends, as a consumer of that isolation sees them."""
    c = consumer(**{'isolation.level': isolation, 'enable.partition.eof': True})
    c.assign([TopicPartition(name, p, 0) for p in range(partitions)])
    values, ended = [], set()
    while len(ended) < partitions:
        message = c.poll(30)
        if message is None:
            raise AssertionError(f'the end of {partitions - len(ended)} partitions does not come')
        if message.error():
            ended.add(message.partition())
        else:
            values.append(message.value())
    c.close()
    return sorted(values)


@suite.check
def transactions():
    """of transactions over three partitions, committed and aborted in turn, read_committed sees what was committed"""
    name, producer = topic(3), transactional(unique('tx'))
    committed, aborted = [], []
    for turn in range(6):
        producer.begin_transaction()
        values = [f'{turn}-{i}'.encode() for i in range(30)]
        for i, value in enumerate(values):
            producer.produce(name, value, partition=i % 3)
        producer.flush(30)
        if turn % 2:
            producer.abort_transaction(30)
            aborted += values
        else:
            producer.commit_transaction(30)
            committed += values
    equal(everything(name, 3, 'read_committed'), sorted(committed), 'committed')
    equal(everything(name, 3, 'read_uncommitted'), sorted(committed + aborted), 'all')


@suite.check
def transactional_fencing():
    """a second producer of a transactional id fences the first and aborts its open transaction"""
    name, id = topic(), unique('tx')
    first = transactional(id)
    first.begin_transaction()
    first.produce(name, b'left open', partition=0)
    first.flush(30)
    second = transactional(id)
    second.begin_transaction()
    second.produce(name, b'kept', partition=0)
    second.commit_transaction(30)
    with refused(KafkaError._FENCED):
        first.produce(name, b'too late', partition=0)
        first.commit_transaction(30)
    equal(everything(name, 1, 'read_committed'), [b'kept'], 'committed')


def move(producer, c, target, n, fails=()):
    """Moves n records from c to the topic `target`, each with its offset in a transaction of its own; the turns in `fails`
    are aborted first and done again, as an application does after an error."""
    turn = 0
    while turn < n:
        message = take(c, 1)[0]
        producer.begin_transaction()
        producer.produce(target, b'out of ' + message.value(), partition=message.partition())
        position = TopicPartition(message.topic(), message.partition(), message.offset() + 1)
        producer.send_offsets_to_transaction([position], c.consumer_group_metadata(), 30)
        if turn in fails:
            fails = fails - {turn}
            # An abort drops what was not sent yet: this is to be in the log.
            equal(producer.flush(30), 0, 'records left')
            producer.abort_transaction(30)
            c.seek(TopicPartition(message.topic(), message.partition(), message.offset()))
        else:
            producer.commit_transaction(30)
            turn += 1


def group_offsets(group, name, partitions):
    """{partition: offset} as the group's coordinator has them."""
    c = consumer(group)
    try:
        found = c.committed([TopicPartition(name, p) for p in range(partitions)], timeout=30)
        return {each.partition: each.offset for each in found}
    finally:
        c.close()


@suite.check
def offsets_in_transactions():
    """records move to another topic with their offsets in transactions, some aborted, the consumer restarted: each once"""
    source, target, group = topic(2), topic(2), unique('g')
    for part in range(2):
        send(source, [b'%d-%d' % (part, i) for i in range(15)], part)
    producer = transactional(unique('tx'))
    for n, fails in ((10, {0, 4, 9}), (20, {3})):
        c = consumer(group)
        c.subscribe([source])
        move(producer, c, target, n, fails)
        c.close()
    equal(group_offsets(group, source, 2), {0: 15, 1: 15}, 'offsets of the group')
    outputs = sorted(b'out of %d-%d' % (part, i) for part in range(2) for i in range(15))
    equal(everything(target, 2, 'read_committed'), outputs, 'committed')
    equal(len(everything(target, 2, 'read_uncommitted')), 34, 'with what was aborted')


@suite.check
def offsets_of_a_fenced_producer():
    """a producer that was fenced commits no offsets, its open ones are dropped, and who reads the group's waits for neither"""
    source, group, id = topic(), unique('g'), unique('tx')
    send(source, [b'%d' % i for i in range(10)])
    c = consumer(group)
    c.subscribe([source])
    take(c, 5)
    first = transactional(id)
    first.begin_transaction()
    first.send_offsets_to_transaction([TopicPartition(source, 0, 3)], c.consumer_group_metadata(), 30)
    second = transactional(id)
    equal(group_offsets(group, source, 1), {0: -1001}, 'the first one was aborted')
    second.begin_transaction()
    second.send_offsets_to_transaction([TopicPartition(source, 0, 5)], c.consumer_group_metadata(), 30)
    with raises(KafkaException, lambda e: e.args[0].fatal() or e.args[0].code() == KafkaError._FENCED, 'a fence'):
        first.send_offsets_to_transaction([TopicPartition(source, 0, 4)], c.consumer_group_metadata(), 30)
        first.commit_transaction(30)
    second.commit_transaction(30)
    equal(group_offsets(group, source, 1), {0: 5}, 'of the second one')
    c.close()


@suite.check
def offsets_of_a_member_that_left():
    """the offsets of a member that is none any longer are refused, and their transaction can only be aborted (KIP-447)"""
    source, group = topic(), unique('g')
    send(source, [b'a', b'b'])
    c = consumer(group)
    c.subscribe([source])
    take(c, 1)
    left = c.consumer_group_metadata()
    c.close()
    other = consumer(group)
    other.subscribe([source])
    take(other, 1)
    producer = transactional(unique('tx'))
    producer.begin_transaction()
    with raises(KafkaException, lambda e: e.args[0].txn_requires_abort(), 'an error that asks for an abort'):
        producer.send_offsets_to_transaction([TopicPartition(source, 0, 1)], left, 30)
    producer.abort_transaction(30)
    producer.begin_transaction()
    producer.send_offsets_to_transaction([TopicPartition(source, 0, 1)], other.consumer_group_metadata(), 30)
    producer.commit_transaction(30)
    equal(group_offsets(group, source, 1), {0: 1}, 'of the member that is there')
    other.close()


suite.main()
