"""Apache Kafka's own tools: kafka-reassign-partitions, kafka-log-dirs and kafka-leader-election as operators use them,
kafka-verifiable-producer and kafka-verifiable-consumer, and kafka-dump-log on the files of a broker that runs on this machine.

KAFKA_CLASS_PATH is what the tools are run from.
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / 'lib'))
import cluster as clusters  # noqa: E402
from checks import Suite, addresses, bootstrap, equal, eventually, wait_topic  # noqa: E402
import wire  # noqa: E402
from wire import unique  # noqa: E402

suite = Suite('tools')
B = bootstrap()
JAVA = ['java', '-Xmx256m', '-XX:+UseSerialGC', '-XX:TieredStopAtLevel=1', '-Dlog4j2.level=OFF', '-cp',
        os.environ['KAFKA_CLASS_PATH']]
REASSIGN = 'org.apache.kafka.tools.reassign.ReassignPartitionsCommand'
ELECT = 'org.apache.kafka.tools.LeaderElectionCommand'
DUMP = 'org.apache.kafka.tools.DumpLogSegments'
LOG_DIRS = 'org.apache.kafka.tools.LogDirsCommand'


def tool(name, *arguments, fails=False, server=B):
    done = subprocess.run([*JAVA, name, '--bootstrap-server', server, *arguments], capture_output=True, text=True, timeout=60)
    if bool(done.returncode) != fails:
        raise AssertionError(f'{name} {" ".join(arguments)} ended with {done.returncode}: {done.stdout}{done.stderr}')
    return done.stdout + done.stderr


def written(content):
    file = tempfile.NamedTemporaryFile('w', suffix='.json', delete=False)
    with file:
        json.dump(content, file)
    return file.name


def plan(topic, replicas):
    return written({'version': 1, 'partitions': [
        {'topic': topic, 'partition': p, 'replicas': r} for p, r in enumerate(replicas)]})


def topic(partitions, factor):
    name = unique('tools')
    equal(wire.create_topic(addresses()[0], name, partitions, factor), 0, 'CreateTopics')
    wait_topic(name, partitions)
    return name


def partitions(name):
    """[(leader, replicas, isr)] by partition"""
    error, parts = wire.metadata(addresses()[0], [name])[2][name]
    equal(error, 0, name)
    return [(leader, replicas, isr) for _, (_, leader, replicas, isr) in sorted(parts.items())]


def settled(name, replicas):
    return all(r == want and sorted(i) == sorted(want) and leader in want
               for (leader, r, i), want in zip(partitions(name), replicas))


@suite.check
def reassignment():
    """a plan is executed, verified and listed as done; growing and shrinking included"""
    name = topic(2, 2)
    before = [r for _, r, _ in partitions(name)]
    want = [[({1, 2, 3} - set(r)).pop(), r[0]] for r in before]
    file = plan(name, want)
    out = tool(REASSIGN, '--reassignment-json-file', file, '--execute')
    assert 'Successfully started partition reassignments' in out, out
    eventually(lambda: settled(name, want), 'the replicas to move', 30)
    out = tool(REASSIGN, '--reassignment-json-file', file, '--verify')
    assert out.count('is completed.') == 2, out
    want = [[1, 2, 3], [2]]
    tool(REASSIGN, '--reassignment-json-file', plan(name, want), '--execute')
    eventually(lambda: settled(name, want), 'one to grow and one to shrink', 30)
    assert 'No partition reassignments found' in tool(REASSIGN, '--list')


@suite.check
def throttled_and_cancelled():
    """a throttled move is listed while it is under way, cancelled, and its throttle taken back"""
    name = topic(1, 1)
    leader = partitions(name)[0][0]
    other = 1 + leader % 3
    produce(name, 64, 16_000)
    file = plan(name, [[other]])
    out = tool(REASSIGN, '--reassignment-json-file', file, '--execute', '--throttle', '1000')
    assert 'The inter-broker throttle limit was set to 1000 B/s' in out, out
    out = tool(REASSIGN, '--list')
    assert f'{name}-0: replicas: {other},{leader}. adding: {other}. removing: {leader}.' in out, out
    out = tool(REASSIGN, '--reassignment-json-file', file, '--verify')
    assert 'is still in progress' in out, out
    out = tool(REASSIGN, '--reassignment-json-file', file, '--cancel')
    assert 'Successfully cancelled partition reassignment' in out, out
    eventually(lambda: settled(name, [[leader]]), 'the old replica alone', 30)
    assert 'None of the specified partition moves are active' in tool(
        REASSIGN, '--reassignment-json-file', file, '--cancel')
    configs = 'kafka.admin.ConfigCommand'
    out = tool(configs, '--entity-type', 'topics', '--entity-name', name, '--describe')
    assert 'throttled' not in out, out


@suite.check
def refusals():
    """what cannot be is refused in Kafka's words"""
    name = topic(1, 1)
    tool(REASSIGN, '--reassignment-json-file', plan(name, [[1, 99]]), '--execute', fails=True)
    nowhere = unique('nowhere')
    out = tool(REASSIGN, '--reassignment-json-file', plan(nowhere, [[1]]), '--execute', fails=True)
    assert nowhere in out, out


@suite.check
def preferred_leader():
    """the preferred replica leads when it is asked for, and an election that is not needed is no error"""
    name = topic(1, 3)
    leader, replicas, _ = partitions(name)[0]
    want = replicas[1:] + replicas[:1]
    tool(REASSIGN, '--reassignment-json-file', plan(name, [want]), '--execute')
    eventually(lambda: settled(name, [want]), 'the new order', 30)
    equal(partitions(name)[0][0], leader, 'an order alone moves no leader')
    chosen = ['--topic', name, '--partition', '0']
    out = tool(ELECT, '--election-type', 'preferred', *chosen)
    assert 'Successfully completed leader election (PREFERRED)' in out, out
    eventually(lambda: partitions(name)[0][0] == want[0], 'the preferred leader', 30)
    out = tool(ELECT, '--election-type', 'preferred', *chosen)
    assert 'Valid replica already elected' in out, out


@suite.check
def unclean_leader():
    """an unclean election is not needed where somebody leads"""
    name = topic(1, 3)
    out = tool(ELECT, '--election-type', 'unclean', '--topic', name, '--partition', '0')
    assert 'Valid replica already elected' in out, out


def holders(name, broker, server=B):
    """{log directory: its replicas of a topic}, of one broker and as kafka-log-dirs tells it"""
    out = tool(LOG_DIRS, '--describe', '--topic-list', name, '--broker-list', str(broker), server=server)
    described = json.loads(next(line for line in out.splitlines() if line.startswith('{')))
    return {d['logDir']: d['partitions'] for b in described['brokers'] for d in b['logDirs'] if d['partitions']}


@suite.check
def log_directories():
    """a plan with log_dirs moves a replica to another log directory, where kafka-log-dirs finds all of it"""
    cluster = clusters.TwoDirectories(nodes=1)
    try:
        server, name = cluster.bootstrap, unique('dirs')
        equal(wire.create_topic(cluster.addresses[1], name, 1, 1), 0, 'CreateTopics')
        produce(name, 500, 1_000, 'compression.type=none', server=server)
        (before, replicas), = holders(name, 1, server).items()
        size, first = replicas[0]['size'], cluster.data_directory(1) / 'data'
        assert size > 500_000 and not replicas[0]['isFuture'], replicas
        target = str(first) if before.endswith('-2') else f'{first}-2'
        file = written({'version': 1, 'partitions': [
            {'topic': name, 'partition': 0, 'replicas': [1], 'log_dirs': [target]}]})
        tool(REASSIGN, '--reassignment-json-file', file, '--execute', server=server)
        there = lambda: holders(name, 1, server) == {  # noqa: E731
            target: [{'partition': f'{name}-0', 'size': size, 'offsetLag': 0, 'isFuture': False}]}
        eventually(there, 'the replica to be in the other directory', 30)
        out = tool(REASSIGN, '--reassignment-json-file', file, '--verify', server=server)
        assert 'completed successfully' in out or 'is completed' in out, out
        assert not (pathlib.Path(before) / f'{name}-0').exists() and (pathlib.Path(target) / f'{name}-0').exists()
        produce(name, 1, 100, server=server)
    finally:
        cluster.close()


@suite.check
def dump_log():
    """kafka-dump-log reads the segments and indexes of a broker: every batch valid, every record there, no mismatch"""
    name = topic(1, 1)
    produce(name, 500, 1_000, 'compression.type=none')
    produce(name, 500, 1_000, 'compression.type=lz4')
    leader = partitions(name)[0][0]
    directory, = holders(name, leader)
    home = pathlib.Path(directory) / f'{name}-0'
    # The indexes of a segment that is written to come to the disk in groups, each whole.
    files = sorted(home.glob('*.log')) + sorted(home.glob('*.index')) + sorted(home.glob('*.timeindex'))
    done = subprocess.run([*JAVA, DUMP, '--deep-iteration', '--files', ','.join(map(str, files))],
                          capture_output=True, text=True, timeout=60)
    equal(done.returncode, 0, done.stderr)
    out = done.stdout
    batches = [line for line in out.splitlines() if line.startswith('baseOffset:')]
    assert batches and all('isvalid: true' in line for line in batches), out[:2000]
    offsets = [int(line.split()[2]) for line in out.splitlines() if line.startswith('| offset:')]
    equal(offsets, list(range(1000)), 'the records')
    assert 'ismatch' not in out and 'out of order' not in out and 'rror' not in out, out[-2000:]


def events(name, *arguments):
    """what one of the verifiable clients tells, line by line"""
    lines = tool(f'org.apache.kafka.tools.{name}', *arguments).splitlines()
    return [json.loads(line) for line in lines if line.startswith('{')]


@suite.check
def verifiable():
    """what kafka-verifiable-producer sent kafka-verifiable-consumer reads once, in order, in a group of either protocol"""
    name, count = topic(2, 3), 1000
    told = events('VerifiableProducer', '--topic', name, '--max-messages', str(count), '--acks', '-1')
    sent = {(e['partition'], e['offset']): e['value'] for e in told if e['name'] == 'producer_send_success'}
    equal(len(sent), count, 'the records acknowledged')
    for protocol in ('classic', 'consumer'):
        told = events('VerifiableConsumer', '--topic', name, '--group-id', unique('verified'), '--group-protocol', protocol,
                      '--max-messages', str(count), '--reset-policy', 'earliest', '--verbose')
        read = [(e['partition'], e['offset'], e['value']) for e in told if e['name'] == 'record_data']
        equal(sorted(read), sorted((p, o, v) for (p, o), v in sent.items()), f'the records read by {protocol}')
        for partition in (0, 1):
            offsets = [o for p, o, _ in read if p == partition]
            equal(offsets, sorted(offsets), f'the order of partition {partition}')
        commits = [e for e in told if e['name'] == 'offsets_committed']
        assert commits and all(e['success'] for e in commits), commits


def produce(name, count, size, *properties, server=B):
    perf = 'org.apache.kafka.tools.ProducerPerformance'
    done = subprocess.run(
        [*JAVA, perf, '--bootstrap-server', server, '--topic', name, '--num-records', str(count), '--record-size', str(size),
         '--throughput', '-1', '--command-property', 'acks=all', *properties], capture_output=True, text=True, timeout=60)
    equal(done.returncode, 0, done.stderr)


suite.main()
