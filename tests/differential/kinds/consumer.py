"""Groups whose coordinator assigns (KIP-848): ConsumerGroupHeartbeat, right and wrong."""
from .offsets import Offsets


def sequence(script, topics, steps=30):
    group = Consumer(script, topics)
    for _ in range(steps):
        script.some(group.moves())()
    group.look()


def counted(epoch):
    return {'epoch': epoch} if epoch > 0 else epoch


class Member:
    """A member, by the id that its client chose."""

    def __init__(self, number, instance):
        self.id, self.instance, self.epoch, self.owned = f'§m{number}', instance, 0, None


class Consumer(Offsets):
    """One group: its members and their epochs, by Kafka's answers."""

    def __init__(self, script, topics):
        super().__init__(script, topics)
        self.members, self.made = [], 0

    def moves(self):
        return self.offset_moves() + [(self.arrive, 4 if len(self.members) < 2 else 0), (self.beat, 8), (self.wrong, 6),
                                      (self.leave, 2), (self.subscribe, 1), (self.classic, 1)]

    def identity(self):
        if not self.members:
            return self.script.some([(('', -1, None, 'simple'), 5), (('§nobody', 0, None, 'nobody'), 1),
                                     (('§nobody', -1, None, 'nobody, no epoch'), 1)])
        member = self.rng.choice(self.members)
        now, instance = member.epoch, member.instance
        return self.script.some([((member.id, counted(now), instance, ''), 6),
                                 ((member.id, counted(now + 1), instance, 'epoch ahead'), 1),
                                 ((member.id, counted(now - 1 if now > 1 else now), instance, 'epoch before'), 1),
                                 (('§nobody', counted(now), None, 'nobody'), 1), (('', -1, None, 'simple'), 1),
                                 ((member.id, -1, None, 'no epoch'), 1), (('', counted(now), None, 'no member'), 1)])

    def body(self, member, epoch, **changes):
        return {
            'GroupId': self.group, 'MemberId': member.id, 'MemberEpoch': counted(epoch), 'InstanceId': member.instance, **changes
        }

    def full(self, member, epoch, **changes):
        return self.body(
            member, epoch,
            **{'RebalanceTimeoutMs': 30_000, 'SubscribedTopicNames': ['§t1', '§t2'], 'TopicPartitions': [], **changes})

    def take(self, member, answer):
        if answer.get('ErrorCode') == 'NONE':
            member.epoch = answer['MemberEpoch']
            if answer['Assignment'] is not None:
                member.owned = answer['Assignment']['TopicPartitions']
        return answer

    def arrive(self):
        self.made += 1
        member = Member(self.made, f'§i{self.made}' if self.rng.random() < 0.4 else None)
        names = self.rng.choice([['§t1', '§t2'], ['§t1'], ['§t1', '§nowhere']])
        answer = self.ask_group(
            'ConsumerGroupHeartbeat',
            self.full(member, 0, SubscribedTopicNames=names, ServerAssignor=self.rng.choice([None, 'uniform', 'range'])),
            self.rng.choice([0, 1]))
        if self.take(member, answer).get('ErrorCode') == 'NONE':
            self.members.append(member)

    def beat(self):
        if not self.members:
            return
        member = self.rng.choice(self.members)
        changes = {}
        if member.owned is not None and self.rng.random() < 0.7:
            changes = {'TopicPartitions': member.owned}
        if self.rng.random() < 0.2:
            changes = {
                'RebalanceTimeoutMs': 30_000, 'SubscribedTopicNames': ['§t1', '§t2'], 'TopicPartitions': member.owned or []
            }
        self.take(member, self.ask_group('ConsumerGroupHeartbeat', self.body(member, member.epoch, **changes)))

    def subscribe(self):
        if self.members:
            member = self.rng.choice(self.members)
            self.take(
                member,
                self.ask_group('ConsumerGroupHeartbeat',
                               self.body(member, member.epoch, SubscribedTopicNames=self.rng.choice([['§t1'], ['§t2']]))))

    def wrong(self):
        member = self.rng.choice(self.members) if self.members else Member(99, None)
        stranger = Member(98, None)
        how = self.rng.choice([
            'ahead', 'before', 'nobody', 'nobody leaves', 'no member', 'no group', 'no timeout', 'no topics', 'owns at first',
            'assignor', 'regex', 'epoch -3', 'static leaves, is none', 'instance taken', 'empty instance', 'joins again',
            'empty rack'
        ])
        changes = {}
        body = {
            'ahead': self.body(member, member.epoch + 1 if member.epoch else -1),
            'before': self.body(member, member.epoch - 1 if member.epoch > 1 else -1),
            'nobody': self.body(stranger, 3 if self.members else 0), 'nobody leaves': self.body(stranger, -1),
            'no member': {**self.full(stranger, 0), 'MemberId': ''}, 'no group': {**self.full(stranger, 0), 'GroupId': ''},
            'no timeout': self.full(stranger, 0, RebalanceTimeoutMs=-1), 'no topics': self.full(stranger,
                                                                                                0,
                                                                                                SubscribedTopicNames=None),
            'owns at first': self.full(stranger, 0,
                                       TopicPartitions=[{'TopicId': self.topics[0].id,
                                                         'Partitions': [0]}]), 'assignor': self.full(stranger,
                                                                                                     0,
                                                                                                     ServerAssignor='best'),
            'regex': self.full(stranger, 0, SubscribedTopicNames=None,
                               SubscribedTopicRegex='(a'), 'epoch -3': self.body(member, -3),
            'static leaves, is none': self.body(stranger, -2), 'empty instance': {**self.full(stranger, 0), 'InstanceId': ''},
            'instance taken': {**self.full(stranger, 0), 'InstanceId': member.instance
                               or '§i77'}, 'joins again': self.full(member, 0), 'empty rack': self.full(stranger, 0, RackId='')
        }[how]
        version = 1 if 'SubscribedTopicRegex' in body or how == 'no member' else None
        answer = self.ask_group('ConsumerGroupHeartbeat', {**body, **changes}, version, note=how)
        if answer.get('ErrorCode') == 'NONE' and body['MemberId'] == stranger.id and body['MemberEpoch'] == 0:
            stranger.instance = body['InstanceId']
            self.ask_group('ConsumerGroupHeartbeat', self.body(stranger, -1), note='leaves at once')
        elif body is not None and how == 'joins again' and self.members:
            self.take(member, answer)

    def leave(self):
        if not self.members:
            return
        member = self.rng.choice(self.members)
        epoch = -2 if member.instance and self.rng.random() < 0.5 else -1
        self.ask_group('ConsumerGroupHeartbeat', self.body(member, epoch))
        if epoch == -1:
            self.members.remove(member)
        else:
            back = Member(f'{self.made}b{self.rng.randrange(1000)}', member.instance)
            answer = self.ask_group('ConsumerGroupHeartbeat', self.full(back, 0), 1, note='static again')
            if self.take(back, answer).get('ErrorCode') == 'NONE':
                self.members[self.members.index(member)] = back

    def classic(self):
        """Requests of the other protocol."""
        api, body = self.rng.choice([('JoinGroup', {
            'GroupId': self.group, 'SessionTimeoutMs': 30_000, 'RebalanceTimeoutMs': 30_000, 'MemberId': '',
            'ProtocolType': 'connect', 'Protocols': [{'Name': 'p', 'Metadata': {'hex': ''}}]
        }), ('Heartbeat', {'GroupId': self.group, 'GenerationId': 1, 'MemberId': '§nobody'}),
                                     ('SyncGroup',
                                      {'GroupId': self.group, 'GenerationId': 1, 'MemberId': '§nobody', 'Assignments': []}),
                                     ('LeaveGroup', {'GroupId': self.group, 'Members': [{'MemberId': '§nobody'}]})])
        if api != 'JoinGroup' or self.members:
            self.ask_group(api, body, {'JoinGroup': 5, 'Heartbeat': 3, 'SyncGroup': 4, 'LeaveGroup': 4}[api], note='classic')

    def look(self):
        self.ask_group('ConsumerGroupDescribe', {'GroupIds': [self.group]}, note='at the end')
        self.ask_group('OffsetFetch', {'GroupId': self.group, 'Topics': None}, 5, note='at the end')
