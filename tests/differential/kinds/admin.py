"""Topics, partitions, configs, elections, reassignments, records deleted, log directories, features, quotas, ACLs."""
from .common import NO_ID, NOWHERE, STRANGER, Topic, create, some_assignment

# (name, values that may be, values that may not)
CONFIGS = [('retention.ms', ['-1', '60000', '604800000'], ['-2', 'soon', '', '9223372036854775808']),
           ('retention.bytes', ['-1', '1048576'], ['x', '1.5']),
           ('cleanup.policy', ['delete', 'compact', 'compact,delete', 'delete,compact'], ['remove', 'delete,', 'Delete']),
           ('segment.bytes', ['1048576', '1073741824'], ['1', '0', '-1', '2147483648']),
           ('min.insync.replicas', ['1', '2', '3'], ['0', '-1', 'two']),
           ('compression.type', ['producer', 'gzip', 'zstd', 'uncompressed'], ['brotli', 'GZIP', 'none']),
           ('message.timestamp.type', ['CreateTime', 'LogAppendTime'], ['createtime', 'Append']),
           ('max.message.bytes', ['1000', '1048588'], ['-1', '2147483648']),
           ('unclean.leader.election.enable', ['true', 'false', 'TRUE'], ['yes', '1', '']),
           ('flush.messages', ['1', '9223372036854775807'], ['0', '-5']), ('delete.retention.ms', ['0', '1000'], ['-1']),
           ('min.cleanable.dirty.ratio', ['0.5', '0', '1'], ['1.1', '-0.1', 'half']),
           ('segment.ms', ['1000', '604800000'], ['0', '-1']), ('file.delete.delay.ms', ['0', '60000'], ['-1']),
           ('preallocate', ['false'], ['maybe']), ('min.compaction.lag.ms', ['0', '10'], ['-1']),
           ('max.compaction.lag.ms', ['1', '9223372036854775807'], ['0']),
           ('message.timestamp.before.max.ms', ['1000', '9223372036854775807'], ['-1']),
           ('leader.replication.throttled.replicas', ['*', '0:1,1:2', ''], ['0', '0:', 'a:b', '0:1,']),
           ('compression.gzip.level', ['1', '9', '-1'], ['0', '10']), ('no.such.config', [], ['1', ''])]
NAMES = ['', '.', '..', 'a b', 'x' * 250, 'é', 'a/b', '__consumer_offsets', '__transaction_state']


def sequence(script, steps=24):
    state = Admin(script)
    state.create_well()
    for _ in range(steps):
        script.some(state.moves())()
    state.look()


class Admin:
    """The topics that there are, and what may be asked about them."""

    def __init__(self, script):
        self.script, self.rng, self.topics, self.made, self.dead = script, script.rng, {}, 0, []

    def moves(self):
        return [(self.create_well, 3), (self.create_somehow, 5), (self.delete, 2), (self.partitions, 4), (self.incremental, 6),
                (self.alter, 3), (self.describe_configs, 4), (self.describe_partitions, 2), (self.metadata, 3), (self.elect, 3),
                (self.reassign, 3), (self.list_reassignments, 1), (self.delete_records, 2), (self.log_dirs, 1),
                (self.features, 1), (self.quotas, 1), (self.acls, 1), (self.config_resources, 1), (self.cluster, 1),
                (self.others, 1)]

    # Names and numbers, most of them of something that exists.

    def fresh(self):
        self.made += 1
        return f'§t{self.made}'

    def name(self):
        known = list(self.topics) or [NOWHERE]
        return self.script.some([(self.rng.choice(known), 12), (NOWHERE, 1), (self.rng.choice(NAMES), 1),
                                 (self.rng.choice(self.dead or [NOWHERE]), 1)])

    def index(self, name):
        count = len(self.topics[name].assignment) if name in self.topics else 1
        return self.script.some([(self.rng.randrange(count), 8), (count, 1), (-1, 1)])

    def node(self):
        return f'node:{self.rng.randrange(1, 4)}'

    def config(self):
        name, good, bad = self.rng.choice(CONFIGS)
        value = self.script.some([(self.rng.choice(good or bad), 4), (self.rng.choice(bad), 3), (None, 1)])
        return name, value

    def settle(self, *names):
        self.script.settle({name: len(self.topics[name].assignment) if name in self.topics else None for name in names})

    # Topics.

    def create_well(self):
        name = self.fresh()
        self.topics[name] = create(self.script, name, some_assignment(self.rng, self.rng.choice([1, 2, 3])))

    def create_somehow(self):
        topics = [self.somehow() for _ in range(self.rng.choice([1, 1, 1, 2]))]
        if self.rng.random() < 0.1:
            topics.append(dict(topics[0]))
        only = self.rng.random() < 0.3
        answer = self.script.call(
            'CreateTopics',
            {'Topics': topics, 'TimeoutMs': self.rng.choice([10_000, 10_000, 0, -1]) if only else 10_000, 'ValidateOnly': only},
            to=self.node())
        for result in answer['Topics']:
            if result['ErrorCode'] == 'NONE' and not only:
                self.adopt(next(t for t in topics if t['Name'] == result['Name']))

    def adopt(self, wanted):
        """A topic that was created without its id being known: told to the model by its assignment where there was one."""
        name = wanted['Name']
        assignment = [a['BrokerIds'] for a in sorted(wanted['Assignments'], key=lambda a: a['PartitionIndex'])]
        if not assignment:
            # Which replicas it got differs: it is checked for its counts, and not used further.
            self.script.settle({name: 1 if wanted['NumPartitions'] == -1 else wanted['NumPartitions']})
            self.script.call('DeleteTopics', {'TopicNames': [name], 'TimeoutMs': 10_000}, version=5)
            self.script.settle({name: None})
            return
        self.topics[name] = Topic(name, assignment)
        self.settle(name)
        self.script.call('Metadata', {'Topics': [{'Name': name}], 'AllowAutoTopicCreation': False},
                         version=12,
                         bind={f'id of {name}': 'Topics.0.TopicId'})

    def somehow(self):
        """One topic of a CreateTopics, nearly right."""
        name = self.script.some([(self.fresh(), 10), (self.name(), 3)])
        by_hand = self.rng.random() < 0.4
        assignments = [{'PartitionIndex': i, 'BrokerIds': b}
                       for i, b in enumerate(some_assignment(self.rng, self.rng.choice([1, 2])))] if by_hand else []
        if by_hand and self.rng.random() < 0.5:
            self.rng.choice(BREAK_ASSIGNMENTS)(assignments)
        return {
            'Name': name, 'Assignments': assignments,
            'NumPartitions': -1 if by_hand and self.rng.random() < 0.9 else self.rng.choice([-1, 1, 2, 3, 0, -2]),
            'ReplicationFactor': -1 if by_hand and self.rng.random() < 0.9 else self.rng.choice([-1, 1, 2, 3, 0, 4, -2]),
            'Configs': [dict(zip(('Name', 'Value'), self.config())) for _ in range(self.rng.choice([0, 0, 1, 1, 2]))]
        }

    def delete(self):
        names = list({self.name() for _ in range(self.rng.choice([1, 1, 2]))})
        if any(not name.startswith('§') for name in names) and self.rng.random() < 0.9:
            return
        by_id = [self.rng.random() < 0.4 for _ in names]
        topics = [{'Name': None, 'TopicId': self.topic_id(n)} if i else {'Name': n, 'TopicId': NO_ID}
                  for n, i in zip(names, by_id)]
        if self.rng.random() < 0.1 and topics:
            topics.append(
                self.rng.choice(
                    [dict(topics[0]), {'Name': names[0], 'TopicId': self.topic_id(names[0])}, {'Name': None, 'TopicId': NO_ID}]))
        names = [n for n in names if n not in ('__consumer_offsets', '__transaction_state')]
        topics = [t for t in topics if t['Name'] not in ('__consumer_offsets', '__transaction_state')]
        if self.rng.random() < 0.5:
            answer = self.script.call('DeleteTopics', {'Topics': topics, 'TimeoutMs': 10_000}, version=6, to=self.node())
        else:
            answer = self.script.call('DeleteTopics', {'TopicNames': names, 'TimeoutMs': 10_000},
                                      version=self.rng.choice([1, 4, 5]),
                                      to=self.node())
        for result in answer['Responses']:
            if result['ErrorCode'] == 'NONE' and result['Name'] in self.topics:
                del self.topics[result['Name']]
                self.dead.append(result['Name'])
        self.settle(*[n for n in self.dead if n in names])

    def topic_id(self, name):
        return self.topics[name].id if name in self.topics else self.rng.choice([STRANGER, NO_ID])

    def partitions(self):
        name = self.name()
        count = len(self.topics[name].assignment) if name in self.topics else 1
        wanted = self.script.some([(count + 1, 6), (count + 2, 2), (count, 2), (count - 1, 1), (0, 1), (-1, 1),
                                   (10_001 + count, 1)])
        factor = len(self.topics[name].assignment[0]) if name in self.topics and self.rng.random() < 0.9 else None
        more = max(0, wanted - count) if wanted < 100 else 1
        assignments = [{'BrokerIds': b} for b in some_assignment(self.rng, more, factor)]
        broken = self.rng.random() < 0.4
        if broken:
            self.rng.choice(BREAK_MORE)(assignments)
        only = self.rng.random() < 0.3 or wanted > 100
        without = self.rng.random() < 0.2 and only
        topics = [{'Name': name, 'Count': wanted, 'Assignments': None if without else assignments}]
        if self.rng.random() < 0.1:
            topics.append(dict(topics[0]))
        answer = self.script.call('CreatePartitions', {'Topics': topics, 'TimeoutMs': 10_000, 'ValidateOnly': only},
                                  to=self.node())
        if not only and answer['Results'] and answer['Results'][0]['ErrorCode'] == 'NONE' and name in self.topics:
            self.topics[name].assignment += [a['BrokerIds'] for a in assignments]
            self.settle(name)

    # Configs.

    def resource(self):
        return self.script.some([((2, self.name()), 12), ((4, str(self.rng.randrange(0, 5))), 2), ((4, ''), 1), ((4, 'one'), 1),
                                 ((32, '§group'), 1), ((0, 'x'), 1), ((3, 'x'), 1), ((99, 'x'), 1), ((2, ''), 1)])

    def incremental(self):
        kind, name = self.resource()
        configs = []
        for _ in range(self.rng.choice([1, 1, 2])):
            key, value = self.config()
            operation = self.script.some([(0, 6), (1, 2), (2, 2), (3, 2), (4, 1), (-1, 1)])
            configs.append({
                'Name': key, 'ConfigOperation': operation, 'Value': value if operation != 1 or self.rng.random() < 0.2 else None
            })
        if self.rng.random() < 0.1:
            configs.append(dict(configs[0]))
        only = kind != 2 or self.rng.random() < 0.2
        resources = [{'ResourceType': kind, 'ResourceName': name, 'Configs': configs}]
        if self.rng.random() < 0.1:
            resources.append(dict(resources[0]))
        self.script.call('IncrementalAlterConfigs', {'Resources': resources, 'ValidateOnly': only},
                         to=self.asked(kind, name),
                         note=f'type {kind}')

    def alter(self):
        kind, name = self.resource()
        configs = [dict(zip(('Name', 'Value'), self.config())) for _ in range(self.rng.choice([0, 1, 2]))]
        only = kind != 2 or self.rng.random() < 0.2
        self.script.call('AlterConfigs',
                         {'Resources': [{'ResourceType': kind, 'ResourceName': name, 'Configs': configs}], 'ValidateOnly': only},
                         to=self.asked(kind, name),
                         note=f'type {kind}')

    def asked(self, kind, name):
        """Who is asked about a resource: of a broker, Kafka wants itself to be."""
        return f'node:{name}' if kind == 4 and name in ('1', '2', '3') else self.node()

    def describe_configs(self):
        kind, name = self.resource()
        keys = self.rng.choice([None, [], [self.config()[0]], [self.config()[0], 'retention.ms'], ['no.such.config']])
        if kind == 4 and keys is None:
            keys = ['min.insync.replicas']
        self.script.call('DescribeConfigs', {
            'Resources': [{'ResourceType': kind, 'ResourceName': name, 'ConfigurationKeys': keys}],
            'IncludeSynonyms': self.rng.random() < 0.5
        },
                         to=self.asked(kind, name),
                         note=f'type {kind}')

    # What there is.

    def describe_partitions(self):
        names = sorted({self.name() for _ in range(self.rng.choice([1, 2, 2]))})
        cursor = self.script.some([(None, 3), ({'TopicName': self.name(), 'PartitionIndex': self.rng.choice([0, 1, 5, -1])}, 1)])
        self.script.call('DescribeTopicPartitions', {
            'Topics': [{'Name': n}
                       for n in names], 'Cursor': cursor, 'ResponsePartitionLimit': self.rng.choice([2000, 1, 2, 0, -1])
        })

    def metadata(self):
        topics = self.rng.choice([
            None, [], [{'Name': self.name(), 'TopicId': NO_ID}], [{'Name': None, 'TopicId': self.topic_id(self.name())}],
            [{'Name': self.name(), 'TopicId': self.topic_id(self.name())}]
        ])
        self.script.call(
            'Metadata',
            {'Topics': topics, 'AllowAutoTopicCreation': False, 'IncludeTopicAuthorizedOperations': self.rng.random() < 0.3},
            to=self.node(),
            note='by id' if topics and topics[0]['TopicId'] != NO_ID else '')

    def look(self):
        for name, topic in self.topics.items():
            self.settle(name)
            self.script.call('Metadata', {'Topics': [{'Name': name, 'TopicId': NO_ID}], 'AllowAutoTopicCreation': False},
                             version=13)
            self.script.call(
                'DescribeConfigs',
                {'Resources': [{'ResourceType': 2, 'ResourceName': name, 'ConfigurationKeys': None}], 'IncludeSynonyms': True},
                version=4,
                note='at the end')

    # Leaders and replicas.

    def elect(self):
        name = self.name()
        parts = self.rng.choice([
            None, [], [{'Topic': name, 'Partitions': [self.index(name)]}], [{'Topic': name, 'Partitions': [self.index(name), 0]}]
        ])
        kind = self.rng.choice([0, 0, 1, 2])
        if parts is None:
            kind = 0
        twice = bool(parts) and len(set(parts[0]['Partitions'])) < len(parts[0]['Partitions'])
        self.script.call('ElectLeaders', {'ElectionType': kind, 'TopicPartitions': parts, 'TimeoutMs': 10_000},
                         to=self.node(),
                         note='twice' if twice else 'no such type' if kind == 2 else '')

    def reassign(self):
        name = self.name()
        index = self.index(name)
        now = self.topics[name].assignment[index] if name in self.topics and 0 <= index < len(self.topics[name].assignment) else [
            1
        ]
        replicas = self.rng.choice([now, now, None, [], [now[0], now[0]], [9], [-1], [1, 2, 3, 4], now[::-1]])
        if replicas == now[::-1]:
            replicas = now
        self.script.call('AlterPartitionReassignments', {
            'Topics': [{'Name': name, 'Partitions': [{'PartitionIndex': index, 'Replicas': replicas}]}], 'TimeoutMs': 10_000,
            'AllowReplicationFactorChange': self.rng.random() < 0.7
        },
                         to=self.node())

    def list_reassignments(self):
        name = self.name()
        self.script.call('ListPartitionReassignments', {
            'Topics': self.rng.choice([None, [], [{'Name': name, 'PartitionIndexes': [self.index(name)]}]]), 'TimeoutMs': 10_000
        },
                         to=self.node())

    def delete_records(self):
        name = self.name()
        index = self.index(name)
        to = self.topics[name].leader(index) if name in self.topics else 'node:1'
        self.script.call('DeleteRecords', {
            'Topics': [{
                'Name': name, 'Partitions': [{'PartitionIndex': index, 'Offset': self.rng.choice([0, -1, -2, 1, 2**40])}]
            }], 'TimeoutMs': 10_000
        },
                         to=self.script.some([(to, 4), (self.node(), 1)]))

    def log_dirs(self):
        name = self.name()
        self.script.call('DescribeLogDirs',
                         {'Topics': self.rng.choice([[], [{'Topic': name, 'Partitions': [self.index(name)]}]])},
                         to='node:1')

    # The rest.

    def features(self):
        update = self.rng.choice([('no.such.feature', 1), ('metadata.version', 1), ('metadata.version', 99),
                                  ('transaction.version', 9), ('group.version', -1), ('transaction.version', 2), ('', 1)])
        self.script.call('UpdateFeatures', {
            'FeatureUpdates': [{
                'Feature': update[0], 'MaxVersionLevel': update[1], 'AllowDowngrade': self.rng.random() < 0.3,
                'UpgradeType': self.rng.choice([1, 1, 2, 3])
            }], 'TimeoutMs': 10_000, 'ValidateOnly': True
        },
                         to=self.node(),
                         note=f'{update[0]} {update[1]}')

    def quotas(self):
        self.script.call(
            'DescribeClientQuotas', {
                'Components': self.rng.choice([[], [{'EntityType': 'user', 'MatchType': 2, 'Match': None}],
                                               [{'EntityType': 'planet', 'MatchType': 2, 'Match': None}]]),
                'Strict': self.rng.random() < 0.5
            })

    def acls(self):
        self.script.call('DescribeAcls', {'ResourceTypeFilter': 1, 'PatternTypeFilter': 1, 'Operation': 1, 'PermissionType': 1})
        self.script.call('CreateAcls', {
            'Creations': [{
                'ResourceType': 2, 'ResourceName': 'x', 'Principal': 'User:x', 'Host': '*', 'Operation': 3, 'PermissionType': 3
            }]
        },
                         version=3)
        self.script.call('DeleteAcls',
                         {'Filters': [{'ResourceTypeFilter': 2, 'ResourceNameFilter': 'x', 'Operation': 1, 'PermissionType': 1}]},
                         version=3)

    def config_resources(self):
        self.script.call('ListConfigResources', {'ResourceTypes': self.rng.choice([[99], [0], [4, 77]])}, version=1)

    def cluster(self):
        self.script.call(
            'DescribeCluster',
            {'IncludeClusterAuthorizedOperations': self.rng.random() < 0.3, 'EndpointType': self.rng.choice([1, 1, 2, 3])})

    def others(self):
        self.script.call(
            self.rng.choice(['DescribeUserScramCredentials', 'DescribeDelegationToken', 'GetTelemetrySubscriptions']), {})


def repeat(assignments):
    assignments[0]['BrokerIds'] = [1, 1]


def stranger(assignments):
    assignments[0]['BrokerIds'] = [7]


def negative(assignments):
    assignments[0]['BrokerIds'] = [-1]


def nobody(assignments):
    assignments[0]['BrokerIds'] = []


def gap(assignments):
    assignments[-1]['PartitionIndex'] += 1


def below(assignments):
    assignments[0]['PartitionIndex'] = -1


def twice(assignments):
    assignments.append(dict(assignments[0]))


def one_more(assignments):
    assignments.append({'BrokerIds': [1]})


def one_less(assignments):
    if assignments:
        assignments.pop()


BREAK_ASSIGNMENTS = [repeat, stranger, negative, nobody, gap, below, twice]
BREAK_MORE = [one_more, one_less, lambda a: a and repeat(a), lambda a: a and stranger(a), lambda a: a and nobody(a)]
