"""The cluster under test as real processes, behind one interface.

`OttlaLocal` is `ottla local --ephemeral`, for the client suites. `OttlaCluster` is a directory laid out by `ottla local
--data`, whose nodes are then started one by one with `ottla server --config`, for the fault scenarios. `KafkaPeer` is any
other cluster whose nodes can be started by a command and found by a pid file; it comes from the environment only and
serves to validate the harness itself. Nothing here waits by time: readiness is a metadata answer that names every node.
"""
import os
import pathlib
import random
import shlex
import signal
import socket
import statistics
import subprocess
import tempfile
import time

import wire
from checks import eventually

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def ottla_binary():
    path = pathlib.Path(os.environ.get('OTTLA', REPOSITORY / 'target/release/ottla'))
    if not path.exists():
        raise SystemExit(f'{path} does not exist: build it with `cargo build --release`, or set OTTLA')
    return str(path)


def free_base_port(nodes=3):
    """A base port such that the ports of every node (Kafka, +1000, +2000, +3000) are free now."""
    for _ in range(200):
        base = random.randrange(20_000, 28_000)
        ports = [base + step + i for step in (0, 1000, 2000, 3000) for i in range(nodes)]
        if all(port_is_free(p) for p in ports):
            return base
    raise RuntimeError('no free range of ports')


def port_is_free(port):
    with socket.socket() as s:
        try:
            s.bind(('127.0.0.1', port))
            return True
        except OSError:
            return False


def process_is_alive(pid):
    try:
        state = pathlib.Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0]
        return state not in 'ZX'
    except OSError:
        return False


class Cluster:
    """What every adapter offers. Nodes are 1 to N."""

    def __init__(self, bootstrap, nodes):
        self.bootstrap, self.nodes = bootstrap, nodes
        self.addresses = {n: (a.rsplit(':', 1)[0], int(a.rsplit(':', 1)[1]))
                          for n, a in zip(nodes, bootstrap.split(','))}

    # What an adapter supplies.
    def start(self, node):
        raise NotImplementedError

    def pid(self, node):
        """The process id of a node, or None when it does not run."""
        raise NotImplementedError

    def data_directory(self, node):
        raise NotImplementedError

    # What follows from it.
    def signal(self, node, number):
        pid = self.pid(node)
        if pid is None:
            raise RuntimeError(f'node {node} does not run')
        os.kill(pid, number)
        return pid

    def kill(self, *nodes):
        """kill -9, all at once, and returns when they are gone."""
        pids = [self.signal(n, signal.SIGKILL) for n in nodes]
        for node, pid in zip(nodes, pids):
            self.wait_gone(node, pid, 10)

    def stop(self, *nodes, timeout=60):
        """SIGTERM, all at once, and returns when they are gone."""
        pids = [self.signal(n, signal.SIGTERM) for n in nodes]
        for node, pid in zip(nodes, pids):
            self.wait_gone(node, pid, timeout)

    def wait_gone(self, node, pid, timeout):
        eventually(lambda: not process_is_alive(pid), f'node {node} (pid {pid}) to end', timeout, pause=0.02)

    def pause(self, node):
        self.signal(node, signal.SIGSTOP)

    def resume(self, node):
        self.signal(node, signal.SIGCONT)

    def ask(self, question, skip=()):
        """The first node's answer to `question(address)`; a node that does not answer is passed over."""
        last = None
        for node in self.nodes:
            if node in skip:
                continue
            try:
                return question(self.addresses[node])
            except (OSError, ValueError) as e:
                last = e
        raise ConnectionError(f'no node answers: {last!r}')

    def wait_ready(self, timeout=60, nodes=None):
        """Every node answers Metadata and names every node."""
        wanted = set(nodes or self.nodes)

        def ready():
            return all(set(wire.metadata(self.addresses[n], timeout=2)[0]) >= wanted for n in wanted)

        eventually(ready, f'nodes {sorted(wanted)} to serve metadata', timeout)

    def partitions(self, topic, skip=()):
        """{partition: (leader, replicas, isr)}"""
        error, parts = self.ask(lambda a: wire.metadata(a, [topic], timeout=2), skip)[2][topic]
        if error or not parts:
            raise ValueError(f'{topic}: error {error}')
        return {index: (leader, replicas, isr) for index, (_, leader, replicas, isr) in parts.items()}

    def leader_of(self, topic, partition, skip=(), timeout=60):
        return eventually(lambda: max(0, self.partitions(topic, skip)[partition][0]),
                          f'a leader of {topic}-{partition}', timeout)

    def active_controller(self, skip=(), timeout=60):
        return eventually(lambda: self.ask(lambda a: wire.quorum_leader(a, timeout=2), skip),
                          'an active controller', timeout)

    def wait_full_isr(self, topic, timeout=120):
        def full():
            return all(leader > 0 and sorted(replicas) == sorted(isr)
                       for leader, replicas, isr in self.partitions(topic).values())

        eventually(full, f'every replica of {topic} in its ISR', timeout)

    def cpu_seconds(self):
        """Processor time of all nodes' processes since they started."""
        total = 0
        for node in self.nodes:
            fields = pathlib.Path(f'/proc/{self.pid(node)}/stat').read_text().rsplit(')', 1)[1].split()
            total += int(fields[11]) + int(fields[12])
        return total / os.sysconf('SC_CLK_TCK')

    def resident_mib(self):
        """Resident memory of the node in the middle."""
        pages = [int(pathlib.Path(f'/proc/{self.pid(n)}/statm').read_text().split()[1]) for n in self.nodes]
        return statistics.median(pages) * os.sysconf('SC_PAGE_SIZE') / 2**20

    def partition_directory(self, node, topic, partition):
        """The directory of one replica, wherever below the node's data it is."""
        found = [p for p in pathlib.Path(self.data_directory(node)).rglob(f'{topic}-{partition}') if p.is_dir()]
        if len(found) != 1:
            raise RuntimeError(f'node {node}: {len(found)} directories named {topic}-{partition}')
        return found[0]

    def close(self):
        pass


class OttlaLocal:
    """`ottla local --ephemeral` for the time of a `with` block. The line it prints when ready is read, and not trusted:
    the cluster counts as ready when each node answers."""

    def __init__(self, nodes=3, log=None):
        self.base, self.nodes, self.brokers = free_base_port(nodes), nodes, []
        self.bootstrap = ','.join(f'127.0.0.1:{self.base + i}' for i in range(nodes))
        self.log = open(log, 'w') if log else subprocess.DEVNULL

    def spawn(self):
        self.process = subprocess.Popen(
            [ottla_binary(), 'local', '--ephemeral', '--nodes', str(self.nodes), '--base-port', str(self.base)],
            stdout=self.log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)

    def __enter__(self):
        self.spawn()
        try:
            cluster = Cluster(self.bootstrap, list(range(1, self.nodes + 1)))
            deadline = time.monotonic() + 60
            while True:
                if self.process.poll() is not None:
                    raise RuntimeError(f'ottla local ended with {self.process.returncode} before it was ready')
                try:
                    cluster.wait_ready(timeout=1)
                    return self
                except TimeoutError:
                    if time.monotonic() > deadline:
                        raise
        except BaseException:
            self.process.kill()
            raise

    def broker_pids(self):
        """The processes of the brokers: the children of `ottla local`."""
        children = pathlib.Path(f'/proc/{self.process.pid}/task').glob('*/children')
        self.brokers = [int(pid) for file in children for pid in file.read_text().split()]
        if len(self.brokers) != self.nodes:
            raise RuntimeError(f'{len(self.brokers)} processes below ottla local, not {self.nodes}')
        return self.brokers

    def check_alive(self):
        """A broker that died is a failure, also when the others went on."""
        if self.process.poll() is not None:
            raise RuntimeError(f'ottla local ended by itself with {self.process.returncode}')
        for pid in self.brokers:
            if not process_is_alive(pid):
                raise RuntimeError(f'a broker (pid {pid}) has died')

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Stops the cluster, and is not content with less than a clean stop."""
        early = self.process.poll()
        if early is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise RuntimeError('ottla local did not stop within 60 s of SIGTERM')
        if self.process.returncode != 0:
            when = 'by itself' if early is not None else 'on SIGTERM'
            raise RuntimeError(f'ottla local ended {when} with {self.process.returncode}')


class ProcessCluster(Cluster):
    """Nodes that are processes of this one, each with its directory `node-N` below one that may be temporary."""

    def __init__(self, bootstrap, nodes, directory=None, prefix='cluster-'):
        super().__init__(bootstrap, nodes)
        self.temporary = None if directory else tempfile.TemporaryDirectory(prefix=prefix)
        self.directory = pathlib.Path(directory or self.temporary.name)
        self.processes = {}

    def command(self, node):
        """What runs a node."""
        raise NotImplementedError

    def start(self, node):
        if self.pid(node) is not None:
            raise RuntimeError(f'node {node} runs already')
        with open(self.directory / f'node-{node}' / 'stdout.log', 'a') as log:
            self.processes[node] = subprocess.Popen(self.command(node), stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)

    def pid(self, node):
        process = self.processes.get(node)
        return None if process is None or process.poll() is not None else process.pid

    def wait_gone(self, node, pid, timeout):
        self.processes[node].wait(timeout)

    def data_directory(self, node):
        return self.directory / f'node-{node}'

    def close(self):
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()
        if self.temporary:
            self.temporary.cleanup()


class OttlaCluster(ProcessCluster):
    """Three nodes as processes of their own, from a directory that `ottla local --data` has laid out."""

    def __init__(self, directory=None, nodes=3, overrides=()):
        base = free_base_port(nodes)
        bootstrap = ','.join(f'127.0.0.1:{base + i}' for i in range(nodes))
        super().__init__(bootstrap, list(range(1, nodes + 1)), directory, 'ottla-faults-')
        self.overrides = [x for o in overrides for x in ('--override', o)]
        self.lay_out(base)
        for node in self.nodes:
            self.start(node)
        self.wait_ready()

    def lay_out(self, base):
        """`ottla local` writes each node's server.properties; it then stops and leaves the directory to us."""
        with open(self.directory / 'local.log', 'w') as log:
            local = subprocess.Popen(
                [ottla_binary(), 'local', '--data', str(self.directory), '--nodes', str(len(self.nodes)),
                 '--base-port', str(base)], stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            self.wait_ready()
            local.terminate()
            if local.wait(60) != 0:
                raise RuntimeError(f'ottla local ended with {local.returncode} on SIGTERM')
        finally:
            if local.poll() is None:
                local.kill()

    def command(self, node):
        return [ottla_binary(), 'server', '--config', str(self.directory / f'node-{node}' / 'server.properties'), *self.overrides]


class TwoDirectories(OttlaCluster):
    """Nodes of which each has a second log directory, `data-2`."""

    def lay_out(self, base):
        super().lay_out(base)
        for node in self.nodes:
            file = self.directory / f'node-{node}' / 'server.properties'
            lines = [f'{line},{line.removeprefix("log.dirs=")}-2' if line.startswith('log.dirs=') else line
                     for line in file.read_text().splitlines()]
            file.write_text('\n'.join(lines) + '\n')


class KafkaPeer(Cluster):
    """A cluster of somebody else's processes, described by the environment: FAULTS_BOOTSTRAP (one address a node),
    FAULTS_START (a command), FAULTS_PIDFILE and FAULTS_DATA (paths); `{node}` stands for the node's number."""

    def __init__(self, environment=os.environ):
        bootstrap = environment['FAULTS_BOOTSTRAP']
        super().__init__(bootstrap, list(range(1, len(bootstrap.split(',')) + 1)))
        self.start_command, self.pidfile, self.data = (
            environment[k] for k in ('FAULTS_START', 'FAULTS_PIDFILE', 'FAULTS_DATA'))
        self.wait_ready()

    def start(self, node):
        subprocess.Popen(shlex.split(self.start_command.format(node=node)), stdin=subprocess.DEVNULL,
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)

    def pid(self, node):
        try:
            pid = int(pathlib.Path(self.pidfile.format(node=node)).read_text())
        except (OSError, ValueError):
            return None
        return pid if process_is_alive(pid) else None

    def data_directory(self, node):
        return pathlib.Path(self.data.format(node=node))


def cluster_under_test(directory=None):
    return KafkaPeer() if os.environ.get('FAULTS_BOOTSTRAP') else OttlaCluster(directory)
