"""aiokafka: an asyncio client that still sends old versions of many requests."""
import asyncio
import functools
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / 'lib'))
from checks import Suite, addresses, bootstrap, equal, raises, wait_topic  # noqa: E402
import wire  # noqa: E402
from wire import unique  # noqa: E402

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition  # noqa: E402
from aiokafka.admin import AIOKafkaAdminClient, NewTopic  # noqa: E402
from aiokafka.errors import KafkaError, TopicAlreadyExistsError  # noqa: E402

suite = Suite('aiokafka')
B = bootstrap()
# The time of the first record where a check sets times: recent, or retention would take the records away.
T0 = int(time.time() * 1000) - 600_000


def check(function):
    @functools.wraps(function)
    def run():
        asyncio.run(asyncio.wait_for(function(), 90))

    return suite.check(run)


def topic(partitions=1):
    name = unique('aio')
    equal(wire.create_topic(addresses()[0], name, partitions, 3), 0, 'CreateTopics')
    wait_topic(name, partitions)
    return name


async def send(name, values, **config):
    async with AIOKafkaProducer(**{'bootstrap_servers': B, 'acks': 'all', **config}) as producer:
        futures = [await producer.send(name, v, partition=0) for v in values]
        return [(await f).offset for f in futures]


async def read(name, n):
    async with AIOKafkaConsumer(bootstrap_servers=B, auto_offset_reset='earliest') as consumer:
        consumer.assign([TopicPartition(name, 0)])
        return [await asyncio.wait_for(consumer.getone(), 20) for _ in range(n)]


async def eventually(condition, what, timeout=40):
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        await asyncio.sleep(0.05)


@check
async def round_trip():
    """records come back in order at the acknowledged offsets, plain and idempotent"""
    name = topic()
    equal(await send(name, [b'%d' % i for i in range(300)]), list(range(300)), 'offsets')
    equal(await send(name, [b'%d' % i for i in range(300, 600)], enable_idempotence=True), list(range(300, 600)), 'offsets')
    equal([m.value for m in await read(name, 600)], [b'%d' % i for i in range(600)], 'values')


@check
async def codecs():
    """gzip, snappy, lz4 and zstd are read back"""
    name, want = topic(), []
    for codec in ('gzip', 'snappy', 'lz4', 'zstd'):
        values = [f'{codec}-{i}'.encode() * 20 for i in range(50)]
        await send(name, values, compression_type=codec, linger_ms=20)
        want += values
    equal([m.value for m in await read(name, len(want))], want, 'values')


@check
async def headers_and_nulls():
    """headers, null keys and null values"""
    name = topic()
    async with AIOKafkaProducer(bootstrap_servers=B, acks='all') as producer:
        await producer.send_and_wait(name, key=b'k', value=None, headers=[('a', b'1')])
        await producer.send_and_wait(name, value=b'v')
    a, b = await read(name, 2)
    equal((a.key, a.value, list(a.headers), b.key, b.value), (b'k', None, [('a', b'1')], None, b'v'), 'records')


@check
async def group():
    """two members share a group, one takes all when the other leaves, and the commit is where reading went on"""
    name, group_id = topic(partitions=4), unique('g')
    config = dict(bootstrap_servers=B, group_id=group_id, auto_offset_reset='earliest', enable_auto_commit=False,
                  session_timeout_ms=6000, heartbeat_interval_ms=300)
    a, b = AIOKafkaConsumer(name, **config), AIOKafkaConsumer(name, **config)
    await asyncio.gather(a.start(), b.start())
    try:
        await eventually(lambda: len(a.assignment()) == len(b.assignment()) == 2 and not a.assignment() & b.assignment(), 'shared')
        await b.stop()
        await eventually(lambda: len(a.assignment()) == 4, 'one owner')
        await send(name, [b'%d' % i for i in range(5)])
        for _ in range(3):
            await asyncio.wait_for(a.getone(), 20)
        await a.commit()
        equal(await a.committed(TopicPartition(name, 0)), 3, 'committed')
    finally:
        await asyncio.gather(a.stop(), b.stop())
    async with AIOKafkaConsumer(name, **config) as c:
        equal((await asyncio.wait_for(c.getone(), 20)).offset, 3, 'first offset of the next member')


@check
async def offsets():
    """beginning, end, by time, and a seek"""
    name = topic()
    async with AIOKafkaProducer(bootstrap_servers=B, acks='all') as producer:
        for i in range(3):
            await producer.send_and_wait(name, b'%d' % i, partition=0, timestamp_ms=T0 + i * 1000)
    part = TopicPartition(name, 0)
    async with AIOKafkaConsumer(bootstrap_servers=B) as c:
        c.assign([part])
        equal((await c.beginning_offsets([part]))[part], 0, 'beginning')
        equal((await c.end_offsets([part]))[part], 3, 'end')
        equal((await c.offsets_for_times({part: T0 + 500}))[part].offset, 1, 'by time')
        c.seek(part, 2)
        equal((await asyncio.wait_for(c.getone(), 20)).value, b'2', 'after a seek')


@check
async def admin():
    """topics are created, described, refused when they exist, deleted"""
    name = unique('aio')
    a = AIOKafkaAdminClient(bootstrap_servers=B)
    await a.start()
    try:
        await a.create_topics([NewTopic(name, 2, 3)])
        wait_topic(name, 2)
        described = await a.describe_topics([name])
        equal(len(described[0]['partitions']), 2, 'partitions')
        with raises(KafkaError, lambda e: isinstance(e, TopicAlreadyExistsError), 'TopicAlreadyExistsError'):
            answer = await a.create_topics([NewTopic(name, 2, 3)])
            if answer.topic_errors[0][1] == TopicAlreadyExistsError.errno:
                raise TopicAlreadyExistsError()
        await a.delete_topics([name])
    finally:
        await a.close()


suite.main()
