"""Consumer groups of the next generation (KIP-848) with librdkafka and with Kafka's own tools, on a cluster of its own: a
short heartbeat interval makes it quick, and a coordinator has to die.

OWN_BOOTSTRAP names another cluster, to validate the checks themselves; the coordinator's death is left out then.
"""
import concurrent.futures
import os
import pathlib
import queue
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / 'lib'))
import cluster  # noqa: E402
import installs  # noqa: E402
import wire  # noqa: E402
from checks import Suite, equal, eventually  # noqa: E402
from wire import unique  # noqa: E402

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition  # noqa: E402
from confluent_kafka.admin import (AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewPartitions,  # noqa: E402
                                   NewTopic, ResourceType)

SETTINGS = ['group.consumer.min.heartbeat.interval.ms=100', 'group.consumer.heartbeat.interval.ms=200',
            'group.consumer.min.session.timeout.ms=2000', 'group.consumer.session.timeout.ms=3000',
            'group.consumer.assignment.interval.ms=0', 'group.initial.rebalance.delay.ms=0',
            'group.min.session.timeout.ms=1000']

suite = Suite('next-groups')
OWN = os.environ.get('OWN_BOOTSTRAP')
CLUSTER = None if OWN else cluster.OttlaCluster(overrides=SETTINGS)
B = OWN or CLUSTER.bootstrap
ADMIN = AdminClient({'bootstrap.servers': B})


def only(futures):
    return next(iter(futures.values())).result(30)


def topic(partitions, name=None):
    name = name or unique('next')
    only(ADMIN.create_topics([NewTopic(name, partitions, 3)], operation_timeout=30))
    addresses = [(a.rsplit(':', 1)[0], int(a.rsplit(':', 1)[1])) for a in B.split(',')]

    def known(address):
        error, parts = wire.metadata(address, [name], timeout=5)[2][name]
        return not error and len(parts) == partitions and all(p[0] == 0 and p[1] >= 0 for p in parts.values())

    eventually(lambda: all(known(a) for a in addresses), f'every broker to know {name}')
    return name


def send(name, values, partition):
    producer = Producer({'bootstrap.servers': B, 'linger.ms': 5})
    for value in values:
        producer.produce(name, value, partition=partition)
    equal(producer.flush(60), 0, 'records left')


NEXT = {'group.protocol': 'consumer'}
# Of librdkafka's assignors this one can be taken over: cooperative-sticky's assignments carry data of its own, and Kafka
# refuses a member of the consumer protocol then (GROUP_ID_NOT_FOUND), too.
CLASSIC = {'group.protocol': 'classic', 'partition.assignment.strategy': 'range', 'heartbeat.interval.ms': 200}


class Member:
    """A group member that polls on a thread of its own; what it has, what was taken from it, what it has seen."""

    def __init__(self, group, topics, how=NEXT, **config):
        self.seen, self.errors, self.owned, self.taken, self.stop = [], [], set(), set(), threading.Event()
        self.commits = queue.Queue()
        self.consumer = Consumer({'bootstrap.servers': B, 'group.id': group, 'enable.auto.commit': False,
                                  'auto.offset.reset': 'earliest', 'topic.metadata.refresh.interval.ms': 1000,
                                  **how, **config})
        self.consumer.subscribe(topics, on_assign=self.assigned, on_revoke=self.revoked, on_lost=self.revoked)
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def assigned(self, _consumer, parts):
        self.owned = self.owned | {(p.topic, p.partition) for p in parts}

    def revoked(self, _consumer, parts):
        self.owned = self.owned - {(p.topic, p.partition) for p in parts}
        self.taken = self.taken | {(p.topic, p.partition) for p in parts}

    def commit(self, offsets):
        """Commits on the member's own thread: beside a poll on another one the client waits for ever."""
        done = concurrent.futures.Future()
        self.commits.put((offsets, done))
        return done.result(30)

    def run(self):
        while not self.stop.is_set():
            while not self.commits.empty():
                offsets, done = self.commits.get()
                try:
                    how = {} if offsets is None else {'offsets': offsets}
                    done.set_result(self.consumer.commit(asynchronous=False, **how))
                except KafkaException as error:
                    # A member that has read nothing has nothing to commit.
                    nothing = error.args[0].code() == KafkaError._NO_OFFSET
                    done.set_result([]) if nothing else done.set_exception(error)
            m = self.consumer.poll(0.05)
            if m is None:
                continue
            if m.error():
                self.errors.append(str(m.error()))
            else:
                self.seen.append((m.partition(), m.value()))

    def leave(self):
        self.stop.set()
        self.thread.join(15)
        self.consumer.close()


class Members(list):
    """Members that leave at the end of a `with` block."""

    def join(self, *arguments, **config):
        self.append(Member(*arguments, **config))
        return self[-1]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for member in self:
            member.leave()


def shared_out(members, parts):
    """Every partition owned once, and nobody idle while there is enough for all."""
    owned = [p for m in members for p in m.owned]
    return len(owned) == len(set(owned)) == parts and all(m.owned for m in members)


def describe(group):
    return only(ADMIN.describe_consumer_groups([group]))


@suite.check
def joins_and_leaves():
    """members join and leave one by one, and only what must move moves"""
    name, group = topic(6), unique('g')
    with Members() as members:
        first = members.join(group, [name])
        eventually(lambda: shared_out(members, 6), 'one member to own all')
        second = members.join(group, [name])
        eventually(lambda: shared_out(members, 6), 'two members to share')
        equal(len(first.taken), 3, 'what the first gave up')
        third = members.join(group, [name])
        eventually(lambda: shared_out(members, 6), 'three members to share')
        equal((len(first.taken), len(second.taken)), (4, 1), 'what the others gave up for the third')
        for part in range(6):
            send(name, [b'%d' % i for i in range(10)], part)
        eventually(lambda: len({v for m in members for v in m.seen}) == 60, 'all records')
        members.remove(third)
        third.leave()
        eventually(lambda: shared_out(members, 6), 'two members after one left')
        equal((len(first.taken), len(second.taken)), (4, 1), 'nobody gives up anything for one that leaves')
        equal([e for m in members for e in m.errors], [], 'errors')


@suite.check
def commits():
    """a member commits with its epoch, goes on where it stopped, and the group's state is told"""
    name, group = topic(1), unique('g')
    send(name, [b'a', b'b', b'c'], 0)
    with Members() as members:
        member = members.join(group, [name])
        eventually(lambda: len(member.seen) == 3, 'three records')
        member.commit([TopicPartition(name, 0, 2)])
        got = describe(group)
        equal((got.state.name, got.type.name), ('STABLE', 'CONSUMER'), 'described')
    with Members() as members:
        member = members.join(group, [name])
        eventually(lambda: member.seen == [(0, b'c')], 'the third record alone')


@suite.check
def static_members():
    """a static member that restarts disturbs nobody and gets its partitions back"""
    name, group = topic(4), unique('g')
    with Members() as members:
        a = members.join(group, [name], **{'group.instance.id': 'a'})
        b = members.join(group, [name], **{'group.instance.id': 'b'})
        eventually(lambda: shared_out(members, 4), 'two members to share')
        had, taken = set(b.owned), set(a.taken)
        members.remove(b)
        b.leave()
        b = members.join(group, [name], **{'group.instance.id': 'b'})
        eventually(lambda: b.owned == had, 'b to have its partitions back')
        equal(a.taken, taken, 'what a had to give up')


@suite.check
def regular_expressions():
    """a regular expression is resolved by the broker, also for a topic that comes later"""
    prefix, group = unique('rx'), unique('g')
    topic(1, f'{prefix}-a')
    topic(1, unique('other'))
    with Members() as members:
        member = members.join(group, [f'^{prefix}-.*'])
        eventually(lambda: member.owned == {(f'{prefix}-a', 0)}, 'the topic that there is')
        topic(2, f'{prefix}-b')
        every = {(f'{prefix}-a', 0), (f'{prefix}-b', 0), (f'{prefix}-b', 1)}
        eventually(lambda: member.owned == every, 'the topic that came later', timeout=40)


@suite.check
def grows():
    """new partitions reach the members"""
    name, group = topic(1), unique('g')
    with Members() as members:
        member = members.join(group, [name])
        eventually(lambda: len(member.owned) == 1, 'one partition')
        only(ADMIN.create_partitions([NewPartitions(name, 3)]))
        eventually(lambda: len(member.owned) == 3, 'three partitions')


@suite.check
def death_of_a_member():
    """a member that is gone without a word is removed when its session ends, and others take over"""
    name, group = topic(4), unique('g')
    code = ("import sys; from confluent_kafka import Consumer\n"
            "c = Consumer({'bootstrap.servers': sys.argv[1], 'group.id': sys.argv[2], 'group.protocol': 'consumer'})\n"
            "c.subscribe([sys.argv[3]])\n"
            "while True:\n    c.poll(0.1)\n    print(len(c.assignment()), flush=True)\n")
    with Members() as members:
        member = members.join(group, [name])
        eventually(lambda: shared_out(members, 4), 'one member to own all')
        other = subprocess.Popen([sys.executable, '-c', code, B, group, name], stdout=subprocess.PIPE, text=True)
        try:
            eventually(lambda: other.stdout.readline().strip() == '2', 'the other to have two')
            other.kill()
            eventually(lambda: len(member.owned) == 4, 'one member to own all again')
        finally:
            other.kill()
            other.wait()


@suite.check
def upgrade_and_downgrade():
    """a live classic group becomes a consumer group and a classic one again, member by member, and every record is read"""
    name, group = topic(6), unique('g')
    sent, stop = [], threading.Event()

    def produce():
        producer = Producer({'bootstrap.servers': B, 'linger.ms': 5})
        while not stop.is_set():
            value = b'%d' % len(sent)
            producer.produce(name, value, partition=len(sent) % 6)
            sent.append(value)
            producer.poll(0)
            time.sleep(0.002)
        producer.flush(30)

    writer = threading.Thread(target=produce)
    seen = []
    with Members() as members:
        for _ in range(2):
            members.join(group, [name], how=CLASSIC)
        eventually(lambda: shared_out(members, 6), 'two classic members to share')
        equal(describe(group).type.name, 'CLASSIC', 'before')
        writer.start()
        try:
            for how, mixed, after in ((NEXT, 'CONSUMER', 'CONSUMER'), (CLASSIC, 'CONSUMER', 'CLASSIC')):
                for index in range(2):
                    members.join(group, [name], how=how)
                    eventually(lambda: shared_out(members, 6), 'three members of both kinds to share')
                    equal(describe(group).type.name, mixed, 'with members of both kinds')
                    old = members.pop(0)
                    # What it has read is committed, so that the next one goes on from there.
                    old.stop.set()
                    old.thread.join(15)
                    if old.owned:
                        old.consumer.commit(asynchronous=False)
                    seen += old.seen
                    old.consumer.close()
                    eventually(lambda: shared_out(members, 6), 'two members to share')
                eventually(lambda: describe(group).type.name == after, f'the group to be {after}')
        finally:
            stop.set()
            writer.join()
        everything = lambda: {v for _, v in seen} | {v for m in members for _, v in m.seen}  # noqa: E731
        eventually(lambda: everything() == set(sent), 'every record')
        equal([e for m in members for e in m.errors], [], 'errors')


def tool(name, *arguments, **options):
    command = ['java', '-Xmx256m', '-XX:TieredStopAtLevel=1', '-Dlog4j2.level=OFF', '-cp', installs.kafka_class_path(), name,
               '--bootstrap-server', B, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, **options)


@suite.check
def settings_of_a_group():
    """a group may have settings of its own, within the broker's bounds"""
    group = unique('g')

    def alter(name, value):
        entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
        only(ADMIN.incremental_alter_configs([ConfigResource(ResourceType.GROUP, group, incremental_configs=[entry])]))

    alter('consumer.session.timeout.ms', '5000')
    got = only(ADMIN.describe_configs([ConfigResource(ResourceType.GROUP, group)]))
    equal(got['consumer.session.timeout.ms'].value, '5000', 'described')
    for name, value in (('consumer.session.timeout.ms', '1'), ('consumer.heartbeat.interval.ms', '99999')):
        try:
            alter(name, value)
        except KafkaException as e:
            equal(e.args[0].name(), 'INVALID_CONFIG', name)
        else:
            raise AssertionError(f'{name}={value} was taken')


def tool(name, *arguments, **options):
    command = ['java', '-Xmx256m', '-XX:TieredStopAtLevel=1', '-Dlog4j2.level=OFF', '-cp', installs.kafka_class_path(), name,
               '--bootstrap-server', B, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, **options)


@suite.check
def java_tools():
    """Kafka's console consumer reads as a member of a consumer group, and Kafka's tool lists and describes that"""
    name, group = topic(3), unique('g')
    for part in range(3):
        send(name, [b'%d-%d' % (part, i) for i in range(10)], part)
    with tempfile.NamedTemporaryFile('w', suffix='.properties') as config:
        config.write('group.protocol=consumer\n')
        config.flush()
        read = tool('org.apache.kafka.tools.consumer.ConsoleConsumer', '--topic', name, '--group', group,
                    '--from-beginning', '--max-messages', '30', '--timeout-ms', '40000', '--command-config', config.name)
    equal(len(set(read.stdout.split())), 30, f'records read ({read.stderr[-300:]})')
    with Members() as members:
        members.join(group, [name])
        eventually(lambda: shared_out(members, 3), 'a member to own all')
        groups = 'org.apache.kafka.tools.consumer.group.ConsumerGroupCommand'
        listed = tool(groups, '--list', '--type', 'consumer', '--state', 'stable')
        line = next((x for x in listed.stdout.splitlines() if x.startswith(group)), listed.stdout + listed.stderr)
        equal(line.split()[1:], ['Consumer', 'Stable'], 'listed')
        state = tool(groups, '--describe', '--group', group, '--state', '--verbose').stdout
        assert 'uniform' in state and 'Stable' in state, state
        parts = tool(groups, '--describe', '--group', group).stdout
        equal(sum(x.split()[:2] == [group, name] and x.split()[5] == '0' for x in parts.splitlines()), 3, parts)
        shown = tool(groups, '--describe', '--group', group, '--members', '--verbose').stdout
        assert f'{name}:0,1,2' in shown, shown


@suite.check
def death_of_a_coordinator():
    """a coordinator is killed in the middle of a rebalance: no committed offset is lost, and the group settles"""
    if OWN:
        return
    name, group = topic(6), unique('g')
    for part in range(6):
        send(name, [b'%d' % i for i in range(20)], part)
    with Members() as members:
        for _ in range(2):
            members.join(group, [name])
        eventually(lambda: shared_out(members, 6), 'two members to share')
        # Each of what it owns itself: what one read before the other came is read again, and only then committed.
        have = lambda m: all((part, b'%d' % i) in m.seen for _, part in m.owned for i in range(20))  # noqa: E731
        eventually(lambda: all(have(m) for m in members), 'all records, each at who owns them')
        for member in members:
            member.commit(None)
        hash_code = 0
        for char in group:
            hash_code = (hash_code * 31 + ord(char)) & 0xFFFFFFFF
        hash_code = hash_code - (1 << 32) if hash_code >= 1 << 31 else hash_code
        node = CLUSTER.leader_of('__consumer_offsets', abs(hash_code) % 50)
        members.join(group, [name])
        CLUSTER.kill(node)
        try:
            eventually(lambda: shared_out(members, 6), 'three members to share', timeout=40)
            for part in range(6):
                send(name, [b'after-%d' % i for i in range(5)], part)
            eventually(lambda: len({v for m in members for v in m.seen}) == 150, 'what was sent after')
            again = [v for m in members[2:] for v in m.seen if not v[1].startswith(b'after')]
            equal(again, [], 'records that were committed and came again')
        finally:
            CLUSTER.start(node)
            CLUSTER.wait_ready()


if __name__ == '__main__':
    suite.main(close=CLUSTER.close if CLUSTER else lambda: None)
