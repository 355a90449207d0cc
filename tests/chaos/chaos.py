"""Rounds of faults under load (docs/replication.md, all of it; testing layer 3).

  chaos.py [--disks] [--rounds N] [--minutes N] [--seed N]

A round is one history: fresh topics, some faults drawn by the round's seed, each healed and waited for, then everything read
back, the files of all replicas looked at, and `ottla chaos check`. Rounds follow each other on the same cluster, whose nodes are in
the zones a, b and c; in every other one the topics' records are acknowledged by zones (ottla.ack.rule=zones=2).

  networks   kill -9 of a leader, a follower, the active controller, all; SIGSTOP; partitions of a node two-way and one-way, of
             two nodes from each other, of a whole zone with its clients; slow lines
  --disks    the power of all nodes cut (tests/powercut), and disks that are full, with every topic in sync before ack
             (log.flush.interval.messages=1), so that nothing acknowledged may be missing after a cut either

A run that did too little fails: a round with few acknowledgements, commits or transactions, and a long run in which a kind of fault
never came. The tally goes to docs/results/chaos.md in any case; `target/test-cache/chaos/next-…` keeps the next seed.
"""
import argparse
import collections
import errno
import faulthandler
import os
import pathlib
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
import traceback

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / 'lib'), str(HERE.parent / 'powercut')]
import cluster as clusters  # noqa: E402
import history as histories  # noqa: E402
import installs  # noqa: E402
import networks  # noqa: E402
import powercut  # noqa: E402
import wire  # noqa: E402
from checks import eventually  # noqa: E402
from workload import Workload  # noqa: E402

RESULTS = clusters.REPOSITORY / 'docs/results/chaos.md'
SESSION_SECONDS = 9
# A round that says less is none.
ACKNOWLEDGED_MIN = 1000
LIMIT_SECONDS = 600
# Full in a moment, and copied in one.
DISK_BYTES = 384 << 20


def ack_rule(seed):
    return 'zones=2' if seed % 2 else 'isr'


# Networks and processes

def others(cluster, node):
    return [n for n in cluster.nodes if n != node]


def victim(cluster, load, chance):
    """Somebody who matters: a leader, mostly, or the active controller, or anybody."""
    kind = chance.random()
    if kind < 0.5:
        return cluster.leader_of(load.topic, chance.randrange(load.partitions))
    return cluster.active_controller() if kind < 0.75 else chance.choice(cluster.nodes)


def some_time(chance):
    """How long a fault lasts: mostly less than a broker's session, and often longer."""
    return chance.uniform(0.1, 4) if chance.random() < 0.8 else SESSION_SECONDS + chance.uniform(1, 4)


def hold(load, chance, alive=True):
    """The length of the fault is the fault itself. Half of the long ones must see the others go on meanwhile."""
    seconds = some_time(chance)
    time.sleep(seconds)
    if alive and seconds > SESSION_SECONDS and chance.random() < 0.5:
        load.progress(10)


def kill(cluster, load, chance):
    node = victim(cluster, load, chance)
    load.history.fault('kill', node)
    cluster.kill(node)
    if chance.random() < 0.3:
        load.progress(10)
    else:
        time.sleep(chance.uniform(0, 1.5))
    cluster.start(node)


def kill_all(cluster, load, chance):
    load.history.fault('kill all')
    cluster.kill(*cluster.nodes)
    for node in chance.sample(cluster.nodes, 3):
        cluster.start(node)
        time.sleep(chance.choice([0, 0, chance.uniform(0, 2)]))


def kill_two(cluster, load, chance):
    nodes = chance.sample(cluster.nodes, 2)
    load.history.fault('kill two', ', '.join(map(str, nodes)))
    for node in nodes:
        cluster.kill(node)
        time.sleep(chance.choice([0, chance.uniform(0, 2)]))
    for node in nodes:
        cluster.start(node)


def pause(cluster, load, chance):
    node = victim(cluster, load, chance)
    load.history.fault('pause', node)
    cluster.pause(node)
    try:
        hold(load, chance)
    finally:
        cluster.resume(node)


def partition(cluster, load, chance):
    """A node from the other nodes, both ways; clients reach all."""
    node = victim(cluster, load, chance)
    away = [networks.address(n) for n in others(cluster, node)]
    load.history.fault('partition', node)
    cluster.drop(node, heard=away, told=away)
    hold(load, chance, alive=False)


def deaf(cluster, load, chance):
    node = victim(cluster, load, chance)
    load.history.fault('one-way partition', f'{node} hears nobody')
    cluster.drop(node, heard=[networks.address(n) for n in others(cluster, node)])
    hold(load, chance, alive=False)


def mute(cluster, load, chance):
    node = victim(cluster, load, chance)
    load.history.fault('one-way partition', f'nobody hears {node}')
    cluster.drop(node, told=[networks.address(n) for n in others(cluster, node)])
    hold(load, chance, alive=False)


def link(cluster, load, chance):
    one, other = chance.sample(cluster.nodes, 2)
    load.history.fault('link partition', f'{one} and {other}')
    cluster.drop(one, heard=[networks.address(other)], told=[networks.address(other)])
    hold(load, chance, alive=False)


def zone(cluster, load, chance):
    """A node from everybody, its clients included."""
    node = victim(cluster, load, chance)
    away = [networks.address(n) for n in others(cluster, node)] + [networks.HUB]
    load.history.fault('zone partition', 'abc'[node - 1])
    cluster.drop(node, heard=away, told=away)
    hold(load, chance)


def slow(cluster, load, chance):
    nodes = chance.sample(cluster.nodes, chance.choice([1, 3]))
    load.history.fault('slow links', ', '.join(map(str, nodes)))
    for node in nodes:
        cluster.slow(node)
    hold(load, chance, alive=False)


# Disks

class ZonedCutCluster(powercut.CutCluster):
    def command(self, node):
        return [*super().command(node), '--override', f'broker.rack={"abc"[node - 1]}']


def cut(cluster, load, chance):
    # What the clients have under way when it falls is the test.
    time.sleep(chance.uniform(0.1, 2))
    seed = chance.randrange(1 << 32)
    # Nobody may acknowledge what went to a disk that has no power any more.
    for node in cluster.nodes:
        cluster.pause(node)
    for node in cluster.nodes:
        eventually(lambda: stands_still(cluster.pid(node)), f'node {node} to stand still', 10, pause=0.001)
    counts = cluster.cut(seed)
    # What the disks of before keep is copied while nothing runs: what is measured begins when the power is back.
    load.history.fault('power cut')
    load.note(f'cut {seed}: kept {counts["kept"]} torn {counts["torn"]} lost {counts["lost"]} of the unflushed writes')
    for node in cluster.nodes:
        cluster.start(node)


def stands_still(pid):
    """No thread can run on: each is stopped, or in a call of the disk, at whose end it stops."""
    states = [stat.read_text().rsplit(')', 1)[1].split()[0] for stat in pathlib.Path(f'/proc/{pid}/task').glob('*/stat')]
    return bool(states) and set(states) <= {'T', 'D'}


def fill(cluster, load, chance):
    """A disk is full for a while, and its node perhaps killed and started meanwhile."""
    node = victim(cluster, load, chance)
    ballast = cluster.data(node) / 'ballast'
    load.history.fault('full disk', node)
    try:
        fill_up(ballast)
        time.sleep(chance.uniform(0.5, 4))
        if chance.random() < 0.5:
            cluster.kill(node)
            cluster.start(node)
            eventually(lambda: cluster.pid(node) is not None and serves(cluster, node), f'node {node} to serve with a full disk', 60)
        time.sleep(chance.uniform(0, 2))
    finally:
        ballast.unlink()


def fill_up(path):
    """Writes until nothing more fits."""
    with open(path, 'wb', buffering=0) as f:
        try:
            while True:
                f.write(b'x' * (1 << 20))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


def serves(cluster, node):
    return wire.metadata(cluster.addresses[node], [], timeout=2)


NETWORKS = {kill: 8, kill_all: 1, kill_two: 1, pause: 4, partition: 2, deaf: 1, mute: 1, link: 1, zone: 1, slow: 1}
DISKS = {cut: 5, fill: 1}


# Rounds

def round_(cluster, table, seed, faults, path, disks):
    """Gives the verdict and the problems."""
    chance = random.Random(seed)
    history = histories.History(path, seed=seed, commit=commit(), title='disks' if disks else 'networks')
    load = Workload(cluster, history, rate=60, transactions=True, config={'ottla.ack.rule': ack_rule(seed)})
    try:
        with load:
            for _ in range(faults):
                fault = chance.choices(list(table), table.values())[0]
                fault(cluster, load, chance)
                if not disks:
                    cluster.heal()
                history.heal()
                cluster.wait_ready(timeout=90)
                load.settle()
                # Between faults the clients are at rest, or not.
                time.sleep(chance.choice([0, chance.uniform(0, 1)]))
            load.finish()
        verdict = history.judge(ACKNOWLEDGED_MIN)
        problems = histories.anomalies(verdict)
        if load.unsure:
            problems.append(f'{load.unsure} records had no acknowledgement in {load.message_timeout} s: {load.last_error}')
        if verdict['figures']['faults'] != faults:
            problems.append(f'{verdict["figures"]["faults"]} faults, not {faults}')
        return verdict, problems
    except (Exception, SystemExit) as error:
        if stopping:
            raise SystemExit(1) from error
        traceback.print_exc()
        for told in load.client_errors[:20]:
            print(f'  {told}')
        return None, [f'{type(error).__name__}: {error}']
    finally:
        history.close()


def commit():
    """Of the repository. Which program was run is its caller's business."""
    done = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], cwd=clusters.REPOSITORY, capture_output=True, text=True)
    return os.environ.get('OTTLA_COMMIT') or done.stdout.strip()


def show(seed, verdict, problems, seconds):
    if verdict:
        figures, kinds = verdict['figures'], verdict['unavailability']
        shown = ', '.join(f'{k["faults"]} {k["kind"]} (worst {k["worst_us"] / 1e6:.2f} s)' for k in kinds)
        print(f'seed {seed}, acks by {ack_rule(seed)}: {figures["acknowledged"]} acknowledged, {figures["unknown"]} unknown, {figures["commits"]} commits, '
              f'{figures["committed"]}+{figures["aborted"]} transactions in {seconds:.0f} s; {shown}{"  FAIL" if problems else ""}', flush=True)
    for problem in problems:
        print(f'  {problem}', flush=True)


# The page of results

HEADER = """# Chaos

`just chaos` (tests/chaos): three nodes as processes with librdkafka as the client: idempotent producers with acks=all, a group that
commits, transactions with a read_committed reader. Faults follow each other, drawn by a seed; each is healed and the cluster waited for.
Everything is read back, and the files of all replicas are looked at; `ottla chaos check` judges each round. *Lost* is of
acknowledged records, *duplicated* of idempotent producers, *other* every other class of anomaly and every round that did not end.
*Without acknowledgement* is the longest time without one in one partition, from the start of the fault until all replicas were in
sync again; a pause or a partition is in it as long as it lasts where nobody else could lead, and as long as librdkafka waits for the
broker's answer (here 10 s, `socket.timeout.ms`) where another one leads long since: what the cluster itself takes stands in
[benchmarks.md](../benchmarks.md). In every other round (those with an odd seed) the topics have `ottla.ack.rule=zones=2`; each node is
in a zone of its own. With disks, every topic is in
*sync before ack*, and a power cut begins when the power is back. The machine has two processors, and is not always alone.

| commit | first seed | what | rounds | faults | acknowledged | unknown | transactions | lost | duplicated | other | without acknowledgement: median | worst |
|---|---|---|---|---|---|---|---|---|---|---|---|---|
"""


def tally(rows, first, disks):
    """One row for the run, one for each kind of fault."""
    if not rows:
        return
    if not RESULTS.exists():
        RESULTS.write_text(HEADER)
    total, kinds = collections.Counter(), collections.defaultdict(list)
    for verdict, problems in rows:
        if verdict is None:
            total['other'] += 1
            continue
        found = {name: f['count'] for name, f in verdict['anomalies'].items()}
        total.update(verdict['figures'])
        total['lost'] += found.pop('lost-write', 0)
        total['duplicated'] += found.pop('duplicate', 0)
        total['other'] += sum(found.values()) or (1 if problems and not verdict['anomalies'] else 0)
        for reading in verdict['readings']:
            kinds[reading['kind']].append(reading['us'] / 1e6)
    what = 'disks' if disks else 'networks'
    with open(RESULTS, 'a') as f:
        f.write(f'| {commit()} | {first} | **{what}** | {len(rows)} | {total["faults"]:,} | {total["acknowledged"]:,} | {total["unknown"]:,} | '
                f'{total["committed"] + total["aborted"]:,} | {total["lost"]:,} | {total["duplicated"]:,} | {total["other"]:,} | | |\n')
        for kind, seconds in sorted(kinds.items()):
            f.write(f'| {commit()} | {first} | {kind} | | {len(seconds):,} | | | | | | | {statistics.median(seconds):.2f} s | {max(seconds):.2f} s |\n')


def too_little(rows, table):
    """A kind of fault that never came although there was room for it."""
    seen = collections.Counter(r['kind'] for verdict, _ in rows if verdict for r in verdict['readings'])
    wanted = {'kill', 'kill all', 'kill two', 'pause', 'partition', 'one-way partition', 'link partition', 'zone partition', 'slow links'}
    wanted = wanted if table is NETWORKS else {'power cut', 'full disk'}
    return sorted(wanted - set(seen)) if sum(seen.values()) >= 12 * len(wanted) else []


def rounds(given, cluster, home, work, first):
    table, faults = (DISKS, 6) if given.disks else (NETWORKS, 10)
    note, rows = home / f'next-{"disks" if given.disks else "networks"}', []
    end = time.monotonic() + given.minutes * 60
    try:
        for seed in range(first, first + given.rounds):
            if time.monotonic() > end:
                break
            begun, path = time.monotonic(), work / f'{seed}.jsonl'
            faulthandler.dump_traceback_later(LIMIT_SECONDS, exit=False)
            row = round_(cluster, table, seed, faults, path, given.disks)
            faulthandler.cancel_dump_traceback_later()
            rows.append(row)
            note.write_text(str(seed + 1))
            show(seed, *row, time.monotonic() - begun)
            if row[1]:
                break
            path.replace(home / f'last-{"disks" if given.disks else "networks"}.jsonl')
    finally:
        tally(rows, first, given.disks)
    return rows, [f'there was no {kind}' for kind in too_little(rows, table)]


# What stops the run; a round that is cut off by it is none.
stopping = []


def stop(*_):
    stopping.append(True)
    sys.exit(1)


def inside(given, home, prefix):
    note = home / f'next-{"disks" if given.disks else "networks"}'
    first = given.seed or (int(note.read_text()) if note.exists() else 1)
    work = home / f'run-{"disks" if given.disks else "networks"}-{first}'
    shutil.rmtree(work, ignore_errors=True)
    (work / 'cluster').mkdir(parents=True)
    signal.signal(signal.SIGTERM, stop)
    devices = powercut.Devices(work) if given.disks else None
    cluster, rows, missing = None, [], []
    try:
        if given.disks:
            powercut.DISK_BYTES = DISK_BYTES
            cluster = ZonedCutCluster(work / 'cluster', devices, overrides=['log.flush.interval.messages=1'])
        else:
            cluster = networks.NetCluster(work / 'cluster', prefix)
        rows, missing = rounds(given, cluster, home, work, first)
    finally:
        if cluster:
            cluster.close()
        failed = sum(bool(problems) for _, problems in rows)
        if devices:
            if failed:
                devices.keep(work / 'disks-of-the-failed')
            devices.close()
    for problem in missing:
        print(problem)
    print(f'{len(rows) - failed} passed, {failed} failed' + (f'; histories, logs and data: {work}' if failed else ''), flush=True)
    if not failed:
        shutil.rmtree(work, ignore_errors=True)
    # librdkafka's threads may outlive a failed round; the verdict is printed.
    os._exit(1 if failed or missing or not rows else 0)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument('--disks', action='store_true')
    arguments.add_argument('--rounds', type=int, default=1000)
    arguments.add_argument('--minutes', type=float, default=30)
    arguments.add_argument('--seed', type=int)
    arguments.add_argument('--inside', help=argparse.SUPPRESS)
    given = arguments.parse_args()
    home = installs.CACHE / 'chaos'
    home.mkdir(parents=True, exist_ok=True)
    if given.disks or given.inside:
        inside(given, home, given.inside)
    with networks.Namespaces([1, 2, 3]) as made:
        # The clients are in the hub.
        command = ['ip', 'netns', 'exec', made.name(), sys.executable, __file__, *sys.argv[1:], '--inside', made.prefix]
        child = subprocess.Popen(command)
        signal.signal(signal.SIGTERM, lambda *_: child.terminate())
        code = child.wait()
    sys.exit(code)


if __name__ == '__main__':
    main()
