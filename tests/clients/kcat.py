"""kcat, Debian's build of it over an older librdkafka: produce, consume, metadata, offsets, groups."""
import json
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / 'lib'))
from checks import Suite, addresses, bootstrap, equal, wait_topic  # noqa: E402
import wire  # noqa: E402
from wire import unique  # noqa: E402

suite = Suite('kcat')
B = bootstrap()


def kcat(*arguments, given=None, timeout=30):
    done = subprocess.run(['kcat', '-b', B, *arguments], input=given, capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        raise AssertionError(f'kcat {" ".join(arguments)} ended with {done.returncode}: {done.stderr.strip()}')
    return done.stdout


def topic(partitions=1):
    name = unique('kcat')
    equal(wire.create_topic(addresses()[0], name, partitions, 3), 0, 'CreateTopics')
    wait_topic(name, partitions)
    return name


@suite.check
def metadata():
    """the metadata list names all brokers, the topic, its partitions and replicas"""
    name = topic(partitions=3)
    got = json.loads(kcat('-L', '-J', '-t', name))
    equal(sorted(f"{b['name']}" for b in got['brokers']), sorted(f'{h}:{p}' for h, p in addresses()), 'brokers')
    parts = next(t for t in got['topics'] if t['topic'] == name)['partitions']
    equal(sorted(p['partition'] for p in parts), [0, 1, 2], 'partitions')
    assert all(len(p['replicas']) == len(p['isrs']) == 3 and p['leader'] > 0 for p in parts), parts


@suite.check
def round_trip():
    """lines are produced with keys and headers, and consumed by offset and partition"""
    name = topic()
    kcat('-P', '-t', name, '-p', '0', '-K', ':', '-H', 'h=1', given='a:one\nb:two\nc:three\n')
    out = kcat('-C', '-t', name, '-p', '0', '-o', 'beginning', '-e', '-q', '-f', '%o %k %s %h\n')
    equal(out.splitlines(), ['0 a one h=1', '1 b two h=1', '2 c three h=1'], 'records')
    equal(kcat('-C', '-t', name, '-p', '0', '-o', '-1', '-e', '-q').strip(), 'three', 'the last')
    equal(kcat('-C', '-t', name, '-p', '0', '-o', '1', '-c', '1', '-q').strip(), 'two', 'by offset')


@suite.check
def codecs():
    """what was produced with each codec of this build is read back"""
    name = topic()
    for codec in ('none', 'gzip', 'snappy', 'lz4', 'zstd'):
        kcat('-P', '-t', name, '-z', codec, given=''.join(f'{codec}-{i}\n' for i in range(100)))
    out = kcat('-C', '-t', name, '-o', 'beginning', '-e', '-q').splitlines()
    equal(out, [f'{c}-{i}' for c in ('none', 'gzip', 'snappy', 'lz4', 'zstd') for i in range(100)], 'records')


@suite.check
def nulls():
    """an empty value sent as null is read as null"""
    name = topic()
    kcat('-P', '-t', name, '-Z', '-K', ':', given='gone:\n')
    got = json.loads(kcat('-C', '-t', name, '-o', 'beginning', '-e', '-q', '-J'))
    equal((got['key'], got['payload']), ('gone', None), 'record')


@suite.check
def idempotent():
    """an idempotent producer with acks=all is served"""
    name = topic()
    kcat('-P', '-t', name, '-X', 'enable.idempotence=true', '-X', 'acks=all', given=''.join(f'{i}\n' for i in range(1000)))
    out = kcat('-C', '-t', name, '-o', 'beginning', '-e', '-q').splitlines()
    equal(out, [str(i) for i in range(1000)], 'records')


@suite.check
def query_offsets():
    """offsets are queried by time: earliest, latest and a moment between"""
    name = topic()
    kcat('-P', '-t', name, given='a\nb\n')
    at = json.loads(kcat('-C', '-t', name, '-o', '1', '-c', '1', '-q', '-J'))['ts']

    def query(when):
        return kcat('-Q', '-t', f'{name}:0:{when}').strip().split('offset ')[-1]

    equal([query(w) for w in ('-2', '-1')], ['0', '2'], 'earliest and latest')
    assert query(at) in '01', f'at {at}: {query(at)}'


@suite.check
def group():
    """group mode reads a topic once: a second run of the same group goes on where the first ended"""
    name, member = topic(partitions=3), unique('g')
    kcat('-P', '-t', name, given=''.join(f'{i}\n' for i in range(300)))
    seen = []

    def run(n):
        out = kcat('-G', member, '-X', 'auto.offset.reset=earliest', '-q', '-c', str(n), name)
        seen.extend(int(line) for line in out.splitlines())

    run(100)
    run(200)
    equal(sorted(seen), list(range(300)), 'records of both runs')


suite.main()
