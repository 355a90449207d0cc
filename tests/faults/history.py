"""What happened in a run, and whether it may have happened.

A `History` holds every operation with its invocation and completion time, the log as read back at the end, and the bytes
of each replica. `check` returns the anomalies, an empty list when there are none. An error of a produce after it was sent
says nothing of its outcome: such an operation is `unknown` and may be in the log once, or not. `failed` is only what the
client refused before sending, and must never be seen. An acknowledgement can come without an offset (-1): so a client
tells of a retry that the broker knew as a duplicate and whose offset it no longer remembered.

The log under test is of plain topics, without transactions, compaction or deletion: its offsets have no holes.
"""
import collections
import dataclasses
import hashlib
import json
import pathlib
import struct

OK, UNKNOWN, FAILED = 'ok', 'unknown', 'failed'


@dataclasses.dataclass
class Produce:
    """One record. `seq` counts up per producer and partition in the order of sending; `value` is unique in the run."""
    producer: str
    partition: int
    seq: int
    value: str
    invoke: float
    complete: float = 0.0
    status: str = UNKNOWN
    offset: int = -1
    error: str = ''


@dataclasses.dataclass
class Poll:
    """One record that a group member was given. A session is one assignment of the partition to the member."""
    consumer: str
    session: int
    partition: int
    offset: int
    value: str
    at: float


@dataclasses.dataclass
class Commit:
    """One synchronous offset commit of the group."""
    partition: int
    offset: int
    invoke: float
    complete: float
    status: str
    error: str = ''


@dataclasses.dataclass
class Committed:
    """The group's offset as fetched; -1 for none."""
    partition: int
    offset: int
    invoke: float
    complete: float


@dataclasses.dataclass
class History:
    produces: list = dataclasses.field(default_factory=list)
    polls: list = dataclasses.field(default_factory=list)
    commits: list = dataclasses.field(default_factory=list)
    committed: list = dataclasses.field(default_factory=list)
    # {partition: [(offset, value)]} in the order in which the final reader got them, up to the high watermark.
    log: dict = dataclasses.field(default_factory=dict)
    high_watermark: dict = dataclasses.field(default_factory=dict)
    # {partition: {node: [(first offset, last offset, digest of the batch's bytes)]}}
    replicas: dict = dataclasses.field(default_factory=dict)
    # Faults and notes, (time, text).
    events: list = dataclasses.field(default_factory=list)

    def save(self, path):
        with open(path, 'w') as f:
            for kind in ('events', 'produces', 'polls', 'commits', 'committed'):
                for item in getattr(self, kind):
                    body = item if isinstance(item, (list, tuple)) else dataclasses.astuple(item)
                    f.write(json.dumps([kind, *body]) + '\n')
            for kind in ('log', 'high_watermark', 'replicas'):
                f.write(json.dumps([kind, getattr(self, kind)]) + '\n')


@dataclasses.dataclass(frozen=True)
class Anomaly:
    kind: str
    text: str

    def __str__(self):
        return f'{self.kind}: {self.text}'


def check(history):
    """All anomalies of the run, in the order of the checks below."""
    return [a for rule in (check_log, check_acknowledged, check_values, check_order, check_real_time, check_polls,
                           check_committed, check_replicas) for a in rule(history)]


def check_log(history):
    """`hole`: the final read has every offset from 0 to the high watermark once, in order."""
    for part, records in history.log.items():
        offsets = [o for o, _ in records]
        if offsets != list(range(history.high_watermark[part])):
            odd = next((i for i, o in enumerate(offsets) if o != i), len(offsets))
            yield Anomaly('hole', f'partition {part}: read {len(offsets)} records, high watermark '
                                  f'{history.high_watermark[part]}, first odd offset at place {odd}')


def _places(history):
    places = collections.defaultdict(list)
    for part, records in history.log.items():
        for offset, value in records:
            places[value].append((part, offset))
    return places


def check_acknowledged(history):
    """`lost`: an acknowledged record is not in the log; `wrong-offset`: it is, but not where it was acknowledged;
    `same-offset`: two records were acknowledged at one place."""
    places, taken = _places(history), {}
    for op in history.produces:
        if op.status != OK:
            continue
        at = (op.partition, op.offset)
        if op.offset < 0:
            if not any(part == op.partition for part, _ in places[op.value]):
                yield Anomaly('lost', f'{op.value}, acknowledged without an offset, is not in partition {op.partition}')
            continue
        if at in taken:
            yield Anomaly('same-offset', f'{op.value} and {taken[at]} were both acknowledged at {at}')
        taken[at] = op.value
        if not places[op.value]:
            yield Anomaly('lost', f'{op.value}, acknowledged at {at}, is not in the log')
        elif at not in places[op.value]:
            yield Anomaly('wrong-offset', f'{op.value}, acknowledged at {at}, is at {places[op.value]}')


def check_values(history):
    """`duplicate`: a value is in the log twice; `phantom`: nobody sent it; `failed-visible`: its sender was told that
    it was not sent."""
    sent = {op.value: op for op in history.produces}
    for value, places in _places(history).items():
        if len(places) > 1:
            yield Anomaly('duplicate', f'{value} is at {places}')
        if value not in sent:
            yield Anomaly('phantom', f'{value} at {places} was never sent')
        elif sent[value].status == FAILED:
            yield Anomaly('failed-visible', f'{value} at {places} had failed before it was sent')


def check_order(history):
    """`reordered`: the records of one producer in one partition are in the log in the order of sending."""
    sent = {op.value: op for op in history.produces}
    for part, records in history.log.items():
        last = {}
        for offset, value in records:
            op = sent.get(value)
            if op is None:
                continue
            before = last.get(op.producer)
            if before is not None and before.seq > op.seq:
                yield Anomaly('reordered', f'partition {part}: {value} at {offset} is behind {before.value}')
            last[op.producer] = op


def check_real_time(history):
    """`stale-offset`: a record sent after another one of its partition was acknowledged has a higher offset."""
    by_partition = collections.defaultdict(list)
    for op in history.produces:
        if op.status == OK and op.offset >= 0:
            by_partition[op.partition].append(op)
    for part, ops in by_partition.items():
        done = sorted(ops, key=lambda op: op.complete)
        highest, i = None, 0
        for op in sorted(ops, key=lambda op: op.invoke):
            while i < len(done) and done[i].complete < op.invoke:
                if highest is None or done[i].offset > highest.offset:
                    highest = done[i]
                i += 1
            if highest is not None and highest.offset > op.offset:
                yield Anomaly('stale-offset', f'partition {part}: {op.value} got {op.offset} after {highest.value} '
                                              f'had been acknowledged at {highest.offset}')


def check_polls(history):
    """`nonmonotonic-poll` and `poll-skip`: within a session offsets go up by one; `unstable-read`: a consumer saw
    something else than the log holds at the end."""
    last, final = {}, {(p, o): v for p, records in history.log.items() for o, v in records}
    for poll in history.polls:
        session = (poll.consumer, poll.session, poll.partition)
        before = last.get(session)
        last[session] = poll.offset
        if before is not None and poll.offset <= before:
            yield Anomaly('nonmonotonic-poll', f'{session}: {poll.offset} after {before}')
        elif before is not None and poll.offset != before + 1:
            yield Anomaly('poll-skip', f'{session}: {poll.offset} after {before}')
        if final.get((poll.partition, poll.offset)) != poll.value:
            yield Anomaly('unstable-read', f'{session}: {poll.value} at {poll.offset} was read, the log holds '
                                           f'{final.get((poll.partition, poll.offset))}')


def check_committed(history):
    """`commit-went-back`: a fetched offset is below one committed or fetched before it was asked for;
    `commit-invented`: nobody committed it."""
    tried = collections.defaultdict(set)
    for c in history.commits:
        tried[c.partition].add(c.offset)
    known = [(c.complete, c.partition, c.offset) for c in history.commits if c.status == OK]
    known += [(c.complete, c.partition, c.offset) for c in history.committed]
    known.sort()
    floor, i = {}, 0
    for fetch in sorted(history.committed, key=lambda c: c.invoke):
        while i < len(known) and known[i][0] < fetch.invoke:
            _, part, offset = known[i]
            floor[part] = max(floor.get(part, -1), offset)
            i += 1
        if fetch.offset < floor.get(fetch.partition, -1):
            yield Anomaly('commit-went-back', f'partition {fetch.partition}: {fetch.offset} after {floor[fetch.partition]}')
        if fetch.offset >= 0 and fetch.offset not in tried[fetch.partition]:
            yield Anomaly('commit-invented', f'partition {fetch.partition}: nobody committed {fetch.offset}')


def check_replicas(history):
    """`diverged-replica`: below the high watermark every replica holds the same batches, byte for byte;
    `short-replica`: one ends below the high watermark."""
    for part, replicas in history.replicas.items():
        end = history.high_watermark[part]
        below = {node: [b for b in batches if b[0] < end] for node, batches in replicas.items()}
        for node, batches in below.items():
            reached = batches[-1][1] + 1 if batches else 0
            if reached < end:
                yield Anomaly('short-replica', f'partition {part}, node {node}: it ends at {reached}, high watermark {end}')
        first = min(below)
        for node in sorted(below):
            for mine, theirs in zip(below[first], below[node]):
                if tuple(mine) != tuple(theirs):
                    yield Anomaly('diverged-replica', f'partition {part}: nodes {first} and {node} differ at {mine[:2]}, {theirs[:2]}')
                    break


def read_replica(directory):
    """[(first offset, last offset, digest)] of the batches in a partition's segments. An unfinished batch at the very
    end is being written and ends the walk."""
    out = []
    for file in sorted(pathlib.Path(directory).glob('*.log')):
        data, at = file.read_bytes(), 0
        while at + 61 <= len(data):
            base, length = struct.unpack_from('>qi', data, at)
            if length < 49 or at + 12 + length > len(data):
                break
            (last_delta,) = struct.unpack_from('>i', data, at + 23)
            out.append((base, base + last_delta, hashlib.sha256(data[at:at + 12 + length]).hexdigest()[:16]))
            at += 12 + length
    return out
