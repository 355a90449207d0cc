"""Reassignments that a throttle holds up: so they are under way for as long as they are looked at, cancelled and replaced.

A replica that is throttled to a byte a second gets one batch and waits for ten seconds and more: with a few batches in the log it
does not come before the throttle is gone. Whoever is in sync is not throttled, so that producers go on.
"""
from .common import NOWHERE

LEADER, FOLLOWER = 'leader.replication.throttled', 'follower.replication.throttled'
NODES = (1, 2, 3)
TOPIC, BROKER = 2, 4
SET, DELETE, APPEND, SUBTRACT = 0, 1, 2, 3
BATCHES = 8


class Held:
    """The throttle, and the partitions that it is meant for."""

    def __init__(self, moves):
        self.all, self.script, self.rng = moves, moves.script, moves.rng
        # What is set: {(type, name of the resource, name): value}.
        self.set = {}

    def play(self):
        self.prepare()
        self.throttle()
        for partition in self.partitions:
            self.go(partition, self.target(partition))
        for _ in range(self.rng.choice([4, 5, 6])):
            self.script.some(self.moves())()
        replaced = self.replace() if self.rng.random() < 0.6 else None
        if replaced is not None:
            self.part(replaced)
        else:
            self.lift()
            self.all.wait_moved()
            self.all.moved()
            self.all.settle()
        for kind, name, config in list(self.set):
            self.alter(kind, name, config, DELETE)
        self.all.elect()

    def moves(self):
        return [(self.look, 4), (self.cancel, 3), (self.again, 2), (self.shrink, 1), (self.wrong, 3), (self.describe, 2),
                (self.configure, 2), (self.all.elect, 2), (self.all.produce, 4), (self.all.fetch, 2), (self.all.list_offsets, 1),
                (self.all.epoch_ends, 1), (self.all.describe, 2)]

    # How it begins and ends.

    def prepare(self):
        """Some partition has a node that may be added, and a log that does not come with one fetch."""
        self.partitions = [p for p in range(2) if len(self.all.replicas(p)) < 3]
        if not self.partitions:
            partition = self.all.partition()
            self.all.topic.assignment[partition] = self.all.replicas(partition)[:self.rng.choice([1, 2])]
            self.all.alter(self.all.topic.name, partition, self.all.replicas(partition))
            self.all.wait_moved()
            self.all.settle()
            self.partitions = [partition]
        for partition in self.partitions:
            while self.all.batches[partition] < BATCHES:
                self.all.produce(partition)

    def throttle(self):
        """Of the followers only those that are to come: Kafka throttles one that is in sync, too, after a change of the leader."""
        sides = self.rng.choice([[LEADER], [FOLLOWER], [LEADER, FOLLOWER]])
        brokers = self.rng.choice([[''], [str(node) for node in NODES]])
        pairs = [(p, node) for p in self.partitions for node in NODES]
        coming = [(p, node) for p, node in pairs if node not in self.all.replicas(p)]
        for side in sides:
            listed = ','.join(f'{p}:{node}' for p, node in (pairs if side == LEADER else coming))
            everyone = side == LEADER and self.rng.random() < 0.5
            self.alter(TOPIC, self.all.topic.name, f'{side}.replicas', SET, '*' if everyone else listed)
            for broker in brokers:
                self.alter(BROKER, broker, f'{side}.rate', SET, self.rng.choice(['1', '1', '0']))

    def alter(self, kind, name, config, operation, value=None, note=''):
        """A broker is asked about its own."""
        configs = [{'Name': config, 'ConfigOperation': operation, 'Value': value}]
        body = {'Resources': [{'ResourceType': kind, 'ResourceName': name, 'Configs': configs}]}
        to = f'node:{name}' if kind == BROKER and name else self.all.any_node()
        answer = self.script.call('IncrementalAlterConfigs', body, to=to, note=note)
        if answer['Responses'][0]['ErrorCode'] != 'NONE':
            return
        if operation == SET:
            self.set[kind, name, config] = value
        elif operation == DELETE:
            self.set.pop((kind, name, config), None)

    def lift(self):
        """No rates, rates that hold up nobody, no replicas: each ends it."""
        how = self.rng.choice(['rates', 'high rates', 'replicas', 'no replicas'])
        for kind, name, config in list(self.set):
            if how.endswith('rates') and kind == BROKER or how.endswith('replicas') and kind == TOPIC:
                value = {'high rates': '1000000000', 'no replicas': ''}.get(how)
                self.alter(kind, name, config, DELETE if value is None else SET, value)

    # What is asked of reassignments under way.

    def target(self, partition):
        """Some replicas, of which at least one has to come."""
        while True:
            target = self.all.some_replicas()
            if set(target) - set(self.all.replicas(partition)):
                return target

    def go(self, partition, target, note=''):
        """Asks for it, and lists where that is decided: Kafka's answer is what the others are waited for."""
        to = self.all.any_node()
        self.all.alter(self.all.topic.name, partition, target, to=to, note=note)
        under_way = self.list(to, note).get(partition)
        if under_way:
            self.all.topic.assignment[partition] = under_way['Replicas']
            self.all.adding[partition], self.all.removing[partition] = under_way['AddingReplicas'], under_way['RemovingReplicas']
        elif target is not None:
            self.all.topic.assignment[partition] = target
            self.all.adding[partition], self.all.removing[partition] = [], []
        if not note:
            self.all.settle()

    def list(self, to, note=''):
        """{partition: what is told of it}"""
        body = {'Topics': [{'Name': self.all.topic.name, 'PartitionIndexes': [0, 1]}], 'TimeoutMs': 10_000}
        answer = self.script.call('ListPartitionReassignments', body, to=to, note=note)
        return {part['PartitionIndex']: part for topic in answer['Topics'] for part in topic['Partitions']}

    def look(self):
        indexes = self.rng.choice([[0], [1], [0, 1], [1, 1], [7], []])
        mine = {'Name': self.all.topic.name, 'PartitionIndexes': indexes}
        topics = self.rng.choice([None, None, [], [mine], [mine, {'Name': NOWHERE, 'PartitionIndexes': [0]}]])
        self.script.call('ListPartitionReassignments', {'Topics': topics, 'TimeoutMs': 10_000},
                         to=self.all.any_node(),
                         note='twice' if topics and indexes == [1, 1] else '')

    def cancel(self):
        """Of what is under way, most of the time: the other partition may not be, or not any more."""
        partition = self.all.partition()
        self.all.topic.assignment[partition] = [r for r in self.all.replicas(partition) if r not in self.all.adding[partition]]
        self.all.adding[partition], self.all.removing[partition] = [], []
        self.go(partition, None)

    def current_target(self, partition):
        return [r for r in self.all.replicas(partition) if r not in self.all.removing[partition]]

    def again(self):
        partition = self.all.partition()
        self.go(partition, self.current_target(partition))

    def shrink(self):
        """What adds nobody is done at once."""
        partition = self.all.partition()
        if self.all.adding[partition]:
            return
        before = self.all.in_sync(partition)
        self.rng.shuffle(before)
        self.go(partition, before[:self.rng.choice([1, 2, 2])])

    def wrong(self):
        name, partition = self.all.topic.name, self.all.partition()
        choices = [(name, partition, [1, 9]), (name, partition, [2, 2]), (name, partition, []), (name, 7, None), (name, -1, None),
                   (NOWHERE, 0, None), (NOWHERE, 0, [1])]
        self.all.alter(*self.rng.choice(choices))
        self.all.settle()

    def replace(self):
        """By another target, while one is under way; the partition where Kafka does something else than KIP-455 says."""
        partition = self.rng.choice(self.partitions)
        before, target = set(self.all.in_sync(partition)), self.all.some_replicas()
        if not self.all.adding[partition] or set(target) == set(self.current_target(partition)):
            return None
        adding, removing = sorted(set(target) - before), sorted(before - set(target))
        self.go(partition, target, 'replaced')
        if (self.all.adding[partition], self.all.removing[partition]) != (adding, removing if adding else []):
            return partition
        self.all.settle()
        return None

    def part(self, partition):
        """The clusters hold different replicas until it is done. It is cancelled or done, and the next topic begins anew."""
        topic = self.all.topic.name
        # Kafka never ends one that waits for a replica that it is removing; where nobody else is to come, there is none any more.
        stuck = set(self.all.adding[partition]) & set(self.all.removing[partition])
        if stuck and not set(self.current_target(partition)) & set(self.all.adding[partition]):
            pass
        elif stuck or self.rng.random() < 0.5:
            to = self.all.any_node()
            self.all.alter(topic, partition, None, to=to, note='replaced')
            self.list(to, 'replaced')
        else:
            self.lift()
            self.all.wait_moved()
            self.all.moved()
            self.all.settle(note='replaced')
        self.script.call('DeleteTopics', {'TopicNames': [topic], 'TimeoutMs': 10_000}, version=5)
        self.script.settle({topic: None})
        self.set = {key: value for key, value in self.set.items() if key[0] == BROKER}
        self.all.renew()

    # The throttle's configs.

    def configure(self):
        """More replicas, which are not there; rates that are none."""
        name = self.all.topic.name
        if self.rng.random() < 0.5:
            config = self.rng.choice([LEADER, FOLLOWER]) + '.replicas'
            if self.set.get((TOPIC, name, config), '*') != '*':
                self.alter(TOPIC, name, config, APPEND, '7:1')
                self.alter(TOPIC, name, config, SUBTRACT, '7:1')
            return self.alter(TOPIC, name, config, SET, self.rng.choice(['x', '0:', '0:1:2', '0']))
        broker = self.rng.choice(['', '1', '2'])
        return self.alter(BROKER, broker, self.rng.choice([LEADER, FOLLOWER]) + '.rate', SET, self.rng.choice(['-1', 'x', '1.5', '']),
                          'a rate that is none')

    def describe(self):
        """One of those that are set, as each node tells it once it knows."""
        kind, name, config = self.rng.choice(list(self.set))
        body = {'Resources': [{'ResourceType': kind, 'ResourceName': name, 'ConfigurationKeys': [config]}], 'IncludeSynonyms': True}
        for node in [int(name)] if kind == BROKER and name else NODES:
            self.script.call('DescribeConfigs', body, to=f'node:{node}',
                             until={'Results.0.Configs.0.Value': self.set[kind, name, config]})
