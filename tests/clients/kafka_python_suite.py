"""kafka-python: a client in pure Python with its own codec, group protocol and admin."""
import pathlib
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / 'lib'))
from checks import Suite, bootstrap, equal, eventually, raises, wait_topic  # noqa: E402
from wire import unique  # noqa: E402

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition  # noqa: E402
from kafka.admin import NewTopic  # noqa: E402
from kafka.errors import MessageSizeTooLargeError, TopicAlreadyExistsError  # noqa: E402

suite = Suite('kafka-python')
B = bootstrap().split(',')
# The time of the first record where a check sets times: recent, or retention would take the records away.
T0 = int(time.time() * 1000) - 600_000


def topic(partitions=1, **config):
    name = unique('kpy')
    admin = KafkaAdminClient(bootstrap_servers=B)
    try:
        admin.create_topics([NewTopic(name, num_partitions=partitions, replication_factor=3,
                                      topic_configs={k.replace('_', '.'): v for k, v in config.items()})])
    finally:
        admin.close()
    wait_topic(name, partitions)
    return name


def send(name, values, **config):
    producer = KafkaProducer(bootstrap_servers=B, **config)
    try:
        futures = [producer.send(name, v, partition=0) for v in values]
        producer.flush(timeout=30)
        return [f.get(timeout=30).offset for f in futures]
    finally:
        producer.close()


def read(name, n, **config):
    consumer = KafkaConsumer(bootstrap_servers=B, auto_offset_reset='earliest', consumer_timeout_ms=20000,
                             enable_auto_commit=False, **config)
    try:
        consumer.assign([TopicPartition(name, 0)])
        consumer.seek_to_beginning()
        out = []
        for m in consumer:
            out.append(m)
            if len(out) == n:
                break
        equal(len(out), n, 'records read')
        return out
    finally:
        consumer.close()


@suite.check
def round_trip():
    """records come back in order at the acknowledged offsets, with acks 0, 1 and all, idempotent or not"""
    name = topic()
    equal(send(name, [b'%d' % i for i in range(500)], acks='all'), list(range(500)), 'offsets')
    equal(send(name, [b'500'], acks=1, enable_idempotence=False), [500], 'offset')
    send(name, [b'501'], acks=0, enable_idempotence=False)
    equal([m.value for m in read(name, 502)], [b'%d' % i for i in range(502)], 'values')


@suite.check
def codecs():
    """gzip, snappy, lz4 and zstd are read back"""
    name, want = topic(), []
    for codec in ('gzip', 'snappy', 'lz4', 'zstd'):
        values = [f'{codec}-{i}'.encode() * 20 for i in range(50)]
        send(name, values, compression_type=codec, linger_ms=20)
        want += values
    equal([m.value for m in read(name, len(want))], want, 'values')


@suite.check
def headers_and_nulls():
    """headers, null keys and null values"""
    name = topic()
    producer = KafkaProducer(bootstrap_servers=B)
    producer.send(name, key=b'k', value=None, headers=[('a', b'1'), ('b', b'')]).get(30)
    producer.send(name, key=None, value=b'v').get(30)
    producer.close()
    a, b = read(name, 2)
    equal((a.key, a.value, list(a.headers)), (b'k', None, [('a', b'1'), ('b', b'')]), 'first')
    equal((b.key, b.value), (None, b'v'), 'second')


@suite.check
def offsets():
    """beginning, end and offsets by time"""
    name = topic()
    producer = KafkaProducer(bootstrap_servers=B)
    for i in range(3):
        producer.send(name, b'x', partition=0, timestamp_ms=T0 + i * 1000).get(30)
    producer.close()
    consumer, part = KafkaConsumer(bootstrap_servers=B), TopicPartition(name, 0)
    equal(consumer.beginning_offsets([part])[part], 0, 'beginning')
    equal(consumer.end_offsets([part])[part], 3, 'end')
    equal(consumer.offsets_for_times({part: T0 + 500})[part].offset, 1, 'by time')
    consumer.close()


@suite.check
def commits():
    """a commit with metadata is fetched back"""
    name, part = topic(), None
    part = TopicPartition(name, 0)
    consumer = KafkaConsumer(bootstrap_servers=B, group_id=unique('g'), enable_auto_commit=False)
    consumer.assign([part])
    consumer.commit({part: OffsetAndMetadata(7, 'note', -1)})
    got = consumer.committed(part, metadata=True)
    equal((got.offset, got.metadata), (7, 'note'), 'committed')
    consumer.close()


@suite.check
def group():
    """two members share a group, and one takes all when the other leaves"""
    name, group_id = topic(partitions=4), unique('g')
    stops, owned, threads = [threading.Event(), threading.Event()], [set(), set()], []

    def member(i):
        consumer = KafkaConsumer(name, bootstrap_servers=B, group_id=group_id, session_timeout_ms=6000,
                                 heartbeat_interval_ms=300, metadata_max_age_ms=1000)
        while not stops[i].is_set():
            consumer.poll(timeout_ms=100)
            owned[i] = {p.partition for p in consumer.assignment()}
        consumer.close()
        owned[i] = set()

    try:
        for i in range(2):
            threads.append(threading.Thread(target=member, args=(i,)))
            threads[i].start()
        eventually(lambda: sorted([*owned[0], *owned[1]]) == [0, 1, 2, 3] and all(owned), 'two members to share')
        stops[1].set()
        threads[1].join(20)
        eventually(lambda: owned[0] == {0, 1, 2, 3}, 'one member to own all')
    finally:
        for s, t in zip(stops, threads):
            s.set()
            t.join(20)


@suite.check
def admin():
    """the admin client lists and describes topics and groups, alters partitions, deletes"""
    name = topic()
    a = KafkaAdminClient(bootstrap_servers=B)
    assert name in a.list_topics(), 'not listed'
    with raises(TopicAlreadyExistsError):
        a.create_topics([NewTopic(name, num_partitions=1, replication_factor=3)])
    described = a.describe_topics([name])
    equal(len(described[0]['partitions']), 1, 'partitions')
    equal(len(a.describe_cluster()['brokers']), len(B), 'brokers')
    a.delete_topics([name])
    eventually(lambda: name not in a.list_topics(), 'the topic to go')
    a.close()


@suite.check
def large():
    """a record of 10 MB passes where limits are raised; above the topic's limit it is refused by the broker"""
    ten = 10 * 1024 * 1024
    name = topic(max_message_bytes=str(ten + 65536))
    send(name, [b'z' * ten], max_request_size=ten + 65536)
    equal(len(read(name, 1, max_partition_fetch_bytes=ten + 65536)[0].value), ten, 'size')
    small = topic(max_message_bytes='10000')
    with raises(MessageSizeTooLargeError):
        send(small, [b'z' * 50_000])


@suite.check
def wake_up():
    """a waiting consumer gets a record at once"""
    name = topic()
    consumer = KafkaConsumer(bootstrap_servers=B, fetch_max_wait_ms=8000)
    consumer.assign([TopicPartition(name, 0)])
    consumer.seek_to_beginning()
    consumer.poll(timeout_ms=1000)
    begun = time.monotonic()
    send(name, [b'x'])
    got = consumer.poll(timeout_ms=10_000)
    took = time.monotonic() - begun
    consumer.close()
    assert got and took < 4, f'{took:.1f} s, {got}'


suite.main()
