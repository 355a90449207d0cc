"""Fault scenarios over real processes. Each takes the cluster and the running workload, does harm, and returns when the
cluster has all replicas in sync again; the runner then reads everything back and checks the history.

Run by run.sh. `session` below is the broker session timeout of the cluster under test: a pause must outlast it.
"""
import contextlib
import json
import faulthandler
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / 'lib'), str(HERE.parent / 'powercut')]
import cluster as clusters  # noqa: E402
import disks  # noqa: E402
import installs  # noqa: E402
import wire  # noqa: E402
import history as histories  # noqa: E402
from gap import Prober  # noqa: E402
from workload import Workload  # noqa: E402

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition  # noqa: E402
from confluent_kafka.admin import AdminClient, NewTopic  # noqa: E402

SESSION_SECONDS = float(os.environ.get('FAULTS_SESSION_SECONDS', '9'))


def back(cluster, load, *nodes):
    """Starts nodes again and waits for readiness, full ISRs and progress."""
    for node in nodes:
        load.note(f'start {node}')
        cluster.start(node)
    load.history.heal()
    cluster.wait_ready(timeout=90)
    load.settle()


def kill_and_return(cluster, load, node):
    load.history.fault('kill', node)
    cluster.kill(node)
    load.progress()
    back(cluster, load, node)


def kill_leader(cluster, load):
    """kill -9 of a partition's leader, three times: the others take over, the killed one comes back"""
    for part in range(3):
        kill_and_return(cluster, load, cluster.leader_of(load.topic, part))


def kill_follower(cluster, load):
    """kill -9 of a follower of partition 0: acknowledgements go on, the follower comes back into the ISR"""
    leader, replicas, _ = cluster.partitions(load.topic)[0]
    kill_and_return(cluster, load, next(r for r in replicas if r != leader))


def kill_controller(cluster, load):
    """kill -9 of the active controller: another one takes over"""
    killed = cluster.active_controller()
    load.history.fault('kill controller', killed)
    cluster.kill(killed)
    # The others name the old one until they have elected.
    clusters.eventually(lambda: cluster.active_controller(skip=(killed,)) != killed, 'another active controller', 60)
    load.progress()
    back(cluster, load, killed)


def kill_in_turn(cluster, load):
    """kill -9 of each node in turn, twice round, each started again at once"""
    for node in list(cluster.nodes) * 2:
        load.history.fault('kill', node)
        cluster.kill(node)
        back(cluster, load, node)


def kill_all(cluster, load):
    """kill -9 of all three at once (R35): what was acknowledged is there when they are back"""
    load.history.fault('kill all')
    cluster.kill(*cluster.nodes)
    back(cluster, load, *cluster.nodes)


def pause_leader(cluster, load):
    """SIGSTOP of a leader for longer than its session, then SIGCONT: it is deposed (R76), finds out, and follows"""
    topic = wire.unique('gap')
    assert wire.create_topic(cluster.addresses[cluster.nodes[0]], topic, 1, 3) == wire.NONE
    cluster.wait_full_isr(topic)
    node = cluster.leader_of(topic, 0)
    try:
        with Prober(cluster.addresses, topic, 0) as prober:
            assert prober.wait_acked(time.monotonic(), 30), 'nothing is acknowledged before the fault'
            load.history.fault('pause', node)
            stopped = time.monotonic()
            cluster.pause(node)
            again = prober.wait_acked(stopped, SESSION_SECONDS, other_than=node)
            assert again, 'another leader only after a session'
            print(f'  a paused leader: {prober.gap(stopped, again):.2f} s without an acknowledgement', flush=True)
        load.progress()
        # The length of the pause is the fault itself.
        time.sleep(max(0.0, SESSION_SECONDS + 3 - (time.monotonic() - stopped)))
    finally:
        cluster.resume(node)
        load.history.heal()
    cluster.wait_ready()
    load.settle()


def restart_all(cluster, load):
    """SIGTERM of all three at once, and start"""
    load.history.fault('stop all')
    cluster.stop(*cluster.nodes)
    back(cluster, load, *cluster.nodes)


def rolling_restart(cluster, load):
    """SIGTERM and start of each node in turn, with no error at the client"""
    for node in cluster.nodes:
        load.history.fault('stop', node)
        cluster.stop(node)
        load.progress()
        back(cluster, load, node)
    load.expect_no_error = True


def kill_two(cluster, load):
    """kill -9 of two of three: nothing is acknowledged without them, and all goes on when they are back"""
    load.history.fault('kill two', '1, 2')
    cluster.kill(1, 2)
    back(cluster, load, 1, 2)


def kill_at_start(cluster, load):
    """kill -9 of a node again and again while it starts"""
    node = cluster.nodes[0]
    load.history.fault('kill at start', node)
    cluster.kill(node)
    for i in range(8):
        load.note(f'start {node} for {60 * i} ms')
        cluster.start(node)
        # The moment of the kill is the fault itself.
        time.sleep(0.06 * i)
        cluster.kill(node)
    back(cluster, load, node)


def wipe_node(cluster, load):
    """kill -9 of a node that loses its whole disk (R74): it is another voter, and its replicas are fetched again"""
    node = cluster.nodes[1]
    load.history.fault('lose a disk', node)
    cluster.kill(node)
    shutil.rmtree(cluster.data_directory(node) / 'data')
    back(cluster, load, node)


def flip_bits(file, share):
    """Damages one byte at that share of the file's length."""
    with open(file, 'r+b') as f:
        at = int(file.stat().st_size * share)
        f.seek(at)
        byte = f.read(1)[0]
        f.seek(at)
        f.write(bytes([byte ^ 0x40]))


def newest_segment(cluster, load, node, part):
    return max(cluster.partition_directory(node, load.topic, part).glob('*.log'))


def corrupt_log(cluster, load):
    """A node that was killed finds one log damaged in its middle and another one cut (R29): both are fetched again. Its
    recovery checkpoint is lost too: a start reads only what follows it, and the damage may lie below"""
    node = cluster.leader_of(load.topic, 0)
    load.history.fault('damage logs', node)
    cluster.kill(node)
    (cluster.data_directory(node) / 'data/recovery-point-offset-checkpoint').unlink(missing_ok=True)
    flip_bits(newest_segment(cluster, load, node, 0), 0.5)
    cut = newest_segment(cluster, load, node, 1)
    os.truncate(cut, cut.stat().st_size // 2)
    back(cluster, load, node)


def lose_replicas(cluster, load):
    """All stop cleanly one after the other; the last one to lead loses one partition's directory and another one's
    identity, and comes back before the other eligible one: it must not lead what it has lost (R34, R78)"""
    last, eligible, early = cluster.nodes
    for node in (early, eligible, last):
        load.history.fault('stop', node)
        cluster.stop(node)
    load.note(f'{last} loses replicas')
    shutil.rmtree(cluster.partition_directory(last, load.topic, 0))
    (cluster.partition_directory(last, load.topic, 1) / 'partition.metadata').unlink()
    cluster.start(last)
    cluster.start(early)
    cluster.wait_ready(timeout=90, nodes=[last, early])
    back(cluster, load, eligible)


def noise_in_image(cluster, load):
    """The materialised metadata of a killed node is noise (R73): it is made anew from snapshot and log"""
    node = cluster.active_controller()
    load.history.fault('noise in the image', node)
    cluster.kill(node)
    for file in (cluster.data_directory(node) / 'data/__cluster_metadata/image.sled').iterdir():
        if file.is_file():
            file.write_bytes(os.urandom(max(64, min(file.stat().st_size, 1 << 16))))
    back(cluster, load, node)


def recreate_topic(cluster, load):
    """A topic is deleted and made again under its name while a node is down, which has the old one's records"""
    admin, topic = AdminClient({'bootstrap.servers': cluster.bootstrap}), load.topic + '-again'

    def create():
        admin.create_topics([NewTopic(topic, 3, 3)])[topic].result(30)
        cluster.wait_full_isr(topic)
        producer = Producer({'bootstrap.servers': cluster.bootstrap, 'acks': 'all'})
        for i in range(300):
            producer.produce(topic, f'{time.monotonic()}-{i}', partition=i % 3)
        assert producer.flush(30) == 0, 'not all records were acknowledged'

    create()
    node = cluster.leader_of(topic, 0)
    load.history.fault('kill', node)
    cluster.kill(node)
    load.note(f'{topic} is made again without {node}')
    clusters.eventually(lambda: cluster.partitions(topic, skip=(node,))[0][0] not in (node, -1), 'another leader', 60)
    admin.delete_topics([topic])[topic].result(30)
    clusters.eventually(lambda: topic_is_gone(cluster, topic, skip=(node,)), f'{topic} to be gone', 30)
    admin.create_topics([NewTopic(topic, 3, 3)])[topic].result(30)
    producer = Producer({'bootstrap.servers': cluster.bootstrap, 'acks': 'all'})
    for part in range(3):
        producer.produce(topic, 'the new one', partition=part)
    assert producer.flush(60) == 0, 'not all records were acknowledged'
    back(cluster, load, node)
    cluster.wait_full_isr(topic)
    for part in range(3):
        copies = [histories.batches_of(cluster, n, topic, part) for n in cluster.nodes]
        assert copies[0] and copies[0] == copies[1] == copies[2], f'{topic}-{part}: {copies}'


KINDS = {signal.SIGKILL: 'kill', signal.SIGTERM: 'stop', signal.SIGSTOP: 'pause'}


def chaos(cluster, load):
    """Any node killed, stopped, paused or started at any time, for a while ($FAULTS_SEED, $FAULTS_SECONDS)"""
    seed = int(os.environ.get('FAULTS_SEED', '0')) or random.randrange(1, 1 << 32)
    end = time.monotonic() + float(os.environ.get('FAULTS_SECONDS', '40'))
    print(f'  seed {seed}', flush=True)
    chance, paused = random.Random(seed), {}
    while time.monotonic() < end:
        node = chance.choice(list(cluster.nodes))
        if cluster.pid(node) is None:
            load.note(f'start {node}')
            cluster.start(node)
        elif node in paused:
            load.note(f'SIGCONT {node}')
            cluster.resume(paused.pop(node))
        else:
            number = chance.choice(list(KINDS))
            load.history.fault(KINDS[number], node)
            cluster.signal(node, number)
            if number == signal.SIGSTOP:
                paused[node] = node
        # How the faults fall together in time is the test.
        time.sleep(chance.choice([0.05, 0.3, 1, 3]))
    for node in paused:
        cluster.resume(node)
    # Who is on its way out goes first.
    for node in cluster.nodes:
        if cluster.pid(node) is not None:
            with contextlib.suppress(Exception):
                cluster.stop(node)
    back(cluster, load, *[node for node in cluster.nodes if cluster.pid(node) is None])


def topic_is_gone(cluster, topic, skip):
    # All topics are asked for: asking for one makes it.
    return topic not in cluster.ask(lambda a: wire.metadata(a, None, timeout=2), skip)[2]


def status(cluster, node):
    """The log directories as a node's HTTP port tells of them."""
    host, port = cluster.addresses[node]
    with urllib.request.urlopen(f'http://{host}:{port + 3000}/api/status', timeout=5) as answer:
        return json.load(answer)['directories']


class BadDisk(clusters.TwoDirectories):
    """The second log directory of node 1 is a disk that can go bad."""

    devices = None

    def lay_out(self, base):
        super().lay_out(base)
        self.devices = disks.Devices(self.directory)
        file = self.devices.ask({'make': ['second'], 'bytes': 1 << 29})['files']['second']
        self.second = self.data_directory(1) / 'data-2'
        self.second.mkdir(exist_ok=True)
        loop = self.devices.attach('second', file, self.second)
        subprocess.run(['mkfs.ext4', '-q', '-F', '-m', '0', '-E', 'nodiscard', loop], check=True)
        subprocess.run(['mount', loop, self.second], check=True)
        self.file = file

    def mend(self):
        """The disk works again; what had not reached it is lost."""
        self.devices.detach('second')
        self.devices.ask({'mend': 'second'})
        loop = self.devices.attach('second', self.file, self.second)
        subprocess.run(['mount', loop, self.second], check=True)

    def close(self):
        super().close()
        if self.devices:
            self.devices.close()


def directory_fails(cluster, load):
    """A log directory of node 1 goes bad (R30): its replicas are out of sync, the other one's go on, and both serve after a
    restart with the disk mended"""
    here = {part: cluster.partition_directory(1, load.topic, part) for part in range(load.partitions)}
    bad = {part for part, path in here.items() if cluster.second in path.parents}
    assert bad and len(bad) < len(here), f'all replicas are in one directory: {here}'
    load.history.fault('directory fails', 1)
    cluster.devices.ask({'bad': 'second'})

    def handed_over():
        parts = cluster.partitions(load.topic, skip=(1,))
        return all(parts[part][0] not in (1, -1) and 1 not in parts[part][2] for part in bad)

    clusters.eventually(handed_over, 'the replicas of the bad directory to be out of sync', 60)
    load.progress()
    parts = cluster.partitions(load.topic, skip=(1,))
    assert all(1 in parts[part][2] for part in here if part not in bad), f'the other directory is gone too: {parts}'
    troubles = {each['path']: each['trouble'] for each in status(cluster, 1)}
    assert [path for path, trouble in troubles.items() if trouble] == [str(cluster.second)], troubles
    host, port = cluster.addresses[1]
    with urllib.request.urlopen(f'http://{host}:{port + 3000}/metrics', timeout=5) as answer:
        offline = [line for line in answer.read().decode().splitlines() if line.startswith('kafka_log_logmanager_offlinelogdirectorycount')]
    assert [line.split()[-1] for line in offline] in (['1'], ['1.0']), offline
    told = subprocess.run([clusters.ottla_binary(), 'cluster', 'status', '--bootstrap', cluster.bootstrap], capture_output=True, text=True, timeout=60).stdout
    assert str(cluster.second) in told, told
    cluster.stop(1)
    cluster.mend()
    back(cluster, load, 1)
    assert not any(each['trouble'] for each in status(cluster, 1)), status(cluster, 1)


directory_fails.cluster = BadDisk
directory_fails.missing = disks.missing


class SmallDisks(clusters.OttlaCluster):
    """Every node's data lie on a disk of half a gigabyte of its own: it keeps 32 MiB of it free, as it does by itself."""

    def lay_out(self, base):
        super().lay_out(base)
        self.loops, self.disks = [], {}
        for node in self.nodes:
            disk, image = self.directory / f'disk-{node}', self.directory / f'disk-{node}.img'
            disk.mkdir()
            with open(image, 'wb') as file:
                file.truncate(1 << 29)
            loop = subprocess.run(['losetup', '-f', '--show', image], check=True, capture_output=True, text=True).stdout.strip()
            self.loops.append(loop)
            subprocess.run(['mkfs.ext4', '-q', '-F', '-m', '0', '-E', 'nodiscard', loop], check=True)
            subprocess.run(['mount', loop, disk], check=True)
            self.disks[node] = disk
            data = pathlib.Path(self.data_directory(node))
            shutil.move(data, disk / 'node')
            data.symlink_to(disk / 'node')

    def close(self):
        super().close()
        for disk in self.disks.values():
            subprocess.run(['umount', '-l', disk], check=False)
        for loop in self.loops:
            subprocess.run(['losetup', '-d', loop], check=False)


def leave(disk, file, free):
    """Takes all of a disk but so many bytes."""
    state = os.statvfs(disk)
    with open(file, 'wb') as taken:
        os.posix_fallocate(taken.fileno(), 0, state.f_bavail * state.f_frsize - free)


def commit_until_refused(cluster, load, limit=60):
    """Commits offsets with much beside them; how many were taken before one was not."""
    consumer = Consumer({'bootstrap.servers': cluster.bootstrap, 'group.id': 'fills-the-disk', 'enable.auto.commit': False})
    deadline, taken = time.monotonic() + limit, 0
    try:
        while time.monotonic() < deadline:
            consumer.commit(offsets=[TopicPartition(load.topic, 0, taken, metadata='x' * 4000)], asynchronous=False)
            taken += 1
    except KafkaException as e:
        load.note(f'{taken} commits were taken, then {e}')
        return taken
    finally:
        consumer.close()
    raise AssertionError(f'{taken} commits were taken on a disk without space')


def fill(disks, seconds):
    """Takes what is left of disks, and whatever is given up meanwhile, for so long."""
    with contextlib.ExitStack() as files:
        rests = [files.enter_context(open(disk / 'rest', 'wb', buffering=0)) for disk in disks]
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for rest in rests:
                with contextlib.suppress(OSError):
                    rest.write(b'x' * (64 << 10))


def no_space(cluster, load):
    """Disks fall below what is kept free, and offsets are committed until they are refused, too (R30): no node ends, all serve what
    they have, and with space everything goes on"""
    disks = cluster.disks.values()
    pids = {node: cluster.pid(node) for node in cluster.nodes}
    load.progress()
    load.history.fault('full disk')
    for disk in disks:
        leave(disk, disk / 'taken', 20 << 20)
    commits = commit_until_refused(cluster, load)
    assert commits > 100, f'only {commits} commits were taken: the reserve is for them'
    # What refuses them is the floor, and a node counts what it wrote since it looked at its disk: nobody needed its ballast.
    for node in cluster.nodes:
        assert (pathlib.Path(cluster.data_directory(node)) / 'data/.ottla-ballast').exists(), f'the commits took the ballast of node {node}'
    told = [each['trouble'] for node in cluster.nodes for each in status(cluster, node)]
    assert any('of internal topics too' in (trouble or '') for trouble in told), told
    # Another process takes the rest, the ballast too, and holds it: checkpoints find nothing any more.
    fill(disks, 4)
    assert {node: cluster.pid(node) for node in cluster.nodes} == pids, 'a node has ended'
    cluster.wait_ready(timeout=10)
    for disk in disks:
        (disk / 'rest').unlink()
        (disk / 'taken').unlink()
    load.history.heal()
    load.settle()
    assert {node: cluster.pid(node) for node in cluster.nodes} == pids, 'a node has ended'


no_space.cluster = SmallDisks
no_space.missing = disks.missing

SCENARIOS = [kill_leader, kill_follower, kill_controller, kill_in_turn, kill_all, pause_leader, restart_all, rolling_restart,
             kill_two, kill_at_start, wipe_node, corrupt_log, lose_replicas, noise_in_image, recreate_topic, directory_fails, no_space, chaos]
# An hour-glass over one scenario: past it the stacks of all threads are printed and the run ends.
LIMIT_SECONDS = 420


def run(scenario, cluster, keep):
    """One scenario under load. Returns (what was done, problems)."""
    path = keep / f'{scenario.__name__}.jsonl'
    history = histories.History(path, title=scenario.__name__)
    load, problems, figures = Workload(cluster, history, transactions=True), [], {'acknowledged': 0, 'unknown': 0}
    try:
        with load:
            scenario(cluster, load)
            load.finish()
        verdict = history.judge(at_least=500)
        problems, figures = histories.anomalies(verdict), verdict['figures']
        # The cluster was whole again long before these ran out of time: somebody left the producer in the dark.
        if load.unsure:
            problems.append(f'{load.unsure} records had no acknowledgement in {load.message_timeout} s: {load.last_error}')
        if getattr(load, 'expect_no_error', False):
            problems += [f'error at the client: {e}' for e in load.client_errors]
    except Exception as e:
        traceback.print_exc()
        problems.append(f'{type(e).__name__}: {e}')
    if not load.tried_enough():
        problems.append(f'too little was tried: {sum(load.acked)} acknowledged, {load.commits} commits, {load.decided} transactions')
    history.close()
    if problems:
        (keep / f'{scenario.__name__}.txt').write_text('\n'.join(problems + load.client_errors) + '\n')
    else:
        path.unlink()
    return (figures['acknowledged'], figures['unknown'], load.commits, load.decided, load.longest_gap()), problems


def run_apart(scenario, home):
    """One scenario on a cluster of its own."""
    directory = home / scenario.__name__
    directory.mkdir()
    cluster = scenario.cluster(directory)
    try:
        outcome = run(scenario, cluster, home)
    finally:
        cluster.close()
    if not outcome[1]:
        shutil.rmtree(directory, ignore_errors=True)
    return outcome


def restore(cluster):
    """After a failed scenario: every node running and ready again, or an error."""
    for node in cluster.nodes:
        with contextlib.suppress(RuntimeError, ProcessLookupError):
            cluster.signal(node, signal.SIGCONT)
        if cluster.pid(node) is None:
            cluster.start(node)
    cluster.wait_ready(timeout=90)


def main(wanted):
    names = {s.__name__: s for s in SCENARIOS}
    unknown = [w for w in wanted if w not in names]
    if unknown:
        sys.exit(f'no such scenario: {", ".join(unknown)} (there are: {", ".join(names)})')
    home = installs.CACHE / 'faults'
    shutil.rmtree(home, ignore_errors=True)
    (home / 'cluster').mkdir(parents=True)
    cluster, rows, skipped = None, [], []
    try:
        for scenario in [names[w] for w in wanted] or SCENARIOS:
            print(f'== {scenario.__name__}: {scenario.__doc__}', flush=True)
            missing = scenario.missing() if hasattr(scenario, 'missing') else None
            if missing:
                print(f'  SKIPPED: {missing}', flush=True)
                skipped.append(f'{scenario.__name__} ({missing})')
                continue
            faulthandler.dump_traceback_later(LIMIT_SECONDS, exit=False)
            begun = time.monotonic()
            if hasattr(scenario, 'cluster'):
                figures, problems = run_apart(scenario, home)
            else:
                cluster = cluster or clusters.cluster_under_test(home / 'cluster')
                figures, problems = run(scenario, cluster, home)
                if problems:
                    restore(cluster)
            faulthandler.cancel_dump_traceback_later()
            rows.append((scenario.__name__, *figures, time.monotonic() - begun, problems))
            for problem in problems:
                print(f'  {problem}', flush=True)
    finally:
        if cluster:
            cluster.close()
        print(f'\n{"scenario":<18}{"acked":>8}{"unknown":>9}{"commits":>9}{"txns":>6}{"gap ms":>8}{"seconds":>9}  verdict')
        for name, acked, unsure, commits, decided, gap, seconds, problems in rows:
            print(f'{name:<18}{acked:>8}{unsure:>9}{commits:>9}{decided:>6}{gap:>8}{seconds:>9.1f}  {"FAIL" if problems else "ok"}')
    failed = sum(bool(row[-1]) for row in rows)
    if failed:
        print(f'histories, node logs and data: {home}')
    else:
        shutil.rmtree(home / 'cluster', ignore_errors=True)
    for each in skipped:
        print(f'SKIPPED: {each}')
    print(f'\n{len(rows) - failed} passed, {failed} failed, {len(skipped)} skipped', flush=True)
    # librdkafka's threads can outlive a failed scenario; the verdict is printed.
    os._exit(1 if failed or not (rows or skipped) else 0)


if __name__ == '__main__':
    main(sys.argv[1:])
