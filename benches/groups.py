#!/usr/bin/env python3
"""Large groups and many groups, as their members see them and as the brokers' processes pay for them.

  groups.py [--only ottla|kafka] [--rounds 1] [--warm 0] [--members 500] [--groups 10000] [--seconds 10] [CASE...]

Two clusters of three, Ottla's and (with a JDK and Maven) Apache Kafka's, run side by side; each case is played on a fresh topic of one
and then of the other, in the next round the other way round. Before, `commits` and `transactions` warm Kafka's JVMs for WARM seconds
each. Members are played over the wire, each on a connection of its own, and heartbeat every 200 ms. Cases (all without an argument):

  classic consumer   MEMBERS members join at once: until every one has partitions; one leaves: until the rest have them all
  static             50 static members of each protocol are restarted one by one: how many rebalances that makes (0)
  commits            offset commits of simple consumers, 30 connections, flat out: a second, and processor time for each
  transactions       transactions of ten records in one partition (transaction version 2), 30 producers flat out: likewise
  spread             the same with its ten records in ten partitions
  groups             GROUPS groups of one member and one offset each: memory of the brokers, processor at rest
"""
import argparse
import asyncio
import pathlib
import struct
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / 'tests/lib'), str(HERE / 'compare')]
import cluster as clusters  # noqa: E402
import wire  # noqa: E402
from checks import eventually  # noqa: E402
from wire import Reader, compact_string, string, uvarint  # noqa: E402

PRODUCE, METADATA, OFFSET_COMMIT, FIND_COORDINATOR, JOIN, HEARTBEAT, LEAVE, SYNC = 0, 3, 8, 10, 11, 12, 13, 14
CREATE_TOPICS, INIT_PRODUCER_ID, END_TXN, NEXT = 19, 22, 26, 68
NOT_YET = {14, 15, 16}  # the coordinator loads, is not available, is another one
MEMBER_ID_REQUIRED, REBALANCE_IN_PROGRESS, ILLEGAL_GENERATION, CONCURRENT_TRANSACTIONS = 79, 27, 22, 51
BEAT = 0.2
# What the figures are told for; both clusters get the same.
SETTINGS = {'group.initial.rebalance.delay.ms': 0, 'group.consumer.min.heartbeat.interval.ms': 100,
            'group.consumer.heartbeat.interval.ms': 200, 'group.consumer.assignment.interval.ms': 0,
            'group.max.session.timeout.ms': 3_600_000}


class Peer:
    """One connection; requests may overlap, answers come in order."""

    @classmethod
    async def open(cls, address):
        self = cls()
        self.reader, self.writer = await asyncio.open_connection(*address)
        self.correlation, self.waiting = 0, asyncio.Queue()
        self.task = asyncio.create_task(self.receive())
        return self

    async def receive(self):
        while True:
            size, = struct.unpack('>i', await self.reader.readexactly(4))
            answer = await self.reader.readexactly(size)
            flexible, future = self.waiting.get_nowait()
            body = Reader(answer[4:])
            if flexible:
                body.tags()
            if not future.done():
                future.set_result(body)

    async def call(self, key, version, body, flexible=False):
        self.correlation += 1
        future = asyncio.get_running_loop().create_future()
        self.waiting.put_nowait((flexible, future))
        self.writer.write(wire.frame(wire.request(key, version, body, self.correlation, flexible)))
        # Not `wait_for`: that swallows a cancellation which comes together with the answer, and its task would go on for ever.
        async with asyncio.timeout(60):
            return await future

    def close(self):
        self.task.cancel()
        self.writer.transport.abort()


def data(raw):
    return struct.pack('>i', len(raw)) + raw


def array(items):
    return struct.pack('>i', len(items)) + b''.join(items)


def compact(items):
    return uvarint(len(items) + 1) + b''.join(items)


async def coordinator(addresses, key, of_transactions=False):
    """Where a group's coordinator listens, or a transactional id's."""
    peer = await Peer.open(addresses[0])
    try:
        while True:
            answer = await peer.call(FIND_COORDINATOR, 1, string(key) + (b'\1' if of_transactions else b'\0'))
            answer.i32()
            error = answer.i16()
            answer.string(), answer.i32()
            if error == 0:
                return answer.string(), answer.i32()
            assert error in NOT_YET, error
            await asyncio.sleep(0.1)
    finally:
        peer.close()


class Member:
    """What both kinds have: a connection, a loop that beats, and partitions."""

    def __init__(self, group, topic, instance=None):
        self.group, self.topic, self.instance = group, topic, instance
        self.id, self.owned, self.settled, self.epochs = '', frozenset(), False, []

    async def start(self, address):
        self.peer = await Peer.open(address)
        self.task = asyncio.create_task(self.run())

    async def stop(self, leave):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        if leave:
            await self.say_goodbye()
        self.peer.close()

    def check(self):
        """An exception of the member's own loop is the benchmark's."""
        if self.task.done():
            self.task.result()


class Classic(Member):
    """A member of the classic protocol; who leads shares the partitions out in turn."""

    async def run(self):
        subscription = struct.pack('>h', 0) + array([string(self.topic.name)]) + data(b'')
        while True:
            answer = await self.peer.call(JOIN, 5, string(self.group) + struct.pack('>ii', 1_800_000 if self.instance is None else 60_000, 60_000)
                                          + string(self.id) + string(self.instance) + string('consumer')
                                          + array([string('range') + data(subscription)]))
            answer.i32()
            error, generation = answer.i16(), answer.i32()
            _, leader, self.id = answer.string(), answer.string(), answer.string()
            if error == MEMBER_ID_REQUIRED or error in NOT_YET:
                continue
            assert error == 0, f'JoinGroup: {error}'

            def member():
                name = answer.string()
                answer.string(), answer.take(answer.i32())
                return name

            members = answer.array(member)
            shares = []
            if leader == self.id and members:
                for i, name in enumerate(members):
                    mine = range(i, self.topic.partitions, len(members))
                    parts = array([string(self.topic.name) + array([struct.pack('>i', p) for p in mine])])
                    shares.append(string(name) + data(struct.pack('>h', 0) + parts + data(b'')))
            answer = await self.peer.call(SYNC, 3, string(self.group) + struct.pack('>i', generation) + string(self.id)
                                          + string(self.instance) + array(shares))
            answer.i32()
            if (error := answer.i16()) == REBALANCE_IN_PROGRESS:
                continue
            assert error == 0, f'SyncGroup: {error}'
            self.taken(Reader(answer.take(answer.i32())))
            self.epochs.append(generation)
            await self.beat(generation)

    def taken(self, assignment):
        owned = []
        if assignment.data:
            assignment.i16()
            assignment.array(lambda: (assignment.string(), owned.extend(assignment.array(assignment.i32))))
        self.owned, self.settled = frozenset(owned), True

    async def beat(self, generation):
        while True:
            await asyncio.sleep(BEAT)
            answer = await self.peer.call(HEARTBEAT, 3, string(self.group) + struct.pack('>i', generation) + string(self.id) + string(self.instance))
            answer.i32()
            if (error := answer.i16()) in (REBALANCE_IN_PROGRESS, ILLEGAL_GENERATION):
                self.settled = False
                return
            assert error == 0, f'Heartbeat: {error}'

    async def say_goodbye(self):
        answer = await self.peer.call(LEAVE, 3, string(self.group) + array([string(self.id) + string(self.instance)]))
        answer.i32()
        assert answer.i16() == 0


class Next(Member):
    """A member of the consumer protocol (KIP-848)."""

    epoch = 0

    def nullable(self, value):
        return b'\0' if value is None else compact_string(value)

    async def heartbeat(self, topics=False, owned=None):
        parts = b'\0'
        if owned is not None:
            mine = [self.topic.id + compact([struct.pack('>i', p) for p in sorted(owned)]) + b'\0'] if owned else []
            parts = compact(mine)
        answer = await self.peer.call(NEXT, 0, compact_string(self.group) + compact_string(self.id) + struct.pack('>i', self.epoch)
                                      + self.nullable(self.instance) + b'\0' + struct.pack('>i', 60_000 if topics else -1)
                                      + (compact([compact_string(self.topic.name)]) if topics else b'\0') + b'\0' + parts + b'\0', True)
        answer.i32()
        error, length = answer.i16(), answer.uvarint()
        why = answer.take(length - 1).decode() if length else ''
        return error, why, answer

    async def run(self):
        self.epoch, first, told = 0, True, None
        while True:
            telling = self.owned
            error, why, answer = await self.heartbeat(first, telling if telling != told else None)
            if error in NOT_YET:
                await asyncio.sleep(0.05)
                continue
            assert error == 0, f'ConsumerGroupHeartbeat: {error} {why}'
            told = telling
            length = answer.uvarint()
            self.id = answer.take(length - 1).decode() if length else self.id
            epoch = answer.i32()
            if epoch != self.epoch:
                self.epochs.append(epoch)
            self.epoch, first = epoch, False
            answer.i32()
            if answer.i8() >= 0:
                owned = []

                def topic():
                    answer.take(16)
                    owned.extend(answer.compact_array(answer.i32))
                    answer.tags()

                answer.compact_array(topic)
                gives_up = self.owned - frozenset(owned)
                self.owned, self.settled = frozenset(owned), True
                if gives_up:
                    # The coordinator waits to be told.
                    continue
            await asyncio.sleep(BEAT)

    async def say_goodbye(self):
        self.epoch = -2 if self.instance else -1
        error, why, _ = await self.heartbeat()
        assert error == 0, why


class Topic:
    """A topic with three replicas, once every broker knows it."""

    def __init__(self, cluster, partitions):
        self.name, self.partitions = wire.unique('groups'), partitions
        addresses = [split(a) for a in cluster.bootstrap.split(',')]
        create_topic(addresses[0], self.name, partitions)
        eventually(lambda: all(len(leaders(a, self.name)) == partitions for a in addresses), 'the topic', 60)
        self.id = topic_id(addresses[0], self.name)


def split(address):
    host, port = address.rsplit(':', 1)
    return host, int(port)


def create_topic(address, name, partitions):
    wire.create_topic(address, name, partitions, 3, timeout=60)


def leaders(address, name):
    error, parts = wire.metadata(address, [name], timeout=30)[2][name]
    return {p: part[1] for p, part in parts.items() if part[0] == 0 and part[1] >= 0} if not error else {}


def topic_id(address, name):
    body = compact([bytes(16) + compact_string(name) + b'\0']) + b'\0\0\0'
    with wire.Connection(address) as connection:
        answer = connection.call(METADATA, 12, body, True)
    answer.i32()

    def broker():
        answer.i32(), answer.take(answer.uvarint() - 1), answer.i32()
        rack = answer.uvarint()
        answer.take(max(0, rack - 1)), answer.tags()

    answer.compact_array(broker)
    answer.take(max(0, answer.uvarint() - 1)), answer.i32()
    assert answer.uvarint() == 2
    assert answer.i16() == 0
    answer.take(answer.uvarint() - 1)
    return answer.take(16)


async def until(condition, members, what, timeout=60):
    """Seconds until a condition holds, looked at every few milliseconds; a member that failed ends the wait."""
    begun = time.monotonic()
    while not condition():
        for member in members:
            member.check()
        if time.monotonic() - begun > timeout:
            raise TimeoutError(what)
        await asyncio.sleep(0.01)
    return time.monotonic() - begun


def shared_out(members, partitions):
    owned = [p for m in members for p in m.owned]
    return all(m.settled and m.owned for m in members) and len(owned) == len(set(owned)) == partitions


async def large(cluster, kind, options):
    topic, group = Topic(cluster, options.members * 2), wire.unique('g')
    address = await coordinator([split(a) for a in cluster.bootstrap.split(',')], group)
    members = [kind(group, topic) for _ in range(options.members)]
    begun, cpu = time.monotonic(), cluster.cpu_seconds()
    await asyncio.gather(*(m.start(address) for m in members))
    await until(lambda: shared_out(members, topic.partitions), members, 'all to join')
    joined, cpu = time.monotonic() - begun, cluster.cpu_seconds() - cpu
    moved = {m: m.owned for m in members}
    begun = time.monotonic()
    await members.pop().stop(leave=True)
    await until(lambda: shared_out(members, topic.partitions), members, 'the rest to share')
    left = time.monotonic() - begun
    lost = sum(len(had - m.owned) for m, had in moved.items() if m in members)
    await asyncio.gather(*(m.stop(leave=False) for m in members))
    return f'{options.members} joined in {joined:.2f} s ({cpu:.2f} s of the brokers); one left: {left:.2f} s, {lost} partitions taken from others'


async def static(cluster, options):
    del options
    told = []
    for kind in (Classic, Next):
        topic, group = Topic(cluster, 100), wire.unique('g')
        address = await coordinator([split(a) for a in cluster.bootstrap.split(',')], group)
        members = [kind(group, topic, f'i{i}') for i in range(50)]
        await asyncio.gather(*(m.start(address) for m in members))
        await until(lambda: shared_out(members, 100), members, 'all to join')
        # Those who joined late may have moved others: wait for one generation of all.
        await until(lambda: len({m.epochs[-1] for m in members}) == 1, members, 'one generation')
        before, had = members[0].epochs[-1], [m.owned for m in members]
        for i in range(50):
            await members[i].stop(leave=kind is Next)
            members[i] = kind(group, topic, f'i{i}')
            await members[i].start(address)
            await until(lambda: members[i].settled, members, 'the restarted one to be back')
        same = sum(m.owned == owned for m, owned in zip(members, had))
        told.append(f'{kind.__name__.lower()}: {members[-1].epochs[-1] - before} rebalances, {same} of 50 with what they had')
        await asyncio.gather(*(m.stop(leave=False) for m in members))
    return '; '.join(told)


class Quiet(Classic):
    """Joins once and stays without a word (its session is long); shares a connection with others."""

    async def start(self, peer):
        self.peer = peer
        self.task = asyncio.create_task(self.run())
        await until(lambda: self.settled, [self], 'a group of one')
        self.task.cancel()
        answer = await commit(peer, self.group, self.topic.name, 1, self.epochs[-1], self.id)
        assert answer == 0, f'OffsetCommit: {answer}'


async def commit(peer, group, topic, offset, generation=-1, member=''):
    body = (string(group) + struct.pack('>i', generation) + string(member) + struct.pack('>q', -1)
            + array([string(topic) + array([struct.pack('>iq', 0, offset) + string(None)])]))
    answer = await peer.call(OFFSET_COMMIT, 4, body)
    answer.i32()
    return answer.array(lambda: (answer.string(), answer.array(lambda: (answer.i32(), answer.i16())))[1])[0][0][1]


async def many(cluster, options):
    topic = Topic(cluster, 1)
    addresses = [split(a) for a in cluster.bootstrap.split(',')]
    names = [wire.unique('g') for _ in range(options.groups)]
    peers, before = {}, cluster.resident_mib()
    gate = asyncio.Semaphore(100)

    async def one(name):
        async with gate:
            address = await coordinator(addresses, name)
            if address not in peers:
                peers[address] = asyncio.ensure_future(Peer.open(address))
            await Quiet(name, topic).start(await peers[address])

    begun = time.monotonic()
    await asyncio.gather(*(one(name) for name in names))
    took, after = time.monotonic() - begun, cluster.resident_mib()
    cpu, begun = cluster.cpu_seconds(), time.monotonic()
    await asyncio.sleep(options.seconds)
    rest = (cluster.cpu_seconds() - cpu) / (time.monotonic() - begun)
    for peer in peers.values():
        (await peer).close()
    return f'{options.groups} groups made in {took:.1f} s; a broker {before:.0f} -> {after:.0f} MiB; at rest {100 * rest:.1f} % of a processor in all'


async def flat_out(cluster, seconds, workers, name):
    """How often `workers` count up in so many seconds, and what that costs the brokers. A worker counts into its list until told."""
    counts, stop = [[0] for _ in workers], []
    tasks = [asyncio.create_task(work(count, stop)) for work, count in zip(workers, counts)]

    def done():
        for task in tasks:
            if task.done():
                task.result()
        return sum(count for count, in counts)

    await asyncio.sleep(2)
    begun, cpu, before = time.monotonic(), cluster.cpu_seconds(), done()
    await asyncio.sleep(seconds)
    seconds, cpu, count = time.monotonic() - begun, cluster.cpu_seconds() - cpu, done() - before
    stop.append(True)
    await asyncio.gather(*tasks)
    return f'{count / seconds:,.0f} {name}/s, {1e6 * cpu / count:.0f} us of the brokers each'


async def commits(cluster, options):
    topic = Topic(cluster, 1)
    addresses = [split(a) for a in cluster.bootstrap.split(',')]
    groups = [wire.unique('g') for _ in range(30)]
    peers = [await Peer.open(await coordinator(addresses, group)) for group in groups]
    for peer, group in zip(peers, groups):
        # Its first commit may find a coordinator that does not lead yet.
        while (error := await commit(peer, group, topic.name, 0)) in NOT_YET:
            await asyncio.sleep(0.05)
        assert error == 0, error

    def worker(peer, group):
        async def work(count, stop):
            while not stop:
                assert (error := await commit(peer, group, topic.name, count[0])) == 0, error
                count[0] += 1
        return work

    told = await flat_out(cluster, options.seconds, [worker(*each) for each in zip(peers, groups)], 'commits')
    for peer in peers:
        peer.close()
    return told


class Transactional:
    """A producer of transaction version 2: partitions join with their first records, and each end brings the next epoch."""

    def __init__(self, topic, partitions):
        self.id, self.topic, self.partitions = wire.unique('t'), topic, partitions
        # Times that a transaction had to wait for the end of the one before.
        self.waited = 0

    async def start(self, addresses):
        leaders_of = {p: leader for p, leader in leaders(addresses[0], self.topic.name).items() if p in self.partitions}
        self.by_leader = {leader: [p for p in self.partitions if leaders_of[p] == leader] for leader in set(leaders_of.values())}
        brokers = wire.metadata(addresses[0], [], timeout=30)[0]
        self.leaders = {leader: await Peer.open(brokers[leader][:2]) for leader in self.by_leader}
        self.coordinator = await Peer.open(await coordinator(addresses, self.id, True))
        while True:
            body = compact_string(self.id) + struct.pack('>iqh', 60_000, -1, -1) + b'\0'
            answer = await self.coordinator.call(INIT_PRODUCER_ID, 4, body, True)
            answer.i32()
            error, self.producer = answer.i16(), (answer.i64(), answer.i16())
            if not error:
                return
            assert error in {*NOT_YET, CONCURRENT_TRANSACTIONS}, f'InitProducerId: {error}'
            await asyncio.sleep(0.05)

    async def transact(self):
        """Ten records, all in one partition or one in each, and the end."""
        each = [b'0123456789'] * (10 // len(self.partitions))
        batch = transactional_batch(each, self.producer)
        await asyncio.gather(*(self.produce(leader, batch) for leader in self.by_leader))
        answer = await self.coordinator.call(END_TXN, 5, compact_string(self.id) + struct.pack('>qhb', *self.producer, 1) + b'\0', True)
        answer.i32()
        error, self.producer = answer.i16(), (answer.i64(), answer.i16())
        assert error == 0, f'EndTxn: {error}'

    async def produce(self, leader, batch):
        left = self.by_leader[leader]
        while left:
            parts = compact([struct.pack('>i', p) + uvarint(len(batch) + 1) + batch + b'\0' for p in left])
            body = compact_string(self.id) + struct.pack('>hi', -1, 30_000) + compact([compact_string(self.topic.name) + parts + b'\0']) + b'\0'
            answer = await self.leaders[leader].call(PRODUCE, 12, body, True)
            left = [p for p, error in produced(answer) if error]
            if left:
                self.waited += 1
                await asyncio.sleep(0.005)

    def close(self):
        for peer in [*self.leaders.values(), self.coordinator]:
            peer.close()


def produced(answer):
    """[(partition, error)] of a Produce of version 12; the only error that may be is that the last transaction is just ending."""
    def skip_string():
        answer.take(max(0, answer.uvarint() - 1))

    def partition():
        index, error = answer.i32(), answer.i16()
        answer.take(3 * 8)
        answer.compact_array(lambda: (answer.i32(), skip_string(), answer.tags()))
        skip_string(), answer.tags()
        assert error in {0, CONCURRENT_TRANSACTIONS}, f'Produce: {error}'
        return index, error

    def topic():
        skip_string()
        found = answer.compact_array(partition)
        answer.tags()
        return found

    return [each for found in answer.compact_array(topic) for each in found]


def transactional_batch(values, producer):
    """One uncompressed v2 batch of a producer's first records in a transaction."""
    records = b''
    for i, value in enumerate(values):
        inner = b'\0' + wire.varint(0) + wire.varint(i) + wire.varint(-1) + wire.varint(len(value)) + value + wire.varint(0)
        records += wire.varint(len(inner)) + inner
    now = int(time.time() * 1000)
    after_crc = struct.pack('>hiqqqhii', 0x10, len(values) - 1, now, now, *producer, 0, len(values)) + records
    body = struct.pack('>ibI', -1, 2, wire.crc32c(after_crc)) + after_crc
    return struct.pack('>qi', 0, len(body)) + body


async def transactions(cluster, options, width=1):
    topic = Topic(cluster, 30)
    addresses = [split(a) for a in cluster.bootstrap.split(',')]
    producers = [Transactional(topic, [(i + k) % topic.partitions for k in range(width)]) for i in range(30)]
    for producer in producers:
        await producer.start(addresses)

    def worker(producer):
        async def work(count, stop):
            while not stop:
                await producer.transact()
                count[0] += 1
        return work

    told = await flat_out(cluster, options.seconds, [worker(producer) for producer in producers], 'transactions')
    for producer in producers:
        producer.close()
    return f'{told} ({sum(p.waited for p in producers)} times told to wait for the one before)'


CASES = {'classic': lambda c, o: large(c, Classic, o), 'consumer': lambda c, o: large(c, Next, o), 'static': static,
         'commits': commits, 'transactions': transactions, 'spread': lambda c, o: transactions(c, o, 10), 'groups': many}


def start(side):
    if side == 'ottla':
        return clusters.OttlaCluster(overrides=[f'{k}={v}' for k, v in SETTINGS.items()])
    from kafka import KafkaCluster
    kafka = KafkaCluster(extra=SETTINGS)
    kafka.start_all()
    kafka.wait_ready(timeout=90)
    return kafka


def main(options):
    sides = [options.only] if options.only else ['ottla', 'kafka']
    running = {}
    try:
        for side in sides:
            running[side] = start(side)
        if options.warm and 'kafka' in running:
            warm = argparse.Namespace(**{**vars(options), 'seconds': options.warm})
            for case in ('commits', 'transactions'):
                asyncio.run(CASES[case](running['kafka'], warm))
        for turn in range(options.rounds):
            for case in options.cases or CASES:
                for side in sides if turn % 2 == 0 else sides[::-1]:
                    print(f'{side:<6}{case:<13}{asyncio.run(CASES[case](running[side], options))}', flush=True)
    finally:
        for cluster in running.values():
            cluster.close()


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', choices=['ottla', 'kafka'])
    parser.add_argument('--rounds', type=int, default=1)
    parser.add_argument('--warm', type=float, default=0)
    parser.add_argument('--members', type=int, default=500)
    parser.add_argument('--groups', type=int, default=10_000)
    parser.add_argument('--seconds', type=float, default=10)
    parser.add_argument('cases', nargs='*', help=', '.join(CASES))
    main(parser.parse_args())
