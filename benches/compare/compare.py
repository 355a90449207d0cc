#!/usr/bin/env python3
"""Ottla and Apache Kafka side by side, in one sitting, as a client sees them and as their processes pay for it.

  compare.py [--rounds 5] [--seconds 15] [--warm 60] [--only ottla|kafka] [CASE...]

Both clusters (three nodes each, fresh data, on this machine) run for the whole sitting; each case is measured in turns,
A B, B A, A B, …, and the table gives the median of each side and the median of the ratios within the rounds. The last
column says how many rounds there were. Needs target/release/ottla (or OTTLA), a JDK 17 and Maven; librdkafka and a C compiler
are installed by Debian's packages, the Python client into the cache directory. Cases (all without an argument):

  throughput100 throughput1k          flat out, RF 3, acks=all, min ISR 2, 6 partitions; …-rf1: one replica, acks=1
  rate20k rate20k-rf1                 20,000 records/s of 100 B: what a record costs the cluster
  latency latency-fsync               1,000/s of 1 KiB, linger 0, open loop; …-fsync with flush.messages=1
  fleet                               50 producers, 5,000 requests/s in all, linger 0
  consume1k consume100                one consumer catches up from the page cache
  topicsN                             a topic of N partitions, RF 3, until every leader and ISR stands (default topics3000)
  rss-idle rss                        memory of a node in the beginning, and after the cases before it
  start                               three fresh nodes, to the first acknowledged produce at RF 3 (a cluster of its own)
  failover                            kill -9 of a leader: the longest time without an acknowledgement
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / 'tests/lib'), str(HERE)]
import cluster as clusters  # noqa: E402
import installs  # noqa: E402
import wire  # noqa: E402
from checks import eventually  # noqa: E402
from kafka import KafkaCluster  # noqa: E402

PYTHON = installs.python('confluent-kafka==2.16.1')
if pathlib.Path(sys.executable) != PYTHON:
    os.execv(PYTHON, [str(PYTHON), *sys.argv])

from confluent_kafka import Consumer, Producer, TopicPartition  # noqa: E402
from confluent_kafka.admin import AdminClient, NewTopic  # noqa: E402


class Side:
    """One of the two clusters, and what is asked of its processes."""

    def __init__(self, name, cluster):
        self.name, self.cluster, self.bootstrap = name, cluster, cluster.bootstrap
        self.admin = AdminClient({'bootstrap.servers': self.bootstrap})

    def topic(self, partitions=6, replicas=3, **config):
        """A new topic with every leader and ISR in place; returns its name and how long that took."""
        name, begun = wire.unique('compare'), time.monotonic()
        config = {'segment.bytes': 128 << 20, 'retention.bytes': 256 << 20, 'min.insync.replicas': min(2, replicas),
                  **{k.replace('_', '.'): v for k, v in config.items()}}
        new = NewTopic(name, partitions, replicas, config={k: str(v) for k, v in config.items()})
        self.admin.create_topics([new], operation_timeout=60)[name].result(90)

        def stands():
            parts = self.cluster.partitions(name)
            return len(parts) == partitions and all(l > 0 and len(isr) == replicas for l, _, isr in parts.values())

        eventually(stands, f'{partitions} partitions', 120, pause=0.02)
        return name, time.monotonic() - begun

    def drop(self, name):
        self.admin.delete_topics([name])[name].result(60)


def build_load():
    installs.debian('gcc', 'gcc', 'libc6-dev')
    if not pathlib.Path('/usr/include/librdkafka/rdkafka.h').exists():
        installs.debian('', 'librdkafka-dev')
    subprocess.run(['gcc', '-O2', '-o', installs.CACHE / 'compare-load', HERE / 'load.c', '-lrdkafka'], check=True)


def load(*arguments):
    out = subprocess.run([installs.CACHE / 'compare-load', *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=300)
    figures = json.loads(out.stdout)
    if figures['failed']:
        raise RuntimeError(f'{figures["failed"]} records failed')
    return figures


# Cases. Each returns {metric: value}; for metrics named in BIGGER_IS_BETTER more is better, for all others less.

BIGGER_IS_BETTER = {'records/s', 'MB/s', 'requests/s'}


def flat_out(side, seconds, size, replicas, rate=0):
    name, _ = side.topic(replicas=replicas)
    before = side.cluster.cpu_seconds()
    got = load('produce', side.bootstrap, name, 6, size, 'all' if replicas > 1 else '1', seconds, rate)
    spent = side.cluster.cpu_seconds() - before
    side.drop(name)
    n = got['records']
    if rate:
        return {'cluster µs/record': spent / n * 1e6, 'records/s': n / got['seconds']}
    return {'records/s': n / got['seconds'], 'MB/s': n * size / got['seconds'] / 1e6, 'cluster µs/record': spent / n * 1e6,
            'cluster s/GB': spent / (n * size) * 1e9}


def open_loop(side, seconds, producers, rate, size, partitions, **config):
    """Records at a fixed rate; latency counts from when a record was due, whether or not the client was in time."""
    name, _ = side.topic(partitions=partitions, **config)
    senders = [Producer({'bootstrap.servers': side.bootstrap, 'acks': 'all', 'linger.ms': 0, 'enable.idempotence': False,
                         'socket.nagle.disable': True}) for _ in range(producers)]
    body, taken, errors, stop = os.urandom(size), [], [], threading.Event()

    def delivered(due):
        return lambda error, _: errors.append(error) if error else taken.append(time.perf_counter() - due)

    for sender in senders:  # connections and metadata are there before the clock runs
        for part in range(partitions):
            sender.produce(name, body, partition=part)
    for sender in senders:
        sender.flush(60)

    def poll():
        while not stop.is_set():
            senders[0].poll(0.001)

    poller = threading.Thread(target=poll)
    if producers == 1:
        poller.start()
    before, begun, n = side.cluster.cpu_seconds(), time.perf_counter(), int(rate * seconds)
    for i in range(n):
        due = begun + i / rate
        while (early := due - time.perf_counter()) > 0:
            time.sleep(early)
        sender = senders[i % producers]
        sender.produce(name, body, partition=(i * 7) % partitions, on_delivery=delivered(due))
        if producers > 1:
            sender.poll(0)
    for sender in senders:
        sender.flush(60)
    elapsed, spent = time.perf_counter() - begun, side.cluster.cpu_seconds() - before
    stop.set()
    if producers == 1:
        poller.join()
    side.drop(name)
    if errors or len(taken) != n:
        raise RuntimeError(f'{len(taken)} of {n} acknowledged, {errors[:1]}')
    taken.sort()
    at = {f'{label} ms': taken[int(q * (n - 1))] * 1000 for label, q in (('p50', 0.5), ('p99', 0.99), ('p99.9', 0.999))}
    return {**at, 'cluster µs/request': spent / n * 1e6, 'requests/s': n / elapsed}


def consume(side, size, records):
    name, _ = side.topic(retention_bytes=-1)
    load('fill', side.bootstrap, name, 6, size, records)
    before = side.cluster.cpu_seconds()
    got = load('consume', side.bootstrap, name, 6, records)
    spent = side.cluster.cpu_seconds() - before
    side.drop(name)
    return {'records/s': records / got['seconds'], 'MB/s': records * size / got['seconds'] / 1e6,
            'cluster s/GB': spent / (records * size) * 1e9}


def many_partitions(side, n):
    before = side.cluster.cpu_seconds()
    name, seconds = side.topic(partitions=n)
    spent = side.cluster.cpu_seconds() - before
    side.drop(name)
    eventually(lambda: name not in side.admin.list_topics(timeout=30).topics, 'the topic to go', 120)
    return {'seconds': seconds, 'cluster CPU s': spent}


def failover(side):
    """One partition, one idempotent producer every 5 ms; the leader dies. All acknowledged records are read back."""
    cluster = side.cluster
    name, _ = side.topic(partitions=1, retention_bytes=-1)
    producer = Producer({'bootstrap.servers': side.bootstrap, 'acks': 'all', 'enable.idempotence': True, 'linger.ms': 0,
                         'message.timeout.ms': 60_000, 'retry.backoff.ms': 20, 'retry.backoff.max.ms': 100,
                         'reconnect.backoff.ms': 20, 'reconnect.backoff.max.ms': 200, 'socket.timeout.ms': 10_000,
                         'topic.metadata.refresh.fast.interval.ms': 50})
    acked, failed, stop = [], [], threading.Event()

    def delivered(i):
        return lambda error, m: failed.append(error) if error else acked.append((time.monotonic(), i))

    def send():
        i = 0
        while not stop.is_set():
            producer.produce(name, b'%d' % i, partition=0, on_delivery=delivered(i))
            i += 1
            producer.poll(0.005)
        producer.flush(70)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        eventually(lambda: len(acked) > 200, 'the first acknowledgements', 60)
        leader = cluster.leader_of(name, 0)
        killed = time.monotonic()
        cluster.kill(leader)
        eventually(lambda: acked[-1][0] > killed + 0.3, 'acknowledgements after the kill', 90, pause=0.01)
        goal = len(acked) + 100
        eventually(lambda: len(acked) > goal, 'more of them', 60)
        restarted = time.monotonic()
        cluster.start(leader)
        cluster.wait_full_isr(name)
        again = time.monotonic() - restarted
    finally:
        stop.set()
        sender.join()
    times = [t for t, _ in acked if t > killed - 1]
    gap = max(b - a for a, b in zip(times, times[1:]))
    cluster.wait_ready()
    values = read_back(side, name)
    lost = len({i for _, i in acked} - set(values))
    side.drop(name)
    return {'gap ms': gap * 1000, 'full ISR again s': again, 'lost': lost, 'duplicates': len(values) - len(set(values)), 'failed': len(failed)}


def read_back(side, name):
    """The values of the whole partition, in order."""
    consumer = Consumer({'bootstrap.servers': side.bootstrap, 'group.id': name, 'enable.auto.commit': False})
    _, end = consumer.get_watermark_offsets(TopicPartition(name, 0), timeout=30)
    consumer.assign([TopicPartition(name, 0, 0)])
    values, offset = [], -1
    while offset < end - 1:
        m = consumer.poll(20)
        if m is None or m.error():
            raise RuntimeError(f'reading back ended at {offset} of {end}: {m and m.error()}')
        offset = m.offset()
        values.append(int(m.value()))
    consumer.close()
    return values


def start_time(name):
    """Three fresh nodes to the first acknowledged produce at RF 3, asked by raw requests every few milliseconds."""
    fresh = KafkaCluster() if name == 'kafka' else clusters.OttlaLocal()
    begun = time.monotonic()
    try:
        if name == 'kafka':
            fresh.start_all()
        else:
            fresh.spawn()
        first = fresh.bootstrap.split(',')[0].rsplit(':', 1)
        address, topic = (first[0], int(first[1])), wire.unique('start')

        def created():
            return wire.create_topic(address, topic, 1, 3, timeout=2) in (wire.NONE, wire.TOPIC_ALREADY_EXISTS)

        def acknowledged():
            brokers, _, topics = wire.metadata(address, [topic], timeout=2)
            host, port, _ = brokers[topics[topic][1][0][1]]
            with wire.Connection((host, port)) as c:
                return wire.produce(c, topic, 0, wire.record_batch([b'first']))[0] == wire.NONE

        eventually(created, 'a topic', 120, pause=0.005)
        eventually(acknowledged, 'an acknowledged produce', 120, pause=0.005)
        return {'seconds': time.monotonic() - begun}
    finally:
        fresh.close()


def case(name, side, seconds):
    if name.startswith(('throughput', 'rate20k')):
        replicas = 1 if name.endswith('-rf1') else 3
        size = 1024 if '1k' in name else 100
        return flat_out(side, seconds, size, replicas, 20_000 if name.startswith('rate') else 0)
    if name.startswith('topics'):
        return many_partitions(side, int(name[6:] or 3000))
    return {
        'latency': lambda: open_loop(side, seconds, 1, 1000, 1024, 6),
        'latency-fsync': lambda: open_loop(side, seconds, 1, 1000, 1024, 6, flush_messages=1),
        'fleet': lambda: open_loop(side, seconds, 50, 5000, 200, 12),
        'consume1k': lambda: consume(side, 1024, 1_000_000),
        'consume100': lambda: consume(side, 100, 5_000_000),
        'rss-idle': lambda: {'MiB': side.cluster.resident_mib()},
        'rss': lambda: {'MiB': side.cluster.resident_mib()},
        'start': lambda: start_time(side.name),
        'failover': lambda: failover(side),
    }[name]()


CASES = ['rss-idle', 'latency', 'fleet', 'rate20k', 'rate20k-rf1', 'throughput100', 'throughput1k', 'throughput100-rf1',
         'throughput1k-rf1', 'latency-fsync', 'consume1k', 'consume100', 'topics3000', 'rss', 'start', 'failover']
# Once is all that such a figure says; a round would only repeat it.
ONCE = {'rss-idle', 'rss'}


def floor():
    """What this machine's disk gives at this moment: 4 KiB written and fdatasynced, in ms (median, p99)."""
    with tempfile.NamedTemporaryFile() as f:
        took = []
        for _ in range(500):
            begun = time.perf_counter()
            f.write(b'x' * 4096)
            f.flush()
            os.fdatasync(f.fileno())
            took.append((time.perf_counter() - begun) * 1000)
    took.sort()
    return f'fdatasync of 4 KiB: {took[250]:.2f} ms median, {took[495]:.2f} ms p99'


def measure(names, sides, rounds, seconds):
    """{(case, metric): [{side: value} for each round]}"""
    results = {}
    for name in names:
        for turn in range(1 if name in ONCE else rounds):
            row = {}
            for side in sides if turn % 2 == 0 else sides[::-1]:
                try:
                    row[side.name] = case(name, side, seconds)
                except Exception as e:
                    print(f'{name} on {side.name}: {type(e).__name__}: {e}', file=sys.stderr, flush=True)
                    continue
                print(json.dumps({'case': name, 'round': turn, 'side': side.name, **{k: round(v, 3) for k, v in row[side.name].items()}}), flush=True)
            for side, metrics in row.items():
                for metric, value in metrics.items():
                    history = results.setdefault((name, metric), [])
                    while len(history) <= turn:
                        history.append({})
                    history[turn][side] = value
    return results


def number(value):
    return f'{value:,.0f}' if abs(value) >= 100 else f'{value:.3g}'


def table(results, sides):
    yield '| case | metric | ' + ' | '.join(s.name for s in sides) + ' | ratio | better | rounds |'
    yield '|---|---|' + '--:|' * len(sides) + '--:|---|--:|'
    for (name, metric), history in results.items():
        cells = []
        for side in sides:
            values = [r[side.name] for r in history if side.name in r]
            cells.append(number(statistics.median(values)) if values else 'failed')
        both = [r['ottla'] / r['kafka'] for r in history if 'ottla' in r and r.get('kafka')]
        ratio, better = (statistics.median(both), '') if both else (None, '')
        if ratio is not None:
            better = 'ottla' if (ratio > 1) == (metric in BIGGER_IS_BETTER) else 'kafka'
        yield f'| {name} | {metric} | {" | ".join(cells)} | {number(ratio) if ratio is not None else "–"} | {better} | {len(history)} |'


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--seconds', type=float, default=15)
    parser.add_argument('--warm', type=float, default=60, help='seconds of load on each side before anything but rss-idle is measured')
    parser.add_argument('--only', choices=['ottla', 'kafka'])
    parser.add_argument('cases', nargs='*')
    a = parser.parse_args()
    names = a.cases or CASES
    unknown = [n for n in names if n not in CASES and not (n.startswith('topics') and n[6:].isdigit())]
    if unknown:
        parser.error(f'no such case: {", ".join(unknown)}')
    build_load()
    open_clusters, sides = [], []
    try:
        for name in ('ottla', 'kafka'):
            if a.only in (None, name):
                made = KafkaCluster() if name == 'kafka' else clusters.OttlaCluster(
                    overrides=['log.retention.check.interval.ms=1000', 'log.segment.delete.delay.ms=1000'])
                open_clusters.append(made)
                if name == 'kafka':
                    made.start_all()
                made.wait_ready()
                sides.append(Side(name, made))
        results = measure([n for n in names if n == 'rss-idle'], sides, 1, 0)
        for side in sides if a.warm else []:
            flat_out(side, a.warm, 1024, 3)
        results |= measure([n for n in names if n != 'rss-idle'], sides, a.rounds, a.seconds)
    finally:
        for made in open_clusters:
            made.close()
    print(f'\n{os.cpu_count()} CPUs, {os.uname().release}; {floor()}. Flush policy: page cache, but for latency-fsync (flush.messages=1).')
    print(f'{a.rounds} rounds of {a.seconds:.0f} s after {a.warm:.0f} s of load on each side; ratio = ottla / kafka within a round.\n')
    print('\n'.join(table(results, sides)), flush=True)
    os._exit(0)


if __name__ == '__main__':
    main()
