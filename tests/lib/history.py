"""A history of a run: one JSON object a line, as crates/chaos/src/event.rs has them, judged by `ottla chaos check`."""
import json
import os
import subprocess
import threading
import time

import cluster as clusters


def checker():
    """The program that judges: the one under test, or $OTTLA_CHECKER where that is another one."""
    return os.environ.get('OTTLA_CHECKER') or clusters.ottla_binary()


class History:
    """Writes the lines as they come, from any thread. Times are microseconds since it was begun."""

    def __init__(self, path, **about):
        self.path, self.begun, self.lock = path, time.monotonic(), threading.Lock()
        self.file = open(path, 'w', buffering=1 << 20)
        # Faults that are not over.
        self.open = []
        self.write('run', version=1, started=time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()), **about)

    def now(self):
        return int((time.monotonic() - self.begun) * 1e6)

    def write(self, type_, **fields):
        line = json.dumps({'type': type_, **fields}) + '\n'
        with self.lock:
            if not self.file.closed:
                self.file.write(line)

    def note(self, text):
        self.write('note', at=self.now(), text=text)

    # Faults

    def fault(self, kind, target=''):
        """Harm begins."""
        self.open.append({'kind': kind, 'target': str(target), 'start': self.now()})

    def heal(self):
        """All harm is taken away."""
        for fault in self.open:
            fault.setdefault('end', self.now())

    def settle(self):
        """The cluster is whole again."""
        self.heal()
        for fault in self.open:
            self.write('fault', settled=self.now(), **fault)
        self.open = []

    def close(self):
        self.settle()
        with self.lock:
            self.file.close()

    def judge(self, at_least=1):
        """The verdict as `ottla chaos check` tells it, or the reason why there is none."""
        command = [checker(), 'chaos', 'check', '--json', '--at-least', str(at_least), str(self.path)]
        done = subprocess.run(command, capture_output=True, text=True)
        if not done.stdout:
            raise RuntimeError(f'no verdict: {done.stderr.strip()}')
        verdict = json.loads(done.stdout)
        verdict['refused'] = done.stderr.strip() if done.returncode else ''
        return verdict


def anomalies(verdict, most=20):
    """What is wrong, as lines."""
    lines = [f'{name}: {text}' for name, found in verdict['anomalies'].items() for text in found['told']]
    return lines[:most] or ([verdict['refused']] if verdict['refused'] else [])


def add_replica(history, cluster, node, topic, partition, in_sync):
    """The files of one replica become lines."""
    command = [checker(), 'chaos', 'replica', '--node', str(node), '--topic', topic, '--partition', str(partition)]
    if not in_sync:
        command.append('--out-of-sync')
    done = subprocess.run([*command, str(cluster.partition_directory(node, topic, partition))], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f'node {node}, {topic}-{partition}: {done.stderr.strip()}')
    with history.lock:
        history.file.write(done.stdout)


def batches_of(cluster, node, topic, partition):
    """[(first offset, last offset, digest)] of a replica's files."""
    command = [checker(), 'chaos', 'replica', '--node', str(node), '--partition', str(partition)]
    done = subprocess.run([*command, str(cluster.partition_directory(node, topic, partition))], capture_output=True, text=True, check=True)
    return [tuple(batch) for line in done.stdout.splitlines() for batch in json.loads(line)['batches']]
