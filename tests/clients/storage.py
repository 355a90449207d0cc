"""Every topic config about storage, set on a topic that is written to, and seen to count without a restart: at the client where
a client sees it, else in the files of the node that has the only replica.

Runs a cluster of its own, of one node whose retention and cleaner look every half second.
"""
import pathlib
import struct
import sys
import time
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / 'lib'))
import cluster as clusters  # noqa: E402
from checks import Suite, equal, eventually, raises  # noqa: E402
from wire import unique  # noqa: E402

from confluent_kafka import (Consumer, KafkaError, KafkaException, Producer, TIMESTAMP_CREATE_TIME,  # noqa: E402
                             TIMESTAMP_LOG_APPEND_TIME, TopicPartition)
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, OffsetSpec, ResourceType  # noqa: E402

suite = Suite('storage')
QUICK = ['log.retention.check.interval.ms=500', 'log.cleaner.backoff.ms=500']
cluster = clusters.OttlaCluster(nodes=1, overrides=QUICK)
B, MB = cluster.bootstrap, 1 << 20
ADMIN = AdminClient({'bootstrap.servers': B})
CODECS = {'none': 0, 'gzip': 1, 'snappy': 2, 'lz4': 3, 'zstd': 4}


def topic(**config):
    name = unique('storage')
    ADMIN.create_topics([NewTopic(name, 1, 1, config=named(config))])[name].result(30)
    return name


def named(config):
    return {name.replace('_', '.'): str(value) for name, value in config.items()}


def alter(name, **config):
    entries = [ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET) for key, value in named(config).items()]
    resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=entries)
    ADMIN.incremental_alter_configs([resource])[resource].result(30)
    # The broker that answered may not be the last to know; what follows is awaited where that matters.


def described(name, key):
    resource = ConfigResource(ResourceType.TOPIC, name)
    return ADMIN.describe_configs([resource])[resource].result(30)[key].value


def send(name, values, keys=None, timestamps=None, **config):
    """Produces; each record in a batch of its own unless `batch_size` says otherwise. Gives the reports in order."""
    settings = {'bootstrap.servers': B, 'acks': 'all', 'message.max.bytes': 8 * MB, 'batch.num.messages': 1, 'linger.ms': 0,
                **named(config)}
    producer, reports = Producer(settings), []
    for i, value in enumerate(values):
        extra = {'timestamp': timestamps[i]} if timestamps else {}
        producer.produce(name, value, key=keys[i] if keys else None, partition=0,
                         on_delivery=lambda error, message: reports.append(error or message), **extra)
        producer.poll(0)
    equal(producer.flush(60), 0, 'records left unsent')
    errors = [report for report in reports if isinstance(report, KafkaError)]
    if errors:
        raise KafkaException(errors[0])
    return reports


def listed(name, spec):
    partition = TopicPartition(name, 0)
    # A client of its own: librdkafka goes on asking with the leader epoch that it learned first, whatever the broker says.
    admin = AdminClient({'bootstrap.servers': B})
    return admin.list_offsets({partition: spec})[partition].result(30).offset


def earliest(name):
    return listed(name, OffsetSpec.earliest())


def read(name, until=None):
    """All records that there are now: (offset, key, value)."""
    end = until or listed(name, OffsetSpec.latest())
    consumer = Consumer({'bootstrap.servers': B, 'group.id': unique('g'), 'enable.partition.eof': True, 'auto.offset.reset': 'earliest'})
    consumer.assign([TopicPartition(name, 0, earliest(name))])
    found, deadline = [], time.monotonic() + 30
    try:
        while True:
            message = consumer.poll(0.5)
            if message is None:
                assert time.monotonic() < deadline, f'the end {end} of {name} does not come'
            elif message.error():
                if message.error().code() == KafkaError._PARTITION_EOF:
                    return found
                raise KafkaException(message.error())
            else:
                found.append(message)
    finally:
        consumer.close()


def directory(name):
    return cluster.partition_directory(1, name, 0)


def files(name, suffix='log'):
    return sorted(directory(name).glob(f'*.{suffix}'))


def batches(name):
    """(codec, bytes) of each batch in a topic's files."""
    found = []
    for file in files(name):
        data, at = file.read_bytes(), 0
        while at + 61 <= len(data):
            length = struct.unpack_from('>i', data, at + 8)[0]
            if not length:
                break
            found.append((struct.unpack_from('>h', data, at + 21)[0] & 7, length + 12))
            at += length + 12
    return found


def refused(code):
    return raises(KafkaException, lambda e: e.args[0].code() == code, f'error {code}')


@suite.check
def segment_bytes():
    """segment.bytes: segments become as small as it says from the next append on"""
    name = topic()
    send(name, [b'x' * 400_000] * 6)
    equal(len(files(name)), 1, 'segments with the default')
    alter(name, segment_bytes=MB)
    eventually(lambda: send(name, [b'x' * 400_000] * 6) and len(files(name)) >= 3, 'more segments', 10)
    assert all(file.stat().st_size <= MB for file in files(name)[1:-1]), files(name)


@suite.check
def segment_ms():
    """segment.ms with segment.jitter.ms: the active segment is closed by its age, and by no more than the jitter early"""
    name = topic()
    send(name, [b'a'])
    alter(name, segment_ms=1_500, segment_jitter_ms=500)
    eventually(lambda: len(files(name)) > 1 or not send(name, [b'b']), 'a roll by age', 15)
    alter(name, segment_ms=600_000, segment_jitter_ms=0)
    eventually(lambda: described(name, 'segment.ms') == '600000', 'the config to be there')
    count = len(files(name))
    send(name, [b'c'] * 5)
    equal(len(files(name)), count, 'segments with a long segment.ms')


@suite.check
def index_interval_bytes():
    """index.interval.bytes: the offset index gets an entry after so many bytes"""
    def entries(interval):
        name = topic(segment_bytes=MB)
        send(name, [b'x' * 1_000] * 20)
        alter(name, index_interval_bytes=interval)
        send(name, [b'x' * 1_000] * 1_200)
        # The sealed ones are complete.
        return sum(file.stat().st_size // 8 for file in files(name, 'index')[:-1])

    sparse, dense = entries(100_000), entries(1_000)
    assert 5 <= sparse <= 20 and dense >= 400, f'{sparse} and {dense} entries'


@suite.check
def retention_bytes():
    """retention.bytes: segments beyond it go, and come no more into being"""
    name = topic(segment_bytes=MB)
    send(name, [b'x' * 500_000] * 12)
    equal(earliest(name), 0, 'earliest')
    alter(name, retention_bytes=2 * MB)
    eventually(lambda: earliest(name) > 0, 'old segments to go', 20)
    kept = listed(name, OffsetSpec.latest()) - earliest(name)
    assert 4 <= kept <= 8, f'{kept} records of 500 kB are kept'


@suite.check
def retention_ms():
    """retention.ms: what is older goes, also of the active segment; -1 keeps everything"""
    name, old = topic(retention_ms=-1), int(time.time() * 1000) - 3_600_000
    send(name, [b'old'] * 3, timestamps=[old] * 3)
    send(name, [b'x'])
    alter(name, retention_ms=7_200_000)
    eventually(lambda: described(name, 'retention.ms') == '7200000', 'the config to be there')
    equal(earliest(name), 0, 'earliest')
    alter(name, retention_ms=100)
    eventually(lambda: earliest(name) == 4, 'everything to go', 20)


@suite.check
def file_delete_delay_ms():
    """file.delete.delay.ms: deleted segments keep their space for so long, and no longer"""
    name = topic(segment_bytes=MB, file_delete_delay_ms=3_600_000)
    send(name, [b'x' * 500_000] * 8)
    alter(name, retention_bytes=MB)
    eventually(lambda: earliest(name) > 0, 'old segments to go', 20)
    waiting = len(files(name, 'deleted'))
    assert waiting > 0, 'deleted files are not kept'
    alter(name, file_delete_delay_ms=0)
    # The delay counts from each deletion on, by the config at that time.
    send(name, [b'x' * 500_000] * 8)
    eventually(lambda: len(files(name, 'log')) <= 3, 'the next ones to go', 20)
    eventually(lambda: len(files(name, 'deleted')) <= waiting, 'their files to be gone at once', 20)


def compactable(**config):
    """A topic of several closed segments with ten keys, written again and again."""
    name = topic(segment_bytes=MB, **config)
    fill(name)
    return name


def fill(name, rounds=12):
    for _ in range(rounds):
        send(name, [b'x' * 30_000] * 10, keys=[f'k{i}' for i in range(10)])


def values_of(name, key):
    """What the files hold of a key: None for a tombstone. A reader may be served from memory, where nothing is compacted."""
    mark, found = bytes([2 * len(key)]) + key, []
    for file in files(name):
        data, at = file.read_bytes(), -1
        while (at := data.find(mark, at + 1)) >= 0:
            found.append(None if data[at + len(mark)] == 1 else b'')
    return found


def after_rounds_of_the_cleaner():
    """Returns when all that there is now has been looked at, twice at least, and what was found to do is done: the next look comes
    after that, as the cleaner has one thread."""
    def rounds():
        host, port = B.split(':')
        with urllib.request.urlopen(f'http://{host}:{int(port) + 3000}/metrics', timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith('ottla_log_cleaner_rounds_total '))

    before = rounds()
    # The one that is under way may have seen less.
    eventually(lambda: rounds() >= before + 3, 'three rounds of the cleaner', 60)


@suite.check
def cleanup_policy():
    """cleanup.policy: a topic that is set to compact keeps the last value of each key; set back to delete, it keeps all"""
    name = compactable(min_cleanable_dirty_ratio=0.01)
    equal(len(values_of(name, b'k1')), 12, 'values of a key')
    alter(name, cleanup_policy='compact')
    eventually(lambda: len(values_of(name, b'k1')) < 6, 'compaction', 40)
    equal(len({m.key() for m in read(name)}), 10, 'keys')
    alter(name, cleanup_policy='delete')
    eventually(lambda: described(name, 'cleanup.policy') == 'delete', 'the config to be there')
    before = len(values_of(name, b'k1'))
    fill(name)
    after_rounds_of_the_cleaner()
    equal(len(values_of(name, b'k1')), before + 12, 'values of a key')
    alter(name, cleanup_policy='compact,delete', retention_ms=100)
    eventually(lambda: earliest(name) == listed(name, OffsetSpec.latest()), 'both: retention takes what is old', 30)


@suite.check
def min_cleanable_dirty_ratio():
    """min.cleanable.dirty.ratio: a log is cleaned once so much of it is dirty"""
    name = compactable(cleanup_policy='compact', min_cleanable_dirty_ratio=0.01)
    eventually(lambda: len(values_of(name, b'k1')) < 6, 'the first compaction', 40)
    alter(name, min_cleanable_dirty_ratio=1.0)
    eventually(lambda: described(name, 'min.cleanable.dirty.ratio') == '1.0', 'the config to be there')
    fill(name)
    after_rounds_of_the_cleaner()
    assert len(values_of(name, b'k1')) >= 12
    alter(name, min_cleanable_dirty_ratio=0.01)
    eventually(lambda: len(values_of(name, b'k1')) < 6, 'the next compaction', 40)


@suite.check
def compaction_lags():
    """min.compaction.lag.ms keeps what is young as it is; max.compaction.lag.ms has it compacted whatever the ratio"""
    name = compactable(cleanup_policy='compact', min_cleanable_dirty_ratio=0.01, min_compaction_lag_ms=3_600_000)
    after_rounds_of_the_cleaner()
    equal(len(values_of(name, b'k1')), 12, 'values of a key')
    alter(name, min_cleanable_dirty_ratio=1.0)
    alter(name, min_compaction_lag_ms=0)
    alter(name, max_compaction_lag_ms=1_000)
    eventually(lambda: len(values_of(name, b'k1')) < 6, 'compaction by age', 40)


@suite.check
def delete_retention_ms():
    """delete.retention.ms: a tombstone stays for so long after it was cleaned, and then goes"""
    def fill_others(name):
        return [send(name, [b'x' * 30_000] * 9, keys=[f'k{i}' for i in range(10) if i != 1]) for _ in range(12)]

    # How long it stays is decided when it is cleaned first (KIP-534): of a topic each.
    stays, goes = (compactable(cleanup_policy='compact', min_cleanable_dirty_ratio=0.01, delete_retention_ms=ms) for ms in (3_600_000, 0))
    for name in (stays, goes):
        send(name, [None], keys=['k1'])
    fill_others(stays)
    eventually(lambda: values_of(stays, b'k1') == [None], 'only the tombstone to be left', 40)
    eventually(lambda: fill_others(goes) and not values_of(goes, b'k1'), 'the tombstone to go', 60)
    equal(values_of(stays, b'k1'), [None], 'the other tombstone')


@suite.check
def flushing():
    """flush.messages and flush.ms: the mode is told for the topic, changes while it is written to, and holds its promise on disk"""
    name = topic()
    send(name, [b'a'])
    equal(described(name, 'ottla.flush.mode'), 'page-cache', 'mode')
    alter(name, flush_messages=1)
    eventually(lambda: described(name, 'ottla.flush.mode') == 'sync-before-ack', 'the mode to be told')
    send(name, [b'b'] * 5)
    alter(name, flush_messages=100)
    eventually(lambda: described(name, 'ottla.flush.mode') == 'interval', 'the mode to be told')
    alter(name, flush_messages=9_223_372_036_854_775_807, flush_ms=50)
    eventually(lambda: described(name, 'ottla.flush.mode') == 'interval', 'the mode to be told')
    send(name, [b'c'] * 5)


@suite.check
def max_message_bytes():
    """max.message.bytes: a larger batch is refused from then on, and taken again once it is raised"""
    name = topic()
    send(name, [b'x' * 500_000])
    alter(name, max_message_bytes=100_000)

    def is_refused():
        try:
            send(name, [b'x' * 500_000])
        except KafkaException as e:
            return e.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE
        return False

    eventually(is_refused, 'a refusal', 10)
    alter(name, max_message_bytes=4 * MB)
    eventually(lambda: send(name, [b'x' * 3_000_000]), 'the larger one to be taken', 10)


@suite.check
def message_timestamps():
    """message.timestamp.type and its bounds: the broker's time, or a producer's that is neither too old nor too new"""
    name, hour = topic(retention_ms=-1), 3_600_000
    send(name, [b'a'], timestamps=[1_000_000])
    alter(name, message_timestamp_type='LogAppendTime')
    eventually(lambda: send(name, [b'b'], timestamps=[1_000_000]) and read(name)[-1].timestamp()[0] == TIMESTAMP_LOG_APPEND_TIME, 'log append time', 10)
    equal(read(name)[0].timestamp(), (TIMESTAMP_CREATE_TIME, 1_000_000), 'of the record from before')
    alter(name, message_timestamp_type='CreateTime')
    alter(name, message_timestamp_before_max_ms=hour)
    alter(name, message_timestamp_after_max_ms=hour)

    def is_refused(timestamp):
        try:
            send(name, [b'c'], timestamps=[timestamp])
        except KafkaException as e:
            return e.args[0].code() == KafkaError.INVALID_TIMESTAMP
        return False

    now = int(time.time() * 1000)
    eventually(lambda: is_refused(now - 2 * hour), 'one that is too old to be refused', 10)
    eventually(lambda: is_refused(now + 2 * hour), 'one that is too new to be refused', 10)
    send(name, [b'd'], timestamps=[now - hour // 2])


@suite.check
def compression_type():
    """compression.type: the broker stores batches in the codec that the topic asks for, and as they come where it asks for none"""
    name, text = topic(), b'a text that can be made smaller ' * 300
    send(name, [text], compression_type='lz4')
    equal(batches(name)[-1][0], CODECS['lz4'], 'codec as it came')
    for codec in ('zstd', 'gzip', 'snappy', 'uncompressed', 'producer'):
        alter(name, compression_type=codec)
        eventually(lambda: described(name, 'compression.type') == codec, 'the config to be there')
        send(name, [text], compression_type='lz4')
        equal(batches(name)[-1][0], CODECS[{'uncompressed': 'none', 'producer': 'lz4'}.get(codec, codec)], f'codec with {codec}')
    equal([m.value() for m in read(name)], [text] * 6, 'values')


@suite.check
def preallocate():
    """preallocate: a new segment has its space from the start"""
    name = topic(segment_bytes=2 * MB)
    send(name, [b'x' * 500_000])
    blocks = lambda: files(name)[-1].stat().st_blocks * 512  # noqa: E731
    assert blocks() < 2 * MB, 'the default'
    alter(name, preallocate='true')
    eventually(lambda: send(name, [b'x' * 500_000] * 4) and blocks() >= 2 * MB, 'a segment with its space', 10)
    before = listed(name, OffsetSpec.latest())
    cluster.kill(1)
    cluster.start(1)
    cluster.wait_ready()
    eventually(lambda: listed(name, OffsetSpec.latest()) == before, 'the same end after a kill', 30)
    equal(len(read(name)), before, 'records after a kill')


@suite.check
def offsets_and_deletion():
    """ListOffsets by time, earliest, latest and max timestamp, and DeleteRecords, over segments that retention took and a restart"""
    name, base = topic(segment_bytes=MB), int(time.time() * 1000) - 600_000
    send(name, [b'x' * 300_000] * 10, timestamps=[base + 1_000 * (i if i != 4 else 20) for i in range(10)])
    equal(listed(name, OffsetSpec.latest()), 10, 'latest')
    equal(listed(name, OffsetSpec.max_timestamp()), 4, 'max timestamp')
    equal(listed(name, OffsetSpec.for_timestamp(base + 2_500)), 3, 'by time')
    equal(listed(name, OffsetSpec.for_timestamp(base + 30_000)), -1, 'by a time after all')
    partition = TopicPartition(name, 0, 6)
    equal(ADMIN.delete_records([partition])[partition].result(30).low_watermark, 6, 'low watermark')
    equal(earliest(name), 6, 'earliest')
    equal(listed(name, OffsetSpec.for_timestamp(base)), 6, 'by a time before all')
    with refused(KafkaError.OFFSET_OUT_OF_RANGE):
        far = TopicPartition(name, 0, 11)
        ADMIN.delete_records([far])[far].result(30)
    cluster.stop(1)
    cluster.start(1)
    cluster.wait_ready()
    eventually(lambda: earliest(name) == 6, 'the log start after a restart', 30)
    equal(len(read(name)), 4, 'records')


if __name__ == '__main__':
    suite.main(close=cluster.close)
