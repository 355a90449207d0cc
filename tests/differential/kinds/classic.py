"""Groups whose members assign for themselves: JoinGroup, SyncGroup, Heartbeat, LeaveGroup."""
from .offsets import Offsets

SUBSCRIPTION = {'hex': '0000' + '00000001' + '0002' + '7431' + 'ffffffff'}
ASSIGNMENT = {'hex': '0000' + '00000000' + 'ffffffff'}
NOBODY = '§nobody'


def sequence(script, topics, steps=30):
    group = Classic(script, topics)
    for _ in range(steps):
        script.some(group.moves())()
    group.look()


class Member:
    """A member as its client sees it."""

    def __init__(self, number, instance):
        self.bound, self.instance, self.on, self.generation = f'm{number}', instance, f'member {number}', -1

    @property
    def id(self):
        return {'$': self.bound}


class Classic(Offsets):
    """One group: who is in it, and its generation, by Kafka's answers."""

    def __init__(self, script, topics):
        super().__init__(script, topics)
        self.members, self.gone, self.made, self.generation, self.leader = [], [], 0, 0, None

    def moves(self):
        more = 4 if len(self.members) < 3 else 0
        return self.offset_moves() + [(self.arrive, more), (self.wrong_join, 3), (self.heartbeat, 5), (self.sync, 4),
                                      (self.leave, 2), (self.rejoin, 2), (self.expire, 0.3), (self.replace, 1)]

    def identity(self):
        member = self.rng.choice(self.members) if self.members else None
        now = self.generation
        if member is None:
            return self.script.some([(('', -1, None, 'simple'), 5), ((NOBODY, 0, None, 'nobody'), 1),
                                     (('', 3, None, 'no member'), 1), (('', -1, '§i9', 'simple with instance'), 1),
                                     ((NOBODY, -1, None, 'nobody, no generation'), 1)])
        choices = [((member.id, now, member.instance, ''), 6), ((member.id, now + 1, member.instance, 'generation ahead'), 1),
                   ((member.id, now - 1, member.instance, 'generation before'), 1), ((NOBODY, now, None, 'nobody'), 1),
                   (('', -1, None, 'simple'), 1), (('', now, None, 'no member'), 1), ((member.id, -1, None, 'no generation'), 1),
                   ((member.id, now, '§i9', 'another instance'), 1)]
        if member.instance:
            choices.append(((NOBODY, now, member.instance, 'fenced'), 2))
        return self.script.some(choices)

    # Coming.

    def join_body(self, member_id, instance, **changes):
        return {
            'GroupId': self.group, 'SessionTimeoutMs': 60_000, 'RebalanceTimeoutMs': 30_000, 'MemberId': member_id,
            'GroupInstanceId': instance, 'ProtocolType': 'consumer', 'Protocols': [{'Name': 'range', 'Metadata': SUBSCRIPTION}],
            'Reason': 'test', **changes
        }

    def arrive(self):
        """A new member: alone at once, else when everybody has joined again."""
        self.made += 1
        instance = f'§i{self.made}' if self.rng.random() < 0.4 else None
        member = Member(self.made, instance)
        version = self.rng.choice([5, 6, 7, 8, 9] if instance else [2, 3, 4, 5, 7, 9])
        if version >= 4 and not instance:
            self.ask_group('JoinGroup', self.join_body('', None), version, on=member.on, bind={member.bound: 'MemberId'})
            body = self.join_body(member.id, None)
        else:
            body = self.join_body('', instance)
        self.rebalance(member, body, version)

    def rebalance(self, member, body, version):
        """Joins with a member, and with everybody else once they hear of it; then assigns."""
        others = [m for m in self.members if m is not member]
        self.ask_group('JoinGroup', body, version, on=member.on, mode='send')
        for other in others:
            self.ask_group(
                'Heartbeat',
                {'GroupId': self.group, 'GenerationId': self.generation, 'MemberId': other.id, 'GroupInstanceId': other.instance},
                3,
                until={'ErrorCode': 'REBALANCE_IN_PROGRESS'})
        for other in others:
            self.ask_group('JoinGroup', self.join_body(other.id, other.instance), 7, on=other.on, mode='send')
        answer = self.script.receive('JoinGroup', version, self.to, member.on, bind={member.bound: 'MemberId'})
        if answer.get('ErrorCode') != 'NONE':
            raise RuntimeError(f'a join failed: {answer}')
        self.generation, leader = answer['GenerationId'], None
        if member not in self.members:
            self.members.append(member)
        if answer['Leader'] == answer['MemberId']:
            leader = member
        for other in others:
            told = self.script.receive('JoinGroup', 7, self.to, other.on)
            leader = other if told['Leader'] == told['MemberId'] else leader
        self.leader = leader or self.members[0]
        for each in sorted(self.members, key=lambda m: m is self.leader):
            assignments = [{'MemberId': m.id, 'Assignment': ASSIGNMENT} for m in self.members] if each is self.leader else []
            self.ask_group('SyncGroup', self.sync_body(each, assignments), 5, on=each.on, mode='send')
        for each in self.members:
            self.script.receive('SyncGroup', 5, self.to, each.on)

    def sync_body(self, member, assignments, **changes):
        return {
            'GroupId': self.group, 'GenerationId': self.generation, 'MemberId': member.id, 'GroupInstanceId': member.instance,
            'ProtocolType': 'consumer', 'ProtocolName': 'range', 'Assignments': assignments, **changes
        }

    def rejoin(self):
        """The leader joins again: everybody has to; of the others it moves nobody if nothing changed."""
        if not self.members:
            return
        if len(self.members) == 1 or self.rng.random() < 0.5:
            self.rebalance(self.leader, self.join_body(self.leader.id, self.leader.instance), 9)
            return
        follower = next(m for m in self.members if m is not self.leader)
        self.ask_group('JoinGroup', self.join_body(follower.id, follower.instance), note='nothing changed')

    def replace(self):
        """A static member comes back without its member id: the old id is fenced, and nobody else hears of it."""
        static = [m for m in self.members if m.instance]
        if not static:
            return
        member = self.rng.choice(static)
        old = member.bound
        member.bound = f'{old}again'
        self.ask_group('JoinGroup',
                       self.join_body('', member.instance),
                       self.rng.choice([7, 8, 9]),
                       on=member.on,
                       bind={member.bound: 'MemberId'},
                       note='static again')
        self.ask_group(
            'Heartbeat',
            {'GroupId': self.group, 'GenerationId': self.generation, 'MemberId': {'$': old}, 'GroupInstanceId': member.instance},
            self.rng.choice([3, 4]),
            note='the id before')

    def wrong_join(self):
        changes, note = self.rng.choice([
            ({'GroupId': ''}, 'no group'), ({'SessionTimeoutMs': 1}, 'short session'),
            ({'SessionTimeoutMs': 2**31 - 1}, 'long session'), ({'ProtocolType': 'connect'}, 'another type'),
            ({'ProtocolType': ''}, 'no type'), ({'Protocols': []}, 'no protocols'),
            ({'Protocols': [{'Name': 'other', 'Metadata': SUBSCRIPTION}]}, 'another protocol'), ({'MemberId': NOBODY}, 'nobody'),
            ({'MemberId': NOBODY, 'GroupInstanceId': '§i77'}, 'nobody with an instance'),
            ({'MemberId': NOBODY, 'GroupInstanceId': self.members[0].instance if self.members else None}, 'fenced')
        ])
        if note in ('another protocol', 'another type') and not self.members:
            return
        body = {**self.join_body('', None), **changes}
        version = self.rng.choice([5, 6, 7, 8, 9])
        self.ask_group('JoinGroup', body, version, note=note)

    # Staying.

    def heartbeat(self):
        member, generation, instance, note = self.identity()
        group = self.a_group()
        self.ask_group('Heartbeat',
                       {'GroupId': group, 'GenerationId': generation, 'MemberId': member, 'GroupInstanceId': instance},
                       group=group,
                       note=note)

    def sync(self):
        member, generation, instance, note = self.identity()
        body = {
            'GroupId': self.group, 'GenerationId': generation, 'MemberId': member, 'GroupInstanceId': instance,
            'ProtocolType': self.script.some([('consumer', 8), ('connect', 1), (None, 1)]),
            'ProtocolName': self.script.some([('range', 8), ('other', 1), (None, 1)]), 'Assignments': []
        }
        self.ask_group('SyncGroup', body, note=note)

    # Going.

    def expire(self):
        """A member of another group that is not heard of: its session ends, and it is nobody."""
        group = f'§short {len(self.script.steps)}'
        member = Member(f'short {len(self.script.steps)}', None)
        body = self.join_body('', None, GroupId=group, SessionTimeoutMs=300)
        self.ask_group('JoinGroup', body, 4, group, bind={member.bound: 'MemberId'})
        answer = self.ask_group('JoinGroup', {**body, 'MemberId': member.id}, 7, group)
        sync = {'GroupId': group, 'GenerationId': answer['GenerationId'], 'MemberId': member.id, 'Assignments': []}
        self.ask_group('SyncGroup', sync, 3, group)
        self.ask_group('DescribeGroups', {'Groups': [group]}, 5, group, until={'Groups.0.GroupState': 'Empty'})
        beat = {'GroupId': group, 'GenerationId': answer['GenerationId'], 'MemberId': member.id}
        self.ask_group('Heartbeat', beat, None, group, note='expired')
        self.ask_group('DeleteGroups', {'GroupsNames': [group]}, None, group)

    def leave(self):
        how = self.script.some([('well', 4), ('nobody', 1), ('by instance', 2), ('unknown instance', 1), ('several', 1),
                                ('none', 1), ('fenced', 1)])
        # Who leads after a leader that left, Kafka takes from a hash table of ids that it made up: of several, anybody.
        leavers = [m for m in self.members if m is not self.leader or len(self.members) < 3]
        static = [m for m in leavers if m.instance]
        if how == 'well' and leavers:
            member = self.rng.choice(leavers)
            old = self.rng.random() < 0.3 and not member.instance
            body = {'GroupId': self.group, 'MemberId': member.id} if old else \
                {'GroupId': self.group, 'Members': [{'MemberId': member.id, 'GroupInstanceId': member.instance, 'Reason': 'bye'}]}
            self.ask_group('LeaveGroup', body, self.rng.choice([0, 1, 2] if old else [3, 4, 5]), note=how)
            self.lost(member)
        elif how == 'by instance' and static:
            member = self.rng.choice(static)
            self.ask_group('LeaveGroup',
                           {'GroupId': self.group, 'Members': [{'MemberId': '', 'GroupInstanceId': member.instance}]},
                           self.rng.choice([3, 4, 5]),
                           note=how)
            self.lost(member)
        else:
            wrong = {'MemberId': NOBODY, 'GroupInstanceId': None}
            members = {
                'unknown instance': [{'MemberId': '', 'GroupInstanceId': '§i55'}],
                'several': [wrong, {'MemberId': '', 'GroupInstanceId': '§i56'}], 'none': [],
                'fenced': [{'MemberId': NOBODY, 'GroupInstanceId': static[0].instance if static else None}]
            }.get(how, [wrong])
            self.ask_group('LeaveGroup', {'GroupId': self.group, 'Members': members}, self.rng.choice([3, 4, 5]), note=how)

    def lost(self, member):
        """Somebody has left: those who stay join again."""
        self.members.remove(member)
        if not self.members:
            return
        first = self.members[0]
        self.rebalance(first, self.join_body(first.id, first.instance), 9)

    def look(self):
        self.ask_group('DescribeGroups', {'Groups': [self.group]}, 5, note='at the end')
        self.ask_group('OffsetFetch', {'GroupId': self.group, 'Topics': None}, 5, note='at the end')
