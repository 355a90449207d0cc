"""Power cuts of a whole three-node cluster under load (docs/replication.md, section 17; testing layer 3).

  powercut.py [--cuts 24] [--seed N] [--quorum] [--keep]

Each node's log directory lies on a disk of device.py. A round makes topics, loads them, and at a random instant cuts the
power of all three disks at once; the processes are killed, the disks of the next generation mounted, the cluster is started
from them, and everything is read back and judged by what its flush mode promises:

  sync-before-ack   no record lost whose acknowledgement a client had before the cut
  interval          (flush.ms=100) none that was acknowledged so long before it: a second, and two of the longest fdatasync
                    that a probe on these disks saw in the seconds before (a sync may wait for the one before it)
  page-cache        none that was acknowledged PAGE_CACHE_SECONDS or longer before it: the background flusher had come by
  quorum            no topic lost, no deletion undone and no config changed back that was acknowledged before the cut

and in every round: every node starts and serves, all nodes show the same metadata (a wrong image from sled would differ), and what is read stands at the offsets that were
acknowledged, a prefix without holes. Rounds follow each other on the same cluster, so what earlier rounds proved must
still be there. With --quorum only the metadata is loaded, faster, and the active controller is killed before some of the
cuts, so that they fall into votes and elections.

A round is a function of its seed but for the timing of threads. The tally goes to docs/results/powercut.md in any case;
`target/test-cache/powercut/next` keeps the next seed, so that a further run goes on where this one ended.
"""
import argparse
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / 'lib'), str(HERE)]
import cluster as clusters  # noqa: E402
import installs  # noqa: E402
import wire  # noqa: E402
from disks import Devices  # noqa: E402
from checks import eventually  # noqa: E402

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition  # noqa: E402
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType  # noqa: E402

RESULTS = clusters.REPOSITORY / 'docs/results/powercut.md'
DISK_BYTES = 1 << 30
PARTITIONS = 3
# Of one cluster; then another one begins, with empty disks: what rounds wrote stays, and fills a disk in some 110 of them.
ROUNDS = 75
PAGE_CACHE_SECONDS = 10
# Mode: its config, and how long before the cut an acknowledgement must have come for its record to be promised.
MODES = {'sync-before-ack': ({'flush.messages': '1'}, 0.0), 'interval': ({'flush.ms': '100'}, 1.0), 'page-cache': ({}, PAGE_CACHE_SECONDS)}


class CutCluster(clusters.OttlaCluster):
    """Three nodes whose data lies on disks that can be cut."""

    def __init__(self, directory, devices, overrides=()):
        self.devices = devices
        super().__init__(directory, overrides=overrides)

    def lay_out(self, base):
        super().lay_out(base)
        files = self.devices.ask({'make': [f'node-{n}' for n in self.nodes], 'bytes': DISK_BYTES})['files']
        for node in self.nodes:
            data, aside = self.data(node), self.data(node).with_name('aside')
            data.rename(aside)
            data.mkdir()
            loop = self.devices.attach(f'node-{node}', files[f'node-{node}'], data)
            subprocess.run(['mkfs.ext4', '-q', '-F', '-m', '0', '-E', 'nodiscard', loop], check=True)
            subprocess.run(['mount', loop, data], check=True)
            shutil.copytree(aside, data, dirs_exist_ok=True)
            shutil.rmtree(aside)
        os.sync()

    def data(self, node):
        return self.directory / f'node-{node}' / 'data'

    def cut(self, seed, before_unmount=()):
        """Cuts the power of all disks, ends the processes, and mounts what is left. Gives what the disks say of the cut."""
        cut = self.devices.ask({'cut': seed})
        for call in before_unmount:
            call()
        running = [n for n in self.nodes if self.pid(n) is not None]
        self.kill(*running)
        for node in self.nodes:
            name = f'node-{node}'
            self.devices.detach(name)
            loop = self.devices.attach(name, cut['files'][name], self.data(node))
            subprocess.run(['mount', loop, self.data(node)], check=True)
        return cut

    def log_sizes(self):
        return {n: (self.directory / f'node-{n}/stdout.log').stat().st_size for n in self.nodes}

    def log_since(self, node, size):
        with open(self.directory / f'node-{node}/stdout.log', errors='replace') as f:
            f.seek(size)
            return f.read()


class Probe:
    """Writes and syncs a file on each disk again and again, and so knows how long a sync takes there."""

    def __init__(self, cluster):
        self.stop, self.took = threading.Event(), []
        self.running = {}
        self.threads = [threading.Thread(target=self.run, args=(cluster.data(n) / '.probe',), daemon=True) for n in cluster.nodes]
        for thread in self.threads:
            thread.start()

    def run(self, path):
        with open(path, 'wb', buffering=0) as f:
            while not self.stop.wait(0.05):
                self.running[path] = begun = time.monotonic()
                f.write(b'x' * 512)
                os.fdatasync(f.fileno())
                self.took.append((begun, time.monotonic()))
                del self.running[path]

    def longest(self, at):
        """The longest sync of the last ten seconds before `at`, one that was under way then included, whether it has ended since or not."""
        spans = [*self.took, *((begun, at) for begun in list(self.running.values()))]
        return max((min(end, at) - begun for begun, end in spans if begun < at and at - 10 < end), default=0.0)

    def end(self):
        self.stop.set()
        for thread in self.threads:
            thread.join(10)


class Load:
    """Producers with acks=all to one topic a mode, and what was acknowledged when."""

    def __init__(self, cluster, number):
        self.cluster, self.stop = cluster, threading.Event()
        self.topics = {mode: f'round{number}-{mode}' for mode in MODES}
        # (mode, partition): [(value, offset, time of the acknowledgement)]
        self.acked = {(mode, p): [] for mode in MODES for p in range(PARTITIONS)}
        admin = AdminClient({'bootstrap.servers': cluster.bootstrap, 'log_level': 0})
        new = [NewTopic(self.topics[m], PARTITIONS, 3, config={'min.insync.replicas': '2', **c}) for m, (c, _) in MODES.items()]
        for made in admin.create_topics(new).values():
            made.result(30)
        for topic in self.topics.values():
            cluster.wait_full_isr(topic)
        self.probe = Probe(cluster)
        self.threads = [threading.Thread(target=self.produce, args=(m,), daemon=True) for m in MODES]
        for thread in self.threads:
            thread.start()

    def produce(self, mode):
        producer = Producer({'bootstrap.servers': self.cluster.bootstrap, 'acks': 'all', 'enable.idempotence': True, 'linger.ms': 1,
                             'message.timeout.ms': 5000, 'log_level': 0})
        sent = 0

        def delivered(partition, value):
            def callback(error, message):
                if not error and message.offset() is not None and message.offset() >= 0:
                    self.acked[mode, partition].append((value, message.offset(), time.monotonic()))
            return callback

        while not self.stop.is_set():
            partition, value = sent % PARTITIONS, f'{mode}-{sent}-' + 'x' * (sent * 37 % 900)
            try:
                producer.produce(self.topics[mode], value, partition=partition, on_delivery=delivered(partition, value))
                sent += 1
            except BufferError:
                pass
            producer.poll(0.002)
        producer.purge()
        producer.poll(0)

    def end(self):
        self.stop.set()
        self.probe.end()
        for thread in self.threads:
            thread.join(30)

    def check(self, at):
        """What the cluster has now against what was acknowledged before `at`. Gives counts by mode, and problems."""
        problems, counts = [], {mode: [0, 0] for mode in MODES}
        slow = self.longest
        for mode, (_, before) in MODES.items():
            # The background flusher, too, waits for the disk.
            before += 2 * slow if before else 0
            self.cluster.wait_full_isr(self.topics[mode], timeout=60)
            for partition in range(PARTITIONS):
                found = read(self.cluster, self.topics[mode], partition)
                for value, offset, acked in self.acked[mode, partition]:
                    if acked >= at:
                        continue
                    counts[mode][0] += 1
                    if found.get(offset) == value:
                        continue
                    counts[mode][1] += 1
                    if offset in found or acked < at - before:
                        what = 'holds another record' if offset in found else 'lost'
                        problems.append(f'{self.topics[mode]}-{partition}: offset {offset} acknowledged {at - acked:.3f} s before the cut: {what}')
                if sorted(found) != list(range(len(found))):
                    problems.append(f'{self.topics[mode]}-{partition}: the offsets have holes')
        return counts, problems


class QuorumLoad:
    """Topics made, deleted and configured as fast as the quorum takes it; the newest acknowledged state of each."""

    def __init__(self, cluster, number):
        self.cluster, self.stop, self.number = cluster, threading.Event(), number
        # Topic: (time of the acknowledgement, its retention.ms; None: deleted). One thread owns each topic.
        self.state, self.unsure, self.done = {}, set(), 0
        self.threads = [threading.Thread(target=self.work, args=(i,), daemon=True) for i in range(4)]
        for thread in self.threads:
            thread.start()

    def work(self, worker):
        admin = AdminClient({'bootstrap.servers': self.cluster.bootstrap, 'log_level': 0})
        step = 0
        while not self.stop.is_set():
            topic, kind = f'q{self.number}-{worker}-{step // 3}', step % 3
            step += 1
            try:
                if kind == 0:
                    state = 100_000_000
                    admin.create_topics([NewTopic(topic, 1, 3, config={'retention.ms': str(state)})], request_timeout=2)[topic].result(3)
                elif kind == 1:
                    state = 100_000_000 + step
                    entry = ConfigEntry('retention.ms', str(state), incremental_operation=AlterConfigOpType.SET)
                    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
                    admin.incremental_alter_configs([resource], request_timeout=2)[resource].result(3)
                elif step % 2:
                    state = None
                    admin.delete_topics([topic], request_timeout=2)[topic].result(3)
                else:
                    continue
                self.state[topic] = (time.monotonic(), state)
                self.done += 1
            except (KafkaException, TimeoutError):
                # It may have happened, or happen yet.
                self.unsure.add(topic)
                step += 3 - step % 3

    def end(self):
        self.stop.set()
        for thread in self.threads:
            thread.join(30)

    def check(self, at):
        problems, counts = [], {'quorum': [0, 0]}
        admin = AdminClient({'bootstrap.servers': self.cluster.bootstrap, 'log_level': 0})
        told = {t: state for t, (acked, state) in self.state.items() if acked < at and t not in self.unsure}
        # What was acknowledged after the cut may be there or not, and changes what is seen of what came before.
        told = {t: s for t, s in told.items() if self.state[t][0] < at}
        there = set(admin.list_topics(timeout=30).topics)
        kept = [t for t, state in told.items() if state is not None]
        resources = [ConfigResource(ResourceType.TOPIC, t) for t in kept if t in there]
        configs = {r.name: f.result(30)['retention.ms'].value for r, f in admin.describe_configs(resources).items()} if resources else {}
        for topic, state in told.items():
            counts['quorum'][0] += 1
            seen = configs.get(topic) if topic in there else None
            if seen != (None if state is None else str(state)):
                counts['quorum'][1] += 1
                problems.append(f'{topic}: acknowledged {state} {at - self.state[topic][0]:.3f} s before the cut, found {seen}')
        return counts, problems


def read(cluster, topic, partition):
    """{offset: value} up to the high watermark."""
    consumer = Consumer({'bootstrap.servers': cluster.bootstrap, 'group.id': wire.unique('reader'), 'enable.auto.commit': False,
                         'auto.offset.reset': 'error', 'check.crcs': True, 'log_level': 0})
    try:
        where, records = TopicPartition(topic, partition, 0), {}
        start, end = eventually(lambda: watermarks(consumer, where), f'the high watermark of {topic}-{partition}', 30)
        consumer.assign([where])
        deadline = time.monotonic() + 60
        while len(records) < end - start and time.monotonic() < deadline:
            message = consumer.poll(1)
            if message is not None and message.error():
                raise KafkaException(message.error())
            if message is not None:
                records[message.offset()] = message.value().decode()
        return records
    finally:
        consumer.close()


def watermarks(consumer, where):
    try:
        return consumer.get_watermark_offsets(where, timeout=10)
    except KafkaException as error:
        # A leader that was just elected does not know yet what is committed (R19).
        if error.args[0].retriable():
            return None
        raise


def same_metadata(cluster):
    """Every node shows the same topics, with the same partitions."""
    def same():
        shown = [wire.metadata(cluster.addresses[n], None, timeout=5)[2] for n in cluster.nodes]
        return shown[0] == shown[1] == shown[2]

    eventually(same, 'all nodes to show the same metadata', 30)


def round_(cluster, number, seed, quorum):
    """One cut. Gives the counts and the problems."""
    chance = random.Random(seed)
    load = (QuorumLoad if quorum else Load)(cluster, number)
    killed = None
    # The moment of the cut is the test.
    time.sleep(chance.uniform(0.3, 2.0) if quorum else chance.choice([chance.uniform(0.2, 3.0), PAGE_CACHE_SECONDS + 3]))
    if quorum and chance.random() < 0.4:
        killed = cluster.active_controller()
        cluster.kill(killed)
        time.sleep(chance.uniform(0.0, 1.5))
    sizes = cluster.log_sizes()
    cut = cluster.cut(seed, () if quorum else [load.probe.end])
    if not quorum:
        cut['sync'] = load.longest = load.probe.longest(cut['at'])
    load.end()
    begun = time.monotonic()
    for node in cluster.nodes:
        cluster.start(node)
    cluster.wait_ready(timeout=60)
    serving = time.monotonic() - begun
    counts, problems = load.check(cut['at'])
    same_metadata(cluster)
    rebuilt = 0
    for node in cluster.nodes:
        text = cluster.log_since(node, sizes[node])
        rebuilt += text.count('the metadata store')
    return counts, problems, {**cut, 'serving': serving, 'rebuilt': rebuilt, 'killed': killed}


def tally(rows, seed, quorum):
    """One row of the results page: what was tried, and what came of it."""
    if not rows:
        return
    commit = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], cwd=clusters.REPOSITORY, capture_output=True, text=True).stdout.strip()
    if not RESULTS.exists():
        RESULTS.write_text(HEADER)
    modes = {}
    for counts, _, _ in rows:
        for mode, (acked, lost) in counts.items():
            before = modes.get(mode, (0, 0))
            modes[mode] = (before[0] + acked, before[1] + lost)
    failed = sum(bool(problems) for _, problems, _ in rows)
    kept, torn, lost = (sum(r[2].get(k, 0) for r in rows) for k in ('kept', 'torn', 'lost'))
    worst = max(r[2].get('serving', 0) for r in rows)
    with open(RESULTS, 'a') as f:
        for mode, (acked, gone) in modes.items():
            f.write(f'| {commit} | {seed} | {mode} | {len(rows)} | {acked:,} | {gone:,} | {failed} | {kept:,}/{torn:,}/{lost:,} | {worst:.1f} s |\n')


HEADER = """# Power cuts

`just powercut` (tests/powercut): the power of all three nodes is cut in the same instant, again and again on one cluster; of
the writes that no flush had covered each is kept, torn or lost by chance. In *sync before ack* and in the quorum nothing
acknowledged may be lost; in the other modes only what is younger than their promise: 1 s in interval and 10 s in the page cache, and
twice the longest fdatasync that a probe beside it saw on these disks.
"Failed" counts cuts after which something was missing that was promised, a node did not start, or nodes
showed different metadata.

| commit | first seed | mode | cuts | acknowledged before a cut | of these gone | failed | unflushed writes kept/torn/lost | slowest start to serving |
|---|---|---|---|---|---|---|---|---|
"""


def end(cluster, devices):
    if cluster:
        cluster.close()
    if devices:
        devices.close()


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument('--cuts', type=int, default=24)
    arguments.add_argument('--seed', type=int)
    arguments.add_argument('--quorum', action='store_true')
    arguments.add_argument('--keep', action='store_true', help='leave the directory of a run without failures')
    given = arguments.parse_args()
    home = installs.CACHE / 'powercut'
    home.mkdir(parents=True, exist_ok=True)
    note = home / 'next'
    first = given.seed or (int(note.read_text()) if note.exists() else 1)
    work = home / f'run-{first}'
    shutil.rmtree(work, ignore_errors=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    devices, cluster, rows, seed = None, None, [], first
    try:
        for number in range(given.cuts):
            seed = first + number
            if number % ROUNDS == 0:
                end(cluster, devices)
                place = work / str(number)
                (place / 'cluster').mkdir(parents=True)
                cluster, devices = None, Devices(place)
                cluster = CutCluster(place / 'cluster', devices)
            try:
                row = round_(cluster, number, seed, given.quorum)
            except Exception as error:
                traceback.print_exc()
                rows.append(({}, [f'{type(error).__name__}: {error}'], {}))
                print(f'seed {seed}: FAIL {error}', flush=True)
                break
            rows.append(row)
            note.write_text(str(seed + 1))
            counts, problems, cut = row
            shown = ', '.join(f'{mode} {acked} acked {lost} gone' for mode, (acked, lost) in counts.items())
            print(f'seed {seed}: {shown}; kept {cut["kept"]} torn {cut["torn"]} lost {cut["lost"]}; longest sync {cut.get("sync", 0):.2f} s; serving in {cut["serving"]:.2f} s'
                  f'{", metadata store given up " + str(cut["rebuilt"]) if cut["rebuilt"] else ""}{" FAIL" if problems else ""}', flush=True)
            for problem in problems[:20]:
                print(f'  {problem}', flush=True)
            if problems:
                break
    finally:
        end(cluster, devices)
        tally(rows, first, given.quorum)
    failed = sum(bool(problems) for _, problems, _ in rows)
    print(f'{len(rows)} cuts, {failed} failed' + (f'; logs: {work}' if failed else ''), flush=True)
    if not failed and not given.keep:
        shutil.rmtree(work, ignore_errors=True)
    # librdkafka's threads may outlive a failed round; the verdict is printed.
    os._exit(1 if failed or not rows else 0)


if __name__ == '__main__':
    main()
