"""Replicas that move and leaders that change: reassignments that grow, shrink and replace, those that a throttle holds up while they
are looked at, cancelled and replaced, preferred elections, and what producers and consumers are told behind them, by old and new
leader epochs."""
from .common import NOWHERE, create, some_assignment
from .held import Held

TIME = 1_600_000_000_000
NODES = (1, 2, 3)
# Seconds until a throttle that was taken away is forgotten by all, or a node that is gone is missed: 9 s at least, by Kafka.
PATIENCE = 90


def sequence(script, steps=7):
    state = Moves(script)
    for _ in range(2):
        for _ in range(steps):
            script.some(state.moves())()
        Held(state).play()
    state.look()


class Moves:
    """A topic of two partitions; who leads each, in which epoch, is what Kafka tells after each change."""

    def __init__(self, script, assignment=None, **configs):
        self.script, self.rng, self.made = script, script.rng, 0
        # Nodes that are not in sync because they do not run.
        self.down = ()
        self.configs = {'retention.ms': '-1', 'segment.ms': str(2**62), 'min.insync.replicas': '1', **configs}
        self.renew(assignment)

    def renew(self, assignment=None):
        """Another topic, without a past."""
        self.made += 1
        self.topic = create(self.script, f'§m{self.made}', assignment or some_assignment(self.rng, 2), self.configs.items())
        self.ends, self.batches, self.leaders, self.epochs = [0, 0], [0, 0], [0, 0], [0, 0]
        # Of the replicas: those that are on their way, and those that leave when they have come.
        self.adding, self.removing = [[], []], [[], []]
        self.settle()

    def moves(self):
        return [(self.move, 8), (self.elect, 4), (self.produce, 8), (self.fetch, 6), (self.list_offsets, 3), (self.epoch_ends, 4),
                (self.wrong_move, 3), (self.cancel, 1), (self.describe, 2)]

    def some_replicas(self):
        replicas = list(NODES)
        self.rng.shuffle(replicas)
        return replicas[:self.rng.choice([1, 2, 2, 3])]

    def partition(self):
        return self.rng.randrange(2)

    def leader(self, partition):
        return f'node:{self.leaders[partition]}'

    def alive(self):
        return [node for node in NODES if node not in self.down]

    def any_node(self):
        return f'node:{self.rng.choice(self.alive())}'

    def replicas(self, partition):
        return self.topic.assignment[partition]

    def in_sync(self, partition):
        return sorted(set(self.replicas(partition)) - set(self.adding[partition]) - set(self.down))

    # Changes.

    def settle(self, elected=None, note='', patience=PATIENCE):
        """Waits until each node knows where the replicas are, that all are in sync that can be, and who was elected; who leads is
        compared, too."""
        until = {f'Topics.0.Partitions.{p}.ReplicaNodes': self.replicas(p) for p in range(2)}
        until.update({f'Topics.0.Partitions.{p}.IsrNodes': self.in_sync(p) for p in range(2)})
        if elected is not None:
            until[f'Topics.0.Partitions.{elected}.LeaderId'] = self.replicas(elected)[0]
        note = note or ('away' if self.down else '')
        for node in self.alive():
            told = self.script.call('Metadata', {'Topics': [{'Name': self.topic.name}], 'AllowAutoTopicCreation': False},
                                    version=12,
                                    to=f'node:{node}',
                                    until=until,
                                    patience=patience,
                                    note=note)
            parts = told['Topics'][0]['Partitions']
            self.leaders, self.epochs = [p['LeaderId'] for p in parts], [p['LeaderEpoch'] for p in parts]
        for partition in range(2):
            self.wait_end(partition)

    def wait_end(self, partition):
        """Waits until the leader leads, and shows what all replicas have."""
        question = {
            'ReplicaId': -1, 'Topics': [{'Name': self.topic.name, 'Partitions': [{'PartitionIndex': partition, 'Timestamp': -1}]}]
        }
        until = {'Topics.0.Partitions.0.ErrorCode': 'NONE', 'Topics.0.Partitions.0.Offset': self.ends[partition]}
        self.script.call('ListOffsets', question, 2, self.leader(partition), until=until, patience=PATIENCE)

    def alter(self, name, partition, replicas, change_factor=True, to=None, note=''):
        part = {'PartitionIndex': partition, 'Replicas': replicas}
        body = {'Topics': [{'Name': name, 'Partitions': [part]}], 'TimeoutMs': 10_000, 'AllowReplicationFactorChange': change_factor}
        # Below 1 the factor may always change.
        version = None if change_factor else 1
        return self.script.call('AlterPartitionReassignments', body, version=version, to=to or self.any_node(), note=note)

    def wait_moved(self, partitions=(0, 1), note='', patience=PATIENCE):
        self.script.call('ListPartitionReassignments',
                         {'Topics': [{'Name': self.topic.name, 'PartitionIndexes': list(partitions)}], 'TimeoutMs': 10_000},
                         to=self.any_node(),
                         until={'Topics': []},
                         patience=patience,
                         note=note)

    def moved(self):
        """All replicas have come, and those that were to leave have left."""
        self.topic.assignment = [[r for r in self.replicas(p) if r not in self.removing[p]] for p in range(2)]
        self.adding, self.removing = [[], []], [[], []]

    def move(self):
        partition = self.partition()
        self.topic.assignment[partition] = self.some_replicas()
        self.alter(self.topic.name, partition, self.replicas(partition))
        self.wait_moved()
        self.settle()

    def wrong_move(self):
        partition = self.partition()
        here = [(self.topic.name, partition, replicas) for replicas in ([1, 9], [2, 2], [], [-1])]
        choices = [*here, (self.topic.name, 7, [1]), (NOWHERE, 0, [1])]
        if len(self.replicas(partition)) == 3 and self.rng.random() < 0.3:
            self.alter(self.topic.name, partition, [1, 2], change_factor=False)
        else:
            self.alter(*self.rng.choice(choices))
        self.settle()

    def cancel(self):
        """Of nothing that is under way."""
        self.alter(self.topic.name, self.partition(), None)

    def elect(self):
        partition = self.partition()
        kind = self.rng.choice([0, 0, 0, 1])
        answer = self.script.call('ElectLeaders', {
            'ElectionType': kind, 'TopicPartitions': [{'Topic': self.topic.name, 'Partitions': [partition]}], 'TimeoutMs': 10_000
        },
                                  # Below 1 every election is one of the preferred replica.
                                  version=self.rng.choice([1, 2]),
                                  to=self.any_node())
        done = [result['ErrorCode'] for topic in answer['ReplicaElectionResults'] for result in topic['PartitionResult']]
        self.settle(partition if kind == 0 and done == ['NONE'] else None)

    # What clients see of it.

    def epoch(self, partition):
        now = self.epochs[partition]
        return self.script.some([(-1, 3), (now, 5), (now - 1, 3), (now + 1, 1)])

    def produce(self, partition=None):
        partition = self.partition() if partition is None else partition
        to = self.script.some([(self.leader(partition), 6), (self.any_node(), 1)])
        batch = {'records': [{'key': 'k', 'value': 'v'}] * self.rng.choice([1, 2]), 'codec': 0, 'time': TIME}
        self.send(partition, batch, to)

    def send(self, partition, batch, to, note=''):
        answer = self.script.call('Produce', {
            'Acks': -1, 'TimeoutMs': 5000, 'TopicData': [{
                'Name': self.topic.name, 'TopicId': self.topic.id,
                'PartitionData': [{'Index': partition, 'Records': {'batches': [batch]}}]
            }]
        },
                                  to=to,
                                  note=note)
        told = answer['Responses'][0]['PartitionResponses'][0]
        if told['ErrorCode'] == 'NONE':
            self.ends[partition] = max(self.ends[partition], told['BaseOffset'] + len(batch['records']))
            self.batches[partition] += 1
        return told

    def fetch(self):
        partition = self.partition()
        offset = self.rng.randrange(self.ends[partition] + 1)
        part = {
            'Partition': partition, 'FetchOffset': offset, 'LogStartOffset': -1, 'PartitionMaxBytes': 2**20,
            'CurrentLeaderEpoch': self.epoch(partition),
            'LastFetchedEpoch': self.rng.choice([-1, -1, self.epochs[partition], max(0, self.epochs[partition] - 1)])
        }
        self.script.call('Fetch', {
            'MaxWaitMs': 0, 'MinBytes': 0, 'MaxBytes': 2**20,
            'Topics': [{'Topic': self.topic.name, 'TopicId': self.topic.id, 'Partitions': [part]}]
        },
                         to=self.leader(partition))

    def list_offsets(self):
        partition = self.partition()
        part = {'PartitionIndex': partition, 'CurrentLeaderEpoch': self.epoch(partition), 'Timestamp': self.rng.choice([-1, -2, -3])}
        self.script.call('ListOffsets', {
            'ReplicaId': -1, 'TimeoutMs': 1000, 'Topics': [{'Name': self.topic.name, 'Partitions': [part]}]
        },
                         to=self.leader(partition))

    def epoch_ends(self):
        partition = self.partition()
        part = {
            'Partition': partition, 'CurrentLeaderEpoch': self.epoch(partition),
            'LeaderEpoch': self.rng.randrange(self.epochs[partition] + 2)
        }
        self.script.call('OffsetForLeaderEpoch', {'ReplicaId': -1, 'Topics': [{'Topic': self.topic.name, 'Partitions': [part]}]},
                         to=self.leader(partition))

    def describe(self):
        self.script.call('DescribeTopicPartitions', {
            'Topics': [{'Name': self.topic.name}], 'Cursor': None, 'ResponsePartitionLimit': 2000
        }, to=self.any_node())

    def look(self):
        """All that was written, with the epochs that it was written in."""
        for partition in range(2):
            part = {'Partition': partition, 'FetchOffset': 0, 'LogStartOffset': -1, 'PartitionMaxBytes': 2**20}
            self.script.call('Fetch', {
                'MaxWaitMs': 0, 'MinBytes': 0, 'MaxBytes': 2**20,
                'Topics': [{'Topic': self.topic.name, 'TopicId': self.topic.id, 'Partitions': [part]}]
            },
                             to=self.leader(partition),
                             note='at the end')
        self.describe()
