"""What both kinds of groups are asked about their offsets, and about themselves."""
from .common import NO_ID, NOWHERE, STRANGER

ANYWHERE = '§another group'


class Offsets:
    """Commits, fetches and deletions for a group; the subclass says who its members are."""

    def __init__(self, script, topics):
        self.script, self.rng, self.topics = script, script.rng, topics
        self.group = '§g'

    def offset_moves(self):
        return [(self.commit, 5), (self.fetch, 5), (self.delete_offsets, 1), (self.describe, 2), (self.list, 1),
                (self.delete_group, 1)]

    @property
    def to(self):
        return f'group:{self.group}'

    def identity(self):
        """(member id, generation or epoch, instance id) of somebody, right or wrong, and what is wrong."""
        raise NotImplementedError

    def where(self):
        """A topic by name and id, mostly one that there is."""
        topic = self.rng.choice(self.topics)
        return self.script.some([((topic.name, topic.id), 8), ((NOWHERE, STRANGER), 1), ((NOWHERE, NO_ID), 1)])

    def partition(self):
        return self.script.some([(0, 8), (1, 4), (7, 1), (-1, 1)])

    def a_group(self):
        return self.script.some([(self.group, 12), (ANYWHERE, 1)])

    def ask_group(self, api, body, version=None, group=None, **more):
        """Asks the coordinator of the group, or of another one."""
        return self.script.call(api, body, version, f'group:{group or self.group}', **more)

    def commit(self):
        member, generation, instance, note = self.identity()
        name, topic_id = self.where()
        parts = [{
            'PartitionIndex': self.partition(), 'CommittedOffset': self.rng.choice([0, 5, 77, -1]),
            'CommittedLeaderEpoch': self.rng.choice([-1, 0, 3]), 'CommittedMetadata': self.script.some([('', 3), ('note', 3),
                                                                                                        (None, 1),
                                                                                                        ('x' * 4097, 1)])
        } for _ in range(self.rng.choice([1, 1, 2]))]
        topics = [{'Name': name, 'TopicId': topic_id, 'Partitions': parts}] if self.rng.random() < 0.95 else []
        body = {
            'GroupId': self.group, 'GenerationIdOrMemberEpoch': generation, 'MemberId': member, 'GroupInstanceId': instance,
            'Topics': topics
        }
        self.ask_group('OffsetCommit', body, note=note)

    def fetch(self):
        member, epoch, _, note = self.identity()
        group = self.a_group()
        name, topic_id = self.where()
        topics = self.script.some([
            (None, 1),
            ([{'Name': name, 'TopicId': topic_id, 'PartitionIndexes': [0, 1, self.partition()][:self.rng.choice([1, 2, 3])]}], 4),
            ([], 1)
        ])
        stable = self.rng.random() < 0.3
        one = {'GroupId': group, 'Topics': topics}
        if self.rng.random() < 0.4:
            self.ask_group('OffsetFetch', {**one, 'RequireStable': stable},
                           self.rng.choice([2, 5, 6, 7] if topics is None else range(1, 8)), group)
            return
        if self.rng.random() < 0.5:
            one.update(MemberId=member, MemberEpoch=epoch)
        else:
            note = ''
        groups = [one] if self.rng.random() < 0.9 else [one, {'GroupId': group, 'Topics': None}]
        self.ask_group('OffsetFetch', {'Groups': groups, 'RequireStable': stable}, self.rng.choice([8, 9, 10]), group, note=note)

    def delete_offsets(self):
        name, _ = self.where()
        group = self.a_group()
        self.ask_group('OffsetDelete',
                       {'GroupId': group, 'Topics': [{'Name': name, 'Partitions': [{'PartitionIndex': self.partition()}]}]},
                       group=group)

    def describe(self):
        group = self.a_group()
        self.ask_group('DescribeGroups', {'Groups': [group], 'IncludeAuthorizedOperations': self.rng.random() < 0.2}, group=group)
        if self.rng.random() < 0.5:
            self.ask_group('ConsumerGroupDescribe', {'GroupIds': [group]}, group=group)

    def list(self):
        self.ask_group(
            'ListGroups', {
                'StatesFilter': self.rng.choice([[], [], ['Stable'], ['Empty', 'stable'], ['Nonsense'], ['Assigning']]),
                'TypesFilter': self.rng.choice([[], [], ['classic'], ['Consumer'], ['nonsense'], ['share']])
            })

    def delete_group(self):
        group = self.a_group()
        self.ask_group('DeleteGroups', {'GroupsNames': [group]}, group=group)
