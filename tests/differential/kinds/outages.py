"""Leaders that are killed or stopped, and come back: what is told, written and read meanwhile and afterwards, and reassignments to a
node that does not run.

A partition always has a replica in sync that runs: what becomes of one without is Ottla's own (docs/deviations.md).
"""
import itertools

from .common import some_assignment
from .moves import PATIENCE, Moves

# Seconds for what both come to at once, or one of them never.
PART = 10


def sequence(script, rounds=2, steps=5):
    state = Outages(script)
    for left in reversed(range(rounds)):
        state.some_steps(steps)
        state.lose()
        state.some_steps(steps)
        if not left and script.rng.random() < 0.5:
            state.part()
        state.come_back()
    state.some_steps(steps)
    state.look()


class Outages(Moves):
    """As moves, with a node that may be away, and a producer whose sequence goes on wherever the leader is."""

    def __init__(self, script):
        rng = script.rng
        super().__init__(script, some_assignment(rng, 2, rng.choice([2, 3])), **{'min.insync.replicas': rng.choice(['1', '2'])})
        self.min_isr = int(self.configs['min.insync.replicas'])
        script.call('InitProducerId', {'TransactionalId': None, 'TransactionTimeoutMs': 60_000}, bind={'p': 'ProducerId'})
        self.next, self.last = [0, 0], [None, None]

    def some_steps(self, steps):
        for _ in range(steps):
            self.script.some(self.moves())()

    def moves(self):
        return [(self.move, 4), (self.cancel, 2), (self.elect, 3), (self.produce, 3), (self.idempotent, 6), (self.fetch, 5),
                (self.list_offsets, 3), (self.epoch_ends, 4), (self.describe, 3), (self.list_moves, 2)]

    # Who is away.

    def in_sync(self, partition):
        return sorted(set(self.replicas(partition)) - set(self.down))

    def lose(self):
        """A node that leads, most of the time, without notice or with it."""
        self.widen()
        for partition in range(2):
            self.wait_followers(partition)
        partition = self.partition()
        node = self.rng.choice([self.leaders[partition], self.leaders[partition], self.rng.choice(self.replicas(partition))])
        self.script.node(self.rng.choice(['kill', 'kill', 'stop']), node)
        self.down = (node, )
        self.settle()

    def come_back(self):
        self.script.node('start', *self.down)
        self.down = ()
        self.wait_moved()
        self.moved()
        self.settle()

    def widen(self):
        """Before a node may go, each partition has another one."""
        for partition in range(2):
            if len(self.replicas(partition)) < 2:
                others = [node for node in self.alive() if node not in self.replicas(partition)]
                self.reassign(partition, [*self.replicas(partition), self.rng.choice(others)])

    def wait_followers(self, partition):
        """Who may lead next shows all that was acknowledged: below min.insync.replicas a leader's high watermark stays where it was."""
        part = {'Partition': partition, 'FetchOffset': 0, 'LogStartOffset': -1, 'PartitionMaxBytes': 2**20}
        for node in self.in_sync(partition):
            self.script.call('Fetch', {
                'MaxWaitMs': 0, 'MinBytes': 0, 'MaxBytes': 2**20,
                'Topics': [{'Topic': self.topic.name, 'TopicId': self.topic.id, 'Partitions': [part]}]
            },
                             version=13,
                             to=f'node:{node}',
                             until={'Responses.0.Partitions.0.HighWatermark': self.ends[partition]},
                             patience=PATIENCE)

    # What is asked.

    def move(self):
        """While a node is away, only so that somebody in sync stays, one at a time, and where both clusters do the same."""
        partition, target = self.partition(), self.some_replicas()
        if self.may(partition, target) and not self.differs(partition, target):
            self.reassign(partition, target)

    def may(self, partition, target):
        return not self.adding[partition] and not self.removing[partition] and set(target) & set(self.in_sync(partition))

    def differs(self, partition, target):
        """Why one cluster would wait for a node that is away and not to be added, and the other one not."""
        before, away = set(self.replicas(partition)), set(target) & set(self.down)
        adding, removing = set(target) - before, before - set(target)
        if not away or away & adding or not removing:
            return ''
        if len(removing) > len(adding):
            return 'shrinks onto one that is away'
        return 'leaves too few in sync' if len(target) - len(away) < min(self.min_isr, len(target)) else ''

    def part(self):
        """What only one of the two waits for."""
        targets = [list(t) for n in (1, 2, 3) for t in itertools.permutations((1, 2, 3), n)]
        odd = [(p, t, self.differs(p, t)) for p in range(2) for t in targets if self.may(p, t) and self.differs(p, t)]
        if odd:
            self.reassign(*self.rng.choice(odd), patience=PART)

    def reassign(self, partition, target, note='', patience=PATIENCE):
        """Done when those who come are in sync, and all of them where more leave: with one who is away, when it is back."""
        before = self.replicas(partition)
        self.alter(self.topic.name, partition, target, note=note)
        self.topic.assignment[partition] = target
        adding, removing = sorted(set(target) - set(before)), sorted(set(before) - set(target))
        if set(adding) & set(self.down) or len(removing) > len(adding) and set(target) & set(self.down):
            self.adding[partition], self.removing[partition] = adding, removing
            self.topic.assignment[partition] = target + removing
        else:
            self.wait_moved([partition], note, patience)
        self.settle(note=note, patience=patience)

    def cancel(self):
        """Of what waits for a node that is away, or of nothing."""
        partition = self.partition()
        self.alter(self.topic.name, partition, None)
        self.topic.assignment[partition] = [r for r in self.replicas(partition) if r not in self.adding[partition]]
        self.adding[partition], self.removing[partition] = [], []
        self.settle()

    def list_moves(self):
        self.script.call('ListPartitionReassignments',
                         {'Topics': [{'Name': self.topic.name, 'PartitionIndexes': [0, 1]}], 'TimeoutMs': 10_000},
                         to=self.any_node())

    def idempotent(self):
        """Batches of this time: a broker of Kafka's that starts forgets producers whose last batch says that it is a day old."""
        partition = self.partition()
        how = self.script.some([('next', 6), ('again', 4 if self.last[partition] else 0), ('gap', 1)])
        batch = {
            'records': [{'key': 'k', 'value': 'v'}] * self.rng.choice([1, 2]), 'codec': 0, 'time': {'now': 0},
            'producer': {'$': 'p'}, 'epoch': 0, 'sequence': self.next[partition] + (5 if how == 'gap' else 0)
        }
        batch = self.last[partition] if how == 'again' else batch
        told = self.send(partition, batch, self.leader(partition), how)
        if told['ErrorCode'] == 'NONE' and how != 'again':
            self.last[partition], self.next[partition] = batch, batch['sequence'] + len(batch['records'])
