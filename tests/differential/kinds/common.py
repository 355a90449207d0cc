"""What the kinds share: topics whose replicas are told, so that the leaders are the same ones on both sides."""

NO_ID = '0' * 32
# An id and a name that nothing has.
STRANGER, NOWHERE = '00112233445566778899aabbccddeeff', '§nowhere'


class Topic:
    """A topic as the sequence believes it to be."""

    def __init__(self, name, assignment):
        self.name, self.assignment = name, assignment

    @property
    def id(self):
        return {'$': f'id of {self.name}'}

    def leader(self, partition):
        return f'node:{self.assignment[partition][0]}' if 0 <= partition < len(self.assignment) else 'node:1'


def create(script, name, assignment, configs=()):
    """A topic on given replicas, known to every node; its id is bound."""
    topic = Topic(name, assignment)
    body = {
        'Topics': [{
            'Name': name, 'NumPartitions': -1, 'ReplicationFactor': -1,
            'Assignments': [{'PartitionIndex': i, 'BrokerIds': b} for i, b in enumerate(assignment)],
            'Configs': [{'Name': k, 'Value': v} for k, v in configs]
        }], 'TimeoutMs': 10_000
    }
    answer = script.call('CreateTopics', body, version=7, bind={f'id of {name}': 'Topics.0.TopicId'})
    if answer['Topics'][0]['ErrorCode'] != 'NONE':
        raise RuntimeError(f'{name} could not be created: {answer}')
    script.settle({name: len(assignment)})
    return topic


def some_assignment(rng, partitions, factor=None):
    """Replicas for so many partitions, all of one replication factor."""
    out, factor = [], factor or rng.choice([1, 2, 3, 3])
    for _ in range(partitions):
        nodes = [1, 2, 3]
        rng.shuffle(nodes)
        out.append(nodes[:factor])
    return out
