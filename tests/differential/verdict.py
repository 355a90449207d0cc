"""What two answers differ in, and which of it is expected."""
import dataclasses
import re

import expected
from normal import identity

# What changes nothing, whatever it answers.
READING = {
    'Fetch', 'Metadata', 'DescribeConfigs', 'DescribeTopicPartitions', 'ListOffsets', 'OffsetForLeaderEpoch', 'DescribeGroups',
    'ListGroups', 'OffsetFetch', 'DescribeProducers', 'DescribeTransactions', 'ListTransactions', 'DescribeLogDirs',
    'ConsumerGroupDescribe', 'DescribeCluster', 'ListPartitionReassignments', 'ElectLeaders', 'FindCoordinator',
    'ListConfigResources', 'Heartbeat', 'UpdateFeatures'
}


@dataclasses.dataclass(frozen=True)
class Difference:
    """A field of an answer in which the clusters differ."""
    api: str
    path: str
    kafka: object
    ottla: object
    note: str = ''

    def kind(self):
        """What makes two differences the same one: neither indices nor which sequence it was."""
        return self.api, re.sub(r'\.\d+', '[]', self.path), brief(self.kafka), brief(self.ottla), self.note

    def parts(self):
        """Whether the clusters hold different things from here on: one did what the other refused."""
        return self.path.endswith('ErrorCode') and 'NONE' in (self.kafka, self.ottla) and self.api not in READING

    def __str__(self):
        api, path, kafka, ottla, note = self.kind()
        return f'{api} {path}: Kafka {kafka}, Ottla {ottla}' + (f' ({note})' if note else '')


def brief(value):
    text = repr(value) if not isinstance(value, dict) else '{' + ' '.join(part.strip() for part in identity(value)) + '}'
    return text if len(text) <= 90 else text[:87] + '...'


def differences(step, kafka, ottla):
    """Every field in which two answers to one step differ."""
    out = []
    walk(kafka, ottla, '',
         lambda path, a, b: out.append(Difference(step.get('api', 'wait'), path.lstrip('.'), a, b, step.get('note', ''))))
    return out


def walk(a, b, path, tell):
    if isinstance(b, dict) and 'lost' in b and a != b:
        tell(path, a, b['lost'])
    elif isinstance(b, dict) and 'never' in b and 'never' not in a:
        walk(a, b['but'], path, tell)
    elif isinstance(a, dict) and isinstance(b, dict) and a.get('ErrorCode') != b.get('ErrorCode'):
        # What else an answer says follows from its error.
        tell(f'{path}.ErrorCode', a.get('ErrorCode', '<absent>'), b.get('ErrorCode', '<absent>'))
    elif isinstance(a, dict) and isinstance(b, dict):
        for key in list(a) + [key for key in b if key not in a]:
            walk(a.get(key, '<absent>'), b.get(key, '<absent>'), f'{path}.{key}', tell)
    elif keyed(a) and keyed(b):
        mine, theirs = keyed(a), keyed(b)
        for key in list(mine) + [key for key in theirs if key not in mine]:
            walk(mine.get(key, '<absent>'), theirs.get(key, '<absent>'), f'{path}.0', tell)
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for index, (x, y) in enumerate(zip(a, b)):
            walk(x, y, f'{path}.{index}', tell)
    elif a != b or isinstance(a, bool) != isinstance(b, bool):
        tell(path, a, b)


def keyed(items):
    """A list of structs that say which one they are, by that; None where they do not."""
    if not isinstance(items, list) or not all(isinstance(item, dict) and identity(item) for item in items):
        return None
    return {tuple(identity(item)): item
            for item in items} if len({tuple(identity(item))
                                       for item in items}) == len(items) else None


def split(found):
    """(those that are expected, with the entry that says so; the others)"""
    known, new = [], []
    for difference in found:
        entry = next((e for e in expected.EXPECTED if matches(e, difference)), None)
        (known.append((entry, difference)) if entry else new.append(difference))
    return known, new


def matches(entry, difference):
    api, path, kafka, ottla, note = difference.kind()
    return (re.fullmatch(entry.api, api) and re.fullmatch(entry.path, path) and re.fullmatch(entry.kafka, kafka)
            and re.fullmatch(entry.ottla, ottla) and re.fullmatch(entry.note, note))
