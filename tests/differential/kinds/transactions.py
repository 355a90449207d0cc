"""Transactions: who a producer is, what it adds, how it ends, and everybody who comes too late or too early."""
from .common import NOWHERE, create

TIME = 1_600_000_000_000
GROUP = '§tg'


def sequence(script, steps=32):
    state = Transactions(script)
    for _ in range(steps):
        script.some(state.moves())()
    state.look()


class Owner:
    """A transactional id: the producer id and epoch that its client was told last, and what it has written in the transaction.

    `v2` is whether its client uses transactions of version 2, by the versions of its requests."""

    def __init__(self, number, v2):
        self.id, self.bound, self.times, self.epoch, self.v2 = f'§x{number}', None, 0, -1, v2
        self.open, self.next = False, {}

    @property
    def producer(self):
        return {'$': self.bound} if self.bound else 4711

    def epoch_plus(self, more):
        """Its epoch and so many more; of an id that never was, 0."""
        return {'$': f'{self.bound} epoch', 'plus': more} if self.bound else 0


class Transactions:
    """Two transactional ids on two topics and a group."""

    def __init__(self, script):
        self.script, self.rng = script, script.rng
        self.topics = [
            create(script, '§t1', [[1, 2, 3], [2, 3, 1]], [('retention.ms', '-1'), ('segment.ms', str(2**62))]),
            create(script, '§t2', [[3, 1, 2]], [('retention.ms', '-1'), ('segment.ms', str(2**62))])
        ]
        self.owners = [Owner(n, self.rng.random() < 0.6) for n in (1, 2)]

    def moves(self):
        return [(self.init, 5), (self.recover, 3), (self.add_partitions, 5), (self.produce, 7), (self.add_offsets, 3),
                (self.commit_offsets, 4), (self.end, 7), (self.describe, 3), (self.list, 1), (self.producers, 2), (self.fetch, 3),
                (self.offsets, 2), (self.markers, 1)]

    def owner(self):
        return self.rng.choice(self.owners)

    def to(self, owner):
        return f'txn:{owner.id}'

    def who(self, owner):
        """A producer id and an epoch, mostly the right ones."""
        now = owner.epoch_plus(0)
        return self.script.some([((owner.producer, now, ''), 12),
                                 ((owner.producer, owner.epoch_plus(-1) if owner.epoch > 0 else now, 'epoch before'), 1),
                                 ((owner.producer, owner.epoch_plus(1), 'epoch ahead'), 1), ((4711, now, 'another producer'), 1),
                                 ((-1, -1, 'no producer'), 1)])

    def version(self, owner, api):
        """A version of the generation that the owner's client is of."""
        old, new = {
            'AddPartitionsToTxn': ([0, 1, 2, 3], [0, 1, 2, 3]), 'AddOffsetsToTxn': ([0, 1, 2,
                                                                                     3], [4]), 'EndTxn': ([0, 1, 2, 3, 4], [5]),
            'TxnOffsetCommit': ([0, 2, 3, 4], [5]), 'InitProducerId': ([3, 4, 5], [3, 4, 5]), 'Produce': ([3, 8, 9, 10, 11], [12])
        }[api]
        return self.rng.choice(new if owner.v2 else old)

    def binding(self, name):
        return {name: 'ProducerId', f'{name} epoch': 'ProducerEpoch'}

    # Who one is.

    def init(self, owner=None):
        owner = owner or self.owner()
        owner.times += 1
        name = f'{owner.id[1:]} {owner.times}'
        timeout, note = self.script.some([((60_000, ''), 12), ((0, 'no timeout'), 1), ((-1, 'negative timeout'), 1),
                                          ((2**31 - 1, 'long timeout'), 1)])
        answer = self.script.call('InitProducerId', {'TransactionalId': owner.id, 'TransactionTimeoutMs': timeout},
                                  self.rng.choice([0, 1, 2, 3, 4, 5]),
                                  self.to(owner),
                                  bind=self.binding(name),
                                  note=note)
        self.took(owner, name, answer)

    def took(self, owner, name, answer):
        if answer.get('ErrorCode') == 'NONE':
            owner.bound, owner.epoch, owner.open, owner.next = name, self.script.target.bound[f'{name} epoch'], False, {}
        elif answer.get('ErrorCode') == 'CONCURRENT_TRANSACTIONS':
            self.settle(owner)
            owner.open = False

    def settle(self, owner):
        """Waits until what was prepared is complete: until then everything is answered with CONCURRENT_TRANSACTIONS."""
        self.script.step({'complete': owner.id})

    def recover(self):
        """InitProducerId of a producer that says who it was (KIP-360)."""
        owner = self.owner()
        producer, epoch, note = self.who(owner)
        owner.times += 1
        name = f'{owner.id[1:]} {owner.times}'
        body = {
            'TransactionalId': self.script.some([(owner.id, 12), ('', 1)]), 'TransactionTimeoutMs': 60_000,
            'ProducerId': producer, 'ProducerEpoch': epoch
        }
        answer = self.script.call('InitProducerId',
                                  body,
                                  self.rng.choice([3, 4, 5]),
                                  self.to(owner),
                                  bind=self.binding(name),
                                  note=f'again {note}')
        self.took(owner, name, answer)

    # What belongs to a transaction.

    def add_partitions(self):
        owner = self.owner()
        producer, epoch, note = self.who(owner)
        topic = self.rng.choice(self.topics)
        names = self.script.some([([(topic.name, [0])], 8), ([(topic.name, list(range(len(topic.assignment))))], 3),
                                  ([(NOWHERE, [0])], 1), ([(topic.name, [0]), (NOWHERE, [0])], 1), ([(topic.name, [9])], 1)])
        body = {
            'V3AndBelowTransactionalId': owner.id, 'V3AndBelowProducerId': producer, 'V3AndBelowProducerEpoch': epoch,
            'V3AndBelowTopics': [{'Name': n, 'Partitions': p} for n, p in names]
        }
        answer = self.script.call('AddPartitionsToTxn',
                                  body,
                                  self.version(owner, 'AddPartitionsToTxn'),
                                  self.to(owner),
                                  note=note)
        codes = {p['PartitionErrorCode'] for t in answer.get('ResultsByTopicV3AndBelow', ()) for p in t['ResultsByPartition']}
        owner.open |= codes == {'NONE'}
        if 'CONCURRENT_TRANSACTIONS' in codes:
            self.settle(owner)

    def produce(self):
        owner = self.owner()
        producer, epoch, note = self.who(owner)
        if producer == -1:
            producer, epoch = owner.producer, owner.epoch_plus(0)
        topic = self.rng.choice(self.topics)
        partition = self.rng.randrange(len(topic.assignment))
        now = owner.next.get((topic.name, partition), 0)
        sequence = self.script.some([(now, 8), (now + 3, 1)])
        batch = {
            'records': [{'key': 'k', 'value': 'v'}], 'time': TIME, 'producer': producer, 'epoch': epoch, 'sequence': sequence,
            'attributes': 0x10
        }
        transactional_id = self.script.some([(owner.id, 10), (self.owners[0].id, 1), (None, 1)])
        body = {
            'TransactionalId': transactional_id, 'Acks': -1, 'TimeoutMs': 5000, 'TopicData': [{
                'Name': topic.name, 'TopicId': topic.id, 'PartitionData': [{'Index': partition, 'Records': {'batches': [batch]}}]
            }]
        }
        version = self.version(owner, 'Produce')
        note = ', '.join(x for x in (note, 'gap' if sequence != now else '', f'v{1 + owner.v2}') if x)
        answer = self.script.call('Produce', body, version, topic.leader(partition), note=note)
        code = answer['Responses'][0]['PartitionResponses'][0]['ErrorCode'] if answer.get('Responses') else None
        if code == 'NONE' and sequence == now:
            owner.next[topic.name, partition] = now + 1
            owner.open = True

    def add_offsets(self):
        owner = self.owner()
        producer, epoch, note = self.who(owner)
        body = {
            'TransactionalId': owner.id, 'ProducerId': producer, 'ProducerEpoch': epoch, 'GroupId': self.script.some([(GROUP, 8),
                                                                                                                      ('', 1)])
        }
        answer = self.script.call('AddOffsetsToTxn', body, self.version(owner, 'AddOffsetsToTxn'), self.to(owner), note=note)
        owner.open |= answer.get('ErrorCode') == 'NONE'
        if answer.get('ErrorCode') == 'CONCURRENT_TRANSACTIONS':
            self.settle(owner)

    def commit_offsets(self):
        owner = self.owner()
        producer, epoch, note = self.who(owner)
        topic = self.rng.choice([self.topics[0].name, self.topics[0].name, NOWHERE])
        member = self.script.some([({}, 8), ({'GenerationId': 3, 'MemberId': '§nobody'}, 1),
                                   ({'MemberId': '§nobody'}, 1)]) if not owner.v2 or self.rng.random() < 0.9 else {}
        body = {
            'TransactionalId': owner.id, 'GroupId': GROUP, 'ProducerId': producer, 'ProducerEpoch': epoch, 'MemberId': '',
            **member, 'Topics': [{
                'Name': topic, 'Partitions': [{
                    'PartitionIndex': 0, 'CommittedOffset': self.rng.randrange(50),
                    'CommittedMetadata': self.rng.choice(['', 'm', None, 'x' * 4097])
                }]
            }]
        }
        version = self.version(owner, 'TxnOffsetCommit')
        answer = self.script.call('TxnOffsetCommit', body, version, f'group:{GROUP}', note=note)
        code = answer['Topics'][0]['Partitions'][0]['ErrorCode'] if answer.get('Topics') else None
        owner.open |= code == 'NONE'

    # How it ends.

    def end(self):
        owner = self.owner()
        producer, epoch, note = self.who(owner)
        body = {
            'TransactionalId': self.script.some([(owner.id, 15), ('', 1)]), 'ProducerId': producer, 'ProducerEpoch': epoch,
            'Committed': self.rng.random() < 0.6
        }
        version = self.version(owner, 'EndTxn')
        owner.times += 1
        name = f'{owner.id[1:]} {owner.times}'
        answer = self.script.call('EndTxn',
                                  body,
                                  version,
                                  self.to(owner),
                                  note=f'v{1 + owner.v2} {note}',
                                  bind=self.binding(name) if version >= 5 else {})
        if answer.get('ErrorCode') in ('NONE', 'CONCURRENT_TRANSACTIONS'):
            self.settle(owner)
        if answer.get('ErrorCode') == 'NONE':
            owner.open = False
            if version >= 5 and self.script.target.bound[f'{name} epoch'] >= 0:
                owner.bound, owner.epoch, owner.next = name, self.script.target.bound[f'{name} epoch'], {}
            if self.rng.random() < 0.3:
                again = {**body, 'Committed': self.rng.choice([body['Committed'], not body['Committed']])}
                self.script.call('EndTxn',
                                 again,
                                 version,
                                 self.to(owner),
                                 note=f'v{1 + owner.v2} once more, {"the same" if again == body else "the other way"}')
                self.settle(owner)

    # What is to be seen.

    def describe(self):
        owner = self.owner()
        self.script.call('DescribeTransactions', {'TransactionalIds': [self.script.some([(owner.id, 8), ('', 1)])]}, 0,
                         self.to(owner))

    def list(self):
        owner = self.owner()
        body = {
            'StateFilters': self.rng.choice([[], ['Ongoing'], ['CompleteCommit', 'nonsense'], ['ongoing']]),
            'DurationFilter': self.rng.choice([-1, -1, 0, 10**9])
        }
        if self.rng.random() < 0.5:
            body['ProducerIdFilters'] = [owner.producer]
        if self.rng.random() < 0.4:
            body['TransactionalIdPattern'] = self.rng.choice(['', '§x.*', '§x1', '('])
        self.script.call('ListTransactions', body, to=self.to(owner))

    def producers(self):
        topic = self.rng.choice(self.topics)
        partition = self.rng.randrange(len(topic.assignment))
        self.script.call(
            'DescribeProducers',
            {'Topics': [{'Name': self.script.some([(topic.name, 9), (NOWHERE, 1)]), 'PartitionIndexes': [partition]}]}, 0,
            topic.leader(partition))

    def fetch(self, note=''):
        topic = self.rng.choice(self.topics)
        partition = self.rng.randrange(len(topic.assignment))
        body = {
            'MaxWaitMs': 0, 'MinBytes': 0, 'MaxBytes': 2**20, 'IsolationLevel': self.rng.choice([0, 1]), 'Topics': [{
                'Topic': topic.name, 'TopicId': topic.id,
                'Partitions': [{'Partition': partition, 'FetchOffset': 0, 'LogStartOffset': -1, 'PartitionMaxBytes': 2**20}]
            }]
        }
        self.script.call('Fetch', body, self.rng.choice([4, 11, 12, 13, 17]), topic.leader(partition), note=note)
        question = {
            'ReplicaId': -1, 'IsolationLevel': self.rng.choice([0, 1]),
            'Topics': [{'Name': topic.name, 'Partitions': [{'PartitionIndex': partition, 'Timestamp': -1}]}]
        }
        self.script.call('ListOffsets', question, self.rng.choice([2, 5, 8]), topic.leader(partition), note=note)

    def offsets(self):
        body = {'GroupId': GROUP, 'Topics': [{'Name': '§t1', 'PartitionIndexes': [0]}], 'RequireStable': self.rng.random() < 0.5}
        self.script.call('OffsetFetch', body, self.rng.choice([5, 6, 7]), f'group:{GROUP}')

    def markers(self):
        """What only brokers ask of each other, asked by a client."""
        owner = self.owner()
        topic = self.topics[0]
        self.script.call('WriteTxnMarkers', {
            'Markers': [{
                'ProducerId': owner.producer, 'ProducerEpoch': owner.epoch_plus(0), 'TransactionResult': False,
                'CoordinatorEpoch': 0, 'Topics': [{'Name': topic.name, 'PartitionIndexes': [self.rng.choice([0, 9])]}]
            }]
        },
                         1,
                         topic.leader(0),
                         note='by a client')

    def look(self):
        for owner in self.owners:
            self.settle(owner)
            self.script.call('DescribeTransactions', {'TransactionalIds': [owner.id]}, 0, self.to(owner), note='at the end')
        for _ in range(3):
            self.fetch(note='at the end')
