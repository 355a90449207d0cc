"""Produce, Fetch with and without sessions, ListOffsets, OffsetForLeaderEpoch, DeleteRecords: right, and wrong in one thing."""
from .common import NO_ID, NOWHERE, STRANGER, create

TIME = 1_600_000_000_000
SHAPES = [(), (), (), [('message.timestamp.type', 'LogAppendTime')], [('cleanup.policy', 'compact')],
          [('max.message.bytes', '400')], [('compression.type', 'gzip')], [('compression.type', 'uncompressed')],
          [('message.timestamp.before.max.ms', '86400000')], [('min.insync.replicas', '3')]]


def sequence(script, steps=40):
    state = Data(script)
    for _ in range(steps):
        script.some(state.moves())()
    state.look()
    state.part()


class Producer:
    """An idempotent producer as its client sees it: the next sequence of each partition."""

    def __init__(self, name):
        self.name, self.epoch, self.next, self.last = name, 0, {}, None

    @property
    def id(self):
        return {'$': self.name}


class Data:
    """Two topics, their producers, and the fetch sessions that are open."""

    def __init__(self, script):
        self.script, self.rng = script, script.rng
        shape = self.rng.choice(SHAPES)
        self.main = create(script, '§t1', [[1, 2, 3], [2, 3, 1]], [('retention.ms', '-1'), ('segment.ms', str(2**62)), *shape])
        self.side = create(script, '§t2', [[1]], [('retention.ms', '-1'), ('segment.ms', str(2**62)),
                                                  ('min.insync.replicas', '1')])
        self.topics = [self.main, self.side]
        self.ends = {(t.name, p): 0 for t in self.topics for p in range(len(t.assignment))}
        self.producers, self.sessions = [], []

    def moves(self):
        return [(self.produce, 8), (self.idempotent, 8), (self.wrong, 8), (self.strange, 2), (self.no_acks, 1), (self.fetch, 8),
                (self.session, 8), (self.list_offsets, 5), (self.epochs, 3), (self.delete_records, 1), (self.new_producer, 1),
                (self.wrong_place, 2)]

    def place(self):
        topic = self.rng.choice([self.main, self.main, self.side])
        return topic, self.rng.randrange(len(topic.assignment))

    def end(self, topic, partition):
        return self.ends[topic.name, partition]

    # Produce.

    def send(self, topic, partition, batches, to=None, acks=None, version=None, note='', name=None, identity=None, **more):
        """One Produce with one partition; keeps the log end that the answer tells. The partition's answer."""
        records = batches if batches is None or isinstance(batches, dict) else {'batches': batches}
        acks = self.rng.choice([-1, -1, -1, 1]) if acks is None else acks
        body = {
            'Acks': acks, 'TimeoutMs': 5000, 'TopicData': [{
                'Name': name or topic.name, 'TopicId': identity or topic.id,
                'PartitionData': [{'Index': partition, 'Records': records}]
            }], **more
        }
        answer = self.script.call('Produce', body, version, to or topic.leader(partition), note=note)
        told = answer.get('Responses') and answer['Responses'][0]['PartitionResponses'][0]
        if told and told['ErrorCode'] == 'NONE' and acks != 0 and records is not None:
            self.ends[topic.name, partition] = max(self.end(topic, partition),
                                                   told['BaseOffset'] + len(batches[0].get('records', [{}])))
        if acks == 1:
            self.wait_end(topic, partition)
        return told

    def wait_end(self, topic, partition):
        """A fetch and a lookup see what all replicas have: waited for where a produce did not."""
        question = {
            'ReplicaId': -1, 'Topics': [{'Name': topic.name, 'Partitions': [{'PartitionIndex': partition, 'Timestamp': -1}]}]
        }
        self.script.call('ListOffsets',
                         question,
                         2,
                         topic.leader(partition),
                         until={'Topics.0.Partitions.0.Offset': self.end(topic, partition)})

    def records(self, count=None):
        count = count or self.rng.choice([1, 1, 2, 3])
        return [{
            'key': self.rng.choice(['a', 'b', 'c']), 'value': self.rng.choice(['', 'x', 'hello', None]),
            'delta': self.rng.choice([0, 0, 1, 7]), 'headers': self.rng.choice([[], [], [['h', '1'], ['h', None]]])
        } for _ in range(count)]

    def batch(self, **more):
        return {
            'records': self.records(), 'codec': self.rng.choice([0, 0, 1]), 'time': TIME + self.rng.randrange(0, 1000), **more
        }

    def produce(self):
        topic, partition = self.place()
        self.send(topic, partition, [self.batch()])

    def new_producer(self):
        producer = Producer(f'p{len(self.producers) + 1}')
        self.script.call('InitProducerId', {'TransactionalId': None, 'TransactionTimeoutMs': 60_000},
                         to='node:1',
                         bind={producer.name: 'ProducerId'})
        self.producers.append(producer)
        return producer

    def idempotent(self):
        producer = self.rng.choice(self.producers) if self.producers else self.new_producer()
        topic, partition = self.place()
        now = producer.next.get((topic.name, partition), 0)
        records = self.records()
        how = self.script.some([('next', 10), ('again', 3), ('gap', 2), ('old', 1), ('overlap', 1), ('newer epoch', 2),
                                ('newer epoch, not 0', 1), ('older epoch', producer.epoch), ('no sequence', 1), ('wrap', 1)])
        sequence = {
            'gap': now + self.rng.choice([1, 5]), 'old': max(0, now - 6), 'newer epoch': 0, 'overlap': max(0, now - 1),
            'newer epoch, not 0': 3, 'no sequence': -1, 'wrap': 2**31 - 1
        }.get(how, now)
        epoch = producer.epoch + {'newer epoch': 1, 'newer epoch, not 0': 1, 'older epoch': -1}.get(how, 0)
        if how == 'again' and producer.last:
            topic, partition, batch = producer.last
        else:
            batch = self.batch(records=records, producer=producer.id, epoch=epoch, sequence=sequence)
        told = self.send(topic, partition, [batch], note=how)
        if told and told['ErrorCode'] == 'NONE' and how != 'again':
            producer.last = topic, partition, batch
            producer.epoch = max(producer.epoch, epoch)
            if how.startswith('newer'):
                producer.next = {}
            producer.next[topic.name, partition] = (sequence + len(records)) % 2**31

    def wrong(self):
        topic, partition = self.place()
        how = self.rng.choice([how for how in WRONG if how not in PARTING])
        self.send(topic, partition, [{**self.batch(), **WRONG[how]}], note=how)

    def part(self):
        """What only one of the two takes: last, because nothing after it can be compared."""
        how = self.rng.choice(PARTING)
        self.send(self.side, 0, [{**self.batch(), **WRONG[how]}], acks=-1, note=how)

    def strange(self):
        """A producer id that nobody gave out; no batch, two of them; bytes that are no batch."""
        topic, partition = self.place()
        how = self.rng.choice(['unknown producer', 'unknown producer, not 0', 'two batches', 'empty', 'garbage', 'short'])
        if how.startswith('unknown'):
            batch = self.batch(producer=self.rng.randrange(10**9, 2 * 10**9),
                               epoch=self.rng.choice([0, 3]),
                               sequence=0 if how == 'unknown producer' else 5)
            return self.send(topic, partition, [batch], note=how)
        what = {
            'two batches': [self.batch(), self.batch()], 'empty': [], 'garbage': {'hex': 'ff' * 70}, 'short': {'hex': '00' * 20}
        }[how]
        return self.send(topic, partition, what, note=how)

    def no_acks(self):
        topic, partition = self.place()
        if topic is self.side or self.rng.random() < 0.3:
            return self.send(topic, partition, [self.batch()], acks=self.rng.choice([2, -2, 5]), note='acks')
        batch = self.batch(records=[{'key': 'k'}])
        body = {
            'Acks': 0, 'TimeoutMs': 5000,
            'TopicData': [{'Name': topic.name, 'PartitionData': [{'Index': partition, 'Records': {'batches': [batch]}}]}]
        }
        self.script.call('Produce', body, 9, topic.leader(partition), mode='send', on='no acks')
        self.ends[topic.name, partition] += 1
        self.wait_end(topic, partition)
        return None

    def wrong_place(self):
        topic, partition = self.place()
        how = self.rng.choice(['not the leader', 'no such partition', 'no such topic', 'no such id', 'no id', 'transactional id'])
        batch = self.batch(records=[{'key': 'k'}])
        if how == 'not the leader':
            self.send(topic, partition, [batch], to='node:3', note=how)
        elif how == 'no such partition':
            self.send(topic, self.rng.choice([7, -1]), [batch], acks=-1, to=topic.leader(0), note=how)
        elif how == 'transactional id':
            self.send(topic, partition, [batch], TransactionalId='§x', note=how)
        else:
            name, identity = {'no such topic': (NOWHERE, STRANGER), 'no such id': (NOWHERE, STRANGER),
                              'no id': (NOWHERE, NO_ID)}[how]
            self.send(topic, partition, [batch], acks=-1, name=name, identity=identity, note=how)

    # Fetch.

    def fetched(self, topic, partition):
        """One partition of a Fetch, mostly right."""
        end = self.end(topic, partition)
        offset = self.script.some([(self.rng.randrange(end + 1), 8), (end, 3), (end + 1, 1), (-1, 1), (2**40, 1)])
        return {
            'Partition': partition, 'FetchOffset': offset, 'LogStartOffset': -1,
            'PartitionMaxBytes': self.rng.choice([2**20, 2**20, 100, 1, 0]), 'CurrentLeaderEpoch': self.script.some([(-1, 6),
                                                                                                                     (0, 3),
                                                                                                                     (1, 1),
                                                                                                                     (-5, 1)]),
            'LastFetchedEpoch': self.script.some([(-1, 8), (0, 1), (5, 1)])
        }

    def fetch(self):
        topic, partition = self.place()
        where = self.script.some([((topic.name, topic.id), 12), ((NOWHERE, STRANGER), 1), ((NOWHERE, NO_ID), 1)])
        part = self.fetched(topic, partition)
        if self.rng.random() < 0.05:
            part['Partition'] = self.rng.choice([9, -1])
        body = {
            'MaxWaitMs': self.rng.choice([0, 20]), 'MinBytes': self.rng.choice([0, 1, 1]),
            'MaxBytes': self.rng.choice([2**20, 2**31 - 1, 1]), 'IsolationLevel': self.rng.choice([0, 0, 1, 2]),
            'Topics': [{'Topic': where[0], 'TopicId': where[1], 'Partitions': [part]}]
        }
        to = topic.leader(partition) if topic is self.main or self.rng.random() < 0.8 else 'node:3'
        self.script.call('Fetch', body, to=to, note='isolation 2' if body['IsolationLevel'] == 2 else '')

    def session(self):
        """A step of an incremental fetch session, in turn or out of it."""
        version = self.rng.choice([7, 11, 12, 13, 17])
        topic, partition = self.main, 0
        if not self.sessions or self.rng.random() < 0.2:
            name = f's{len(self.sessions) + 1}'
            epoch = self.script.some([(0, 5), (-1, 1), (3, 1)])
            answer = self.ask_session(version, 0, epoch, [self.fetched(topic, partition)], (), bind={name: 'SessionId'})
            if answer.get('SessionId') not in (0, None):
                self.sessions.append([name, 1, version])
            return
        session = self.rng.choice(self.sessions)
        name, epoch, version = session
        how = self.script.some([('next', 10), ('again', 1), ('ahead', 1), ('unknown', 1), ('close', 1), ('full', 1)])
        what = {'Partition': 0, 'FetchOffset': self.end(topic, 0), 'LogStartOffset': -1, 'PartitionMaxBytes': 2**20}
        parts = self.rng.choice([[], [], [what], [self.fetched(topic, 0)]])
        forgotten = () if parts else self.rng.choice([(), (), (), (0, )])
        number = {'next': epoch, 'again': epoch - 1, 'ahead': epoch + 1, 'unknown': epoch, 'close': -1, 'full': 0}[how]
        answer = self.ask_session(version, {'$': name, 'plus': 1} if how == 'unknown' else {'$': name},
                                  number,
                                  parts,
                                  forgotten,
                                  note=how,
                                  bind={f'{name}b': 'SessionId'} if how == 'full' else {})
        if how in ('close', 'full'):
            self.sessions.remove(session)
        elif how == 'next' and answer.get('ErrorCode') == 'NONE':
            session[1] += 1

    def ask_session(self, version, session, epoch, parts, forgotten, **more):
        topics = [{'Topic': self.main.name, 'TopicId': self.main.id, 'Partitions': parts}] if parts else []
        gone = [{'Topic': self.main.name, 'TopicId': self.main.id, 'Partitions': list(forgotten)}] if forgotten else []
        body = {
            'MaxWaitMs': 0, 'MinBytes': 0, 'MaxBytes': 2**20, 'IsolationLevel': 0, 'SessionId': session, 'SessionEpoch': epoch,
            'Topics': topics, 'ForgottenTopicsData': gone
        }
        return self.script.call('Fetch', body, version, self.main.leader(0), **more)

    # Offsets and epochs.

    def list_offsets(self):
        topic, partition = self.place()
        at = self.rng.choice([-1, -1, -2, -2, -3, -3, -4, -5, -6, -7, 0, TIME, TIME + 500, TIME + 10**6, 2**62])
        part = {
            'PartitionIndex': self.script.some([(partition, 9), (8, 1)]), 'CurrentLeaderEpoch': self.script.some([(-1, 6), (0, 3),
                                                                                                                  (1, 1)]),
            'Timestamp': at
        }
        parts = [part, dict(part)] if self.rng.random() < 0.1 else [part]
        body = {
            'ReplicaId': self.script.some([(-1, 9), (-2, 1)]), 'IsolationLevel': self.rng.choice([0, 1]), 'TimeoutMs': 1000,
            'Topics': [{'Name': self.script.some([(topic.name, 9), (NOWHERE, 1)]), 'Partitions': parts}]
        }
        self.script.call('ListOffsets',
                         body,
                         to=self.script.some([(topic.leader(partition), 9), ('node:3', 1)]),
                         note=f'at {at}' if at < 0 else '')

    def epochs(self):
        topic, partition = self.place()
        part = {
            'Partition': self.script.some([(partition, 9), (8, 1)]), 'CurrentLeaderEpoch': self.script.some([(-1, 5), (0, 4),
                                                                                                             (1, 1), (-3, 1)]),
            'LeaderEpoch': self.rng.choice([0, 0, 0, 1, -1, 7, -9])
        }
        self.script.call('OffsetForLeaderEpoch', {
            'ReplicaId': self.rng.choice([-1, -2]),
            'Topics': [{'Topic': self.script.some([(topic.name, 9), (NOWHERE, 1)]), 'Partitions': [part]}]
        },
                         to=self.script.some([(topic.leader(partition), 9), ('node:3', 1)]))

    def delete_records(self):
        topic, partition = self.place()
        end = self.end(topic, partition)
        self.script.call('DeleteRecords', {
            'Topics': [{
                'Name': topic.name,
                'Partitions': [{'PartitionIndex': partition, 'Offset': self.rng.choice([end // 2, end, -1, end + 1])}]
            }], 'TimeoutMs': 5000
        },
                         to=topic.leader(partition))

    def look(self):
        for topic in self.topics:
            for partition in range(len(topic.assignment)):
                body = {
                    'MaxWaitMs': 0, 'MinBytes': 0, 'MaxBytes': 2**20, 'Topics': [{
                        'Topic': topic.name, 'Partitions': [{
                            'Partition': partition, 'FetchOffset': 0, 'LogStartOffset': -1, 'PartitionMaxBytes': 2**20
                        }]
                    }]
                }
                self.script.call('Fetch', body, 11, topic.leader(partition), note='at the end')
                self.script.call('DescribeProducers', {'Topics': [{'Name': topic.name, 'PartitionIndexes': [partition]}]},
                                 0,
                                 topic.leader(partition),
                                 note='at the end')


# What may be wrong with a batch.
WRONG = {
    'crc': {'crc': 'bad'}, 'magic 0': {'magic': 0}, 'magic 1': {'magic': 1}, 'magic 3': {'magic': 3},
    'count 0': {'records': [], 'count': 0, 'last_delta': -1}, 'no records': {'records': [], 'count': 0, 'last_delta': 0},
    'count too large': {'count': 9, 'codec': 0}, 'count negative': {'count': -1, 'codec': 0},
    'last delta too large': {'last_delta': 9}, 'last delta too small': {'records': [{'key': 'a'}, {'key': 'b'}], 'last_delta': 0},
    'deltas with a gap': {'records': [{'key': 'a'}, {'key': 'b'}], 'deltas': [0, 5], 'last_delta': 5, 'codec': 0
                          }, 'deltas not from 0': {'records': [{'key': 'a'}], 'deltas': [3], 'last_delta': 3, 'codec': 0},
    'deltas do not say the last': {'records': [{'key': 'a'}, {'key': 'b'}], 'deltas': [0, 0],
                                   'codec': 0}, 'control': {'attributes': 0x20,
                                                            'codec': 0}, 'transactional': {'attributes': 0x10, 'codec': 0},
    'codec 5': {'codec': 5}, 'codec 7': {'codec': 7}, 'log append time': {'attributes': 0x08}, 'horizon': {'attributes': 0x40},
    'unused bits': {'attributes': 0x4000}, 'cut': {'cut': 3}, 'length': {'length': 30}, 'length too large': {'length': 5000},
    'base offset': {'base': 77}, 'leader epoch': {'leader_epoch': 12}, 'no key': {'records': [{'key': None, 'value': 'v'}]},
    'long ago': {'time': 0}, 'in the future': {'time': 4_000_000_000_000}, 'no time': {'time': -1, 'records': [{'key': 'a'}]},
    'negative time': {'time': -5, 'max_time': -5, 'records': [{'key': 'a'}]
                      }, 'producer without epoch, from 0 on': {'producer': 5, 'sequence': 0,
                                                               'epoch': -1}, 'max time': {'max_time': TIME * 2},
    'large': {'records': [{'key': 'a', 'value': 'x' * 600}], 'codec': 0
              }, 'epoch without producer': {'epoch': 3}, 'sequence without producer': {'sequence': 3}, 'producer without epoch': {
                  'producer': 5, 'sequence': 0
              }, 'lies about gzip': {'codec': 2}, 'null value': {'records': [{'key': 'a', 'value': None}]}
}
# Kafka takes these, one way or another.
PARTING = ['lies about gzip', 'deltas do not say the last', 'producer without epoch', 'producer without epoch, from 0 on']
