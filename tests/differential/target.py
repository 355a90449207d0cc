"""One of the two clusters that are compared: performs the steps of a sequence, and tells the answers without what may differ.

A step is data. In its body stand for others: `{"$": "p1"}`, what an earlier answer bound to that name; `{"$": "p1", "plus": 1}`;
bytes as `{"hex": "00"}`; record batches as `{"batches": [...]}` (`batches.py`); `{"epoch": 1}`, an epoch of a consumer group, the
first one counting as 1; `{"now": 0}`, the time in milliseconds. `§` in a string is a prefix of the run, so that sequences on one cluster do not meet. `to` says who is
asked: `node:2`, `group:NAME`, `txn:NAME`; `on` names the connection; `mode` is `send` or `receive` where an answer may have to
wait for other requests; `until` repeats a question until its answer has these values, for `patience` seconds at most. `settle`
and `complete` wait, `kill`, `stop` and `start` are done to a node; they are no requests.
"""
import time
import uuid

import batches
import schema
import wire
from checks import eventually
from normal import OPAQUE, Normal, at, order

# Errors that pass by themselves while a coordinator is found and loads.
NOT_YET = {'COORDINATOR_LOAD_IN_PROGRESS', 'COORDINATOR_NOT_AVAILABLE', 'NOT_COORDINATOR'}
BROKER, DELETE = 4, 1


class Target:
    """A cluster as one run of one sequence sees it."""

    def __init__(self, cluster, timeout=5.0):
        self.cluster, self.nodes = cluster, [cluster.addresses[node] for node in cluster.nodes]
        self.timeout, self.prefix = timeout, uuid.uuid4().hex[:8] + '-'
        # The nodes that do not run; the configs of brokers that were set, which would outlive the run.
        self.down, self.set = set(), set()
        # What names stand for; the connections by who is asked and their name; the coordinators that were found.
        self.bound, self.connections, self.found = {}, {}, {}
        # The first epoch that a consumer group's member was told, and the epochs that each producer was told.
        self.first_epoch, self.ladders = None, {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for node in sorted(self.down):
            self.start(node)
        self.clean()
        for connection in self.connections.values():
            connection.__exit__()

    def clean(self):
        """Deletes the topics of the run, so that the cluster stays small, and the configs of its brokers."""
        for broker, name in sorted(self.set):
            configs = [{'Name': name, 'ConfigOperation': DELETE, 'Value': None}]
            resource = {'ResourceType': BROKER, 'ResourceName': broker, 'Configs': configs}
            self.ask(int(broker or 1), 'IncrementalAlterConfigs', 1, {'Resources': [resource]})
        topics = self.ask(1, 'Metadata', 7, {'Topics': None})['Topics']
        mine = [t['Name'] for t in topics if t['Name'].startswith(self.prefix)]
        if mine:
            self.ask(1, 'DeleteTopics', 5, {'TopicNames': mine, 'TimeoutMs': 10_000})

    def perform(self, step):
        """The answer to a step, normalised; None where it has none."""
        if 'settle' in step:
            return self.settle(step['settle'])
        if 'complete' in step:
            return self.complete(self.resolve(step['complete']))
        if 'node' in step:
            return getattr(self, step['do'])(step['node'])
        if 'until' in step:
            return self.until(step)
        if step.get('mode') == 'receive':
            return self.receive(step)
        connection = self.connection(step)
        body = self.resolve(step['body'])
        self.note_configs(step['api'], body)
        try:
            if step.get('mode') == 'send':
                return self.send(connection, step, body)
            return self.tell(step, self.answer(step, connection, body))
        except (wire.Closed, TimeoutError, ConnectionError) as e:
            return self.lost(step, e)

    def answer(self, step, connection, body):
        """Asks; a coordinator that has no producer ids left says so, fetches more, and is asked again."""
        deadline = time.monotonic() + 10
        while True:
            answer = schema.call(connection, step['api'], step['version'], body)
            away = step['api'] == 'InitProducerId' and schema.errors()[answer['ErrorCode']] == 'COORDINATOR_LOAD_IN_PROGRESS'
            if not away or time.monotonic() > deadline:
                return answer
            time.sleep(0.02)

    def lost(self, step, reason):
        self.connections.pop((step['to'], step.get('on', '')), None)
        return {'lost': 'no answer' if isinstance(reason, TimeoutError) else 'closed'}

    def send(self, connection, step, body):
        question = schema.messages()[f'{step["api"]} request']
        connection.correlation += 1
        flexible = step['version'] >= question.flexible
        payload = question.encode(step['version'], body)
        connection.send_raw(wire.frame(wire.request(question.key, step['version'], payload, connection.correlation, flexible)))

    def receive(self, step):
        """The answer to what `send` sent on this connection."""
        connection = self.connection(step)
        try:
            _, answer = connection.receive()
        except (wire.Closed, TimeoutError, ConnectionError) as e:
            return self.lost(step, e)
        message = schema.messages()[f'{step["api"]} response']
        reader = wire.Reader(answer)
        if step['version'] >= message.flexible:
            reader.tags()
        return self.tell(step, message.decode(step['version'], reader))

    def until(self, step):
        """Asks again until the answer has what `until` says it shall have; that is compared then."""
        question = {k: v for k, v in step.items() if k != 'until'}
        wanted = list(step['until'].items())

        def reached():
            answer = self.perform(question)
            return answer if all(at(answer, path.split('.')) == value for path, value in wanted) else None

        try:
            return eventually(reached, f'{step["api"]} to say {wanted}', step.get('patience', 3), pause=0.02)
        except TimeoutError:
            return {'never': dict(wanted), 'but': self.perform(question)}

    def tell(self, step, answer):
        """Binds what the step wants bound, and normalises."""
        answer = order(answer)
        for name, path in step.get('bind', {}).items():
            last = path.rsplit('.', 1)[-1]
            value = at(answer, path.split('.'))
            self.bound[name] = OPAQUE.get(last, -1) if value is None else value
        if step['api'] == 'ConsumerGroupHeartbeat' and not self.first_epoch and answer['MemberEpoch'] > 0:
            self.first_epoch = answer['MemberEpoch']
        normal = Normal(self, step).of(answer)
        for name in step.get('bind', {}):
            if f'{name} epoch' in self.bound and self.bound[f'{name} epoch'] >= 0:
                self.ladders.setdefault(self.bound[name], set()).add(self.bound[f'{name} epoch'])
        return normal

    # What is done to nodes, and to what outlives the run.

    def kill(self, node):
        self.leave(node)
        self.cluster.kill(node)

    def stop(self, node):
        self.leave(node)
        self.cluster.stop(node)

    def leave(self, node):
        self.down.add(node)
        for key in [key for key in self.connections if key[0] == f'node:{node}']:
            self.connections.pop(key).__exit__()

    def start(self, node):
        self.cluster.start(node)
        eventually(lambda: wire.metadata(self.nodes[node - 1], timeout=2)[0].get(node), f'node {node} to be back', 120)
        self.down.discard(node)

    def note_configs(self, api, body):
        if api == 'IncrementalAlterConfigs' and not body.get('ValidateOnly'):
            mine = (resource for resource in body['Resources'] if resource['ResourceType'] == BROKER)
            self.set.update((resource['ResourceName'], config['Name']) for resource in mine for config in resource['Configs'])

    # Who is asked.

    def connection(self, step):
        key = (step['to'], step.get('on', ''))
        if key not in self.connections:
            kind, _, name = step['to'].partition(':')
            node = int(name) if kind == 'node' else self.coordinator(kind, self.resolve(name))
            self.connections[key] = wire.Connection(self.nodes[node - 1], self.timeout)
        return self.connections[key]

    def ask(self, node, api, version, body):
        """An answer that is not compared."""
        return schema.call(self.connection({'to': f'node:{node}', 'on': 'asides'}), api, version, body)

    def coordinator(self, kind, name):
        """The node that coordinates a group or a transactional id, once it is ready to."""
        if (kind, name) not in self.found:
            self.found[kind, name] = eventually(lambda: self.ready_coordinator(kind, name), f'a coordinator of {name}', 60)
        return self.found[kind, name]

    def ready_coordinator(self, kind, name):
        answer = self.ask(1, 'FindCoordinator', 3, {'Key': name, 'KeyType': 1 if kind == 'txn' else 0})
        if answer['ErrorCode']:
            return None
        node = answer['NodeId']
        if kind == 'txn':
            state = self.ask(node, 'DescribeTransactions', 0, {'TransactionalIds': [name]})['TransactionStates'][0]
        else:
            state = self.ask(node, 'DescribeGroups', 5, {'Groups': [name]})['Groups'][0]
        return None if schema.errors()[state['ErrorCode']] in NOT_YET else node

    def complete(self, name):
        """Waits until no transaction of this id is between its decision and its markers."""
        node = self.coordinator('txn', name)

        def done():
            state = self.ask(node, 'DescribeTransactions', 0, {'TransactionalIds': [name]})['TransactionStates'][0]
            return not state['TransactionState'].startswith('Prepare')

        eventually(done, f'the transaction of {name} to be complete', 30, 0.02)

    def settle(self, topics):
        """Waits until every node knows these topics (with so many partitions; none: they are gone), and their leaders lead."""
        for name, count in topics.items():
            real = self.resolve(name)
            for node in range(1, len(self.nodes) + 1):
                eventually(lambda: self.knows(node, real, count), f'node {node} to know {real} with {count} partitions', 30, 0.02)

    def knows(self, node, topic, count):
        [state] = self.ask(node, 'Metadata', 7, {'Topics': [{'Name': topic}], 'AllowAutoTopicCreation': False})['Topics']
        partitions = state['Partitions']
        if count is None:
            return state['ErrorCode'] == 3
        if len(partitions) != count or any(len(p['IsrNodes']) != len(p['ReplicaNodes']) or p['LeaderId'] < 0 for p in partitions):
            return False
        return all(self.leads(p['LeaderId'], topic, p['PartitionIndex']) for p in partitions if p['LeaderId'] == node)

    def leads(self, node, topic, partition):
        question = {'ReplicaId': -1, 'Topics': [{'Name': topic, 'Partitions': [{'PartitionIndex': partition, 'Timestamp': -1}]}]}
        return self.ask(node, 'ListOffsets', 2, question)['Topics'][0]['Partitions'][0]['ErrorCode'] == 0

    def resolve(self, value):
        """A body, or a part of one, as this cluster is sent it."""
        if isinstance(value, str):
            return value.replace('§', self.prefix)
        if isinstance(value, list):
            return [self.resolve(item) for item in value]
        if not isinstance(value, dict):
            return value
        if '$' in value:
            bound = self.bound[value['$']]
            return bound + value['plus'] if 'plus' in value else bound
        if 'now' in value:
            return int(time.time() * 1000) + value['now']
        if 'epoch' in value and len(value) == 1:
            return value['epoch'] + self.first_epoch - 1
        if 'hex' in value:
            return bytes.fromhex(value['hex'])
        if 'batches' in value:
            return b''.join(batches.build(self.resolve(d)) for d in value['batches'])
        return {key: self.resolve(item) for key, item in value.items()}
