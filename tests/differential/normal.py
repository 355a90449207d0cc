"""What may differ between two clusters, taken out of their answers: ids by the names that they are bound to, times, addresses."""
import re
import time

import batches
import schema

OPAQUE = {
    'TopicId': '0' * 32, 'ProducerId': -1, 'MemberId': '', 'Leader': '', 'SessionId': 0, 'ClusterId': None, 'LogDir': None,
    'ReplicaDirectoryId': '0' * 32, 'VoterDirectoryId': '0' * 32
}
# The fields that say which element of a list one is; lists of structs that have one are sets.
IDENTITY = ('ApiKey', 'Name', 'TopicName', 'Topic', 'GroupId', 'Key', 'TransactionalId', 'ResourceType', 'ResourceName',
            'PartitionIndex', 'Partition', 'PartitionId', 'Index', 'NodeId', 'BrokerId', 'EntityType', 'GroupInstanceId',
            'TopicId', 'ProducerId', 'MemberId')
SETS = {'SubscribedTopicNames', 'Partitions', 'IsrNodes', 'Isr', 'OfflineReplicas', 'AddingReplicas', 'RemovingReplicas'}
# Lists of everything there is: the other sequences' part is left out.
EVERYTHING = {('ListGroups', 'Groups'): 'GroupId', ('ListTransactions', 'TransactionStates'): 'TransactionalId',
              ('Metadata', 'Topics'): 'Name', ('DescribeTopicPartitions', 'Topics'): 'Name',
              ('DescribeLogDirs', 'Topics'): 'Name', ('ElectLeaders', 'ReplicaElectionResults'): 'Topic'}
# Epochs of consumer groups count from a first one that each broker chooses: the first that is told counts as 1.
EPOCHS = {'MemberEpoch', 'GroupEpoch', 'AssignmentEpoch'}
DAY = 86_400_000
# The part of a member id that a coordinator makes up.
UUID = re.compile(r'[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$')


def at(value, path):
    """What lies at a path in an answer, None where it ends early."""
    for part in path:
        if isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, dict):
            value = value.get(part)
        else:
            return None
    return value


def order(value, name=''):
    """Lists that are sets, in one order."""
    if isinstance(value, dict):
        return {key: order(item, key) for key, item in value.items()}
    if isinstance(value, list):
        items = [order(item) for item in value]
        if items and isinstance(items[0], dict):
            return sorted(items, key=identity)
        return sorted(items) if name in SETS else items
    return value


def identity(item):
    """What says which element of a list a struct is; ids count by their names once they have some."""
    fields = (item[field] for field in IDENTITY if field in item and not isinstance(item[field], list))
    return [str(value.get('$') if isinstance(value, dict) else value).rjust(12) for value in fields]


class Normal:
    """An answer without what may differ between two clusters."""

    def __init__(self, target, step):
        self.api, self.prefix, self.first_epoch, self.ladders = step['api'], target.prefix, target.first_epoch, target.ladders
        self.asked = target.resolve(step['to'].partition(':')[2]) if self.api in ('ListGroups', 'ListTransactions') else ''
        self.names, self.now = {}, time.time() * 1000
        for name, value in target.bound.items():
            if not name.endswith(' epoch'):
                self.names.setdefault(value, name)

    def of(self, value, name=''):
        if isinstance(value, dict):
            return self.struct(value)
        if isinstance(value, list):
            mine = EVERYTHING.get((self.api, name))
            items = [self.of(item, name) for item in value if mine is None or self.is_mine(item[mine])]
            # Once more, now that ids that differ have their names.
            return sorted(items, key=identity) if items and isinstance(items[0], dict) else items
        if isinstance(value, bytes):
            return [self.struct(batch) for batch in batches.read(value)] if name == 'Records' else value.hex()
        return self.scalar(value, name)

    def struct(self, value):
        # Of an error, a broker may say what it likes.
        free = value.get('ErrorCode') and 'ErrorMessage'
        out = {key: self.of(item, key) for key, item in value.items() if key not in ('ThrottleTimeMs', free)}
        if 'ProducerEpoch' in value and (value['ProducerId'] in self.ladders or self.api in ('InitProducerId', 'EndTxn')):
            out['ProducerEpoch'] = self.rung(value)
        if '__consumer_offsets' in (value.get('Topic'), value.get('Name')):
            # Which partition of it a group has goes by its name.
            out['Partitions'] = '<some>'
        return out

    def rung(self, value):
        """A producer's epoch by what its client was told: by how much a bump bumps is the broker's own."""
        epoch, told = value['ProducerEpoch'], sorted(self.ladders.get(value['ProducerId'], ()))
        if epoch < 0:
            return epoch
        return f'told {told.index(epoch) + 1}' if epoch in told else f'above told {sum(t < epoch for t in told)}'

    def is_mine(self, name):
        """A coordinator lists the groups or ids that it has: only the one that it was found by is compared."""
        return name == self.asked if self.asked else name is None or name.startswith(self.prefix)

    def scalar(self, value, name):
        if name.endswith('ErrorCode'):
            return schema.errors().get(value, value)
        if name == 'ErrorMessage' or name == 'BatchIndexErrorMessage':
            return value and 'text'
        if isinstance(value, str) and value.startswith(self.prefix) and value not in self.names:
            return self.string(UUID.sub('<uuid>', value), name)
        if name.endswith(tuple(OPAQUE)) and value != OPAQUE.get(name) and not (name == 'Leader' and isinstance(value, int)):
            return {'$': self.names[value]} if value in self.names else value if value in ('', -1, 0, None) else '<another>'
        if isinstance(value, str):
            return self.string(value, name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return self.number(value, name)
        return value

    def string(self, value, name):
        if name in ('Host', 'Rack', 'ClientHost', 'Documentation'):
            return value and f'<{name}>'
        return value.replace(self.prefix, '§')

    def number(self, value, name):
        if name in ('Port', 'TotalBytes', 'UsableBytes', 'PartitionSize') or name == 'NodeId' and self.api == 'FindCoordinator':
            return value if value <= 0 else f'<{name}>'
        if name in EPOCHS and value > 0 and self.first_epoch:
            return value - self.first_epoch + 1
        if name == 'ControllerId':
            return value if value <= 0 else '<node>'
        return '<now>' if abs(value - self.now) < DAY else value
