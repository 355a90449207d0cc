"""A three-node Apache Kafka (KRaft, brokers and controllers combined) from Maven's jars, to compare with.

Kafka's defaults, but for what a cluster of three on one machine needs and what `ottla local` sets too: replication 3, min
ISR 2 of the internal topics, a rack for each node. JVM options are those of Kafka's own start script. Retention is looked
at every second on both sides, so that a benchmark with a small retention.bytes does not fill the disk.
"""
import base64
import pathlib
import subprocess
import sys
import tempfile
import uuid

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / 'tests/lib'))
import cluster  # noqa: E402
import installs  # noqa: E402

JVM = ['-Xms1g', '-Xmx1g', '-server', '-XX:+UseG1GC', '-XX:MaxGCPauseMillis=20', '-XX:InitiatingHeapOccupancyPercent=35',
       '-XX:+ExplicitGCInvokesConcurrent', '-Djava.awt.headless=true', '-Dlog4j2.level=WARN']


class KafkaCluster(cluster.Cluster):
    """Formats fresh data directories; `start_all` starts the nodes. `extra` are further properties."""

    name = 'Kafka'

    def __init__(self, extra=()):
        self.base = cluster.free_base_port()
        super().__init__(','.join(f'127.0.0.1:{self.base + i}' for i in range(3)), [1, 2, 3])
        self.temporary = tempfile.TemporaryDirectory(prefix='compare-kafka-')
        self.directory = pathlib.Path(self.temporary.name)
        self.extra = dict(extra)
        self.class_path, self.processes = installs.kafka_class_path(), {}
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip('=')
        for node in self.nodes:
            home = self.directory / f'node-{node}'
            home.mkdir()
            (home / 'server.properties').write_text(''.join(f'{k}={v}\n' for k, v in self.properties(node).items()))
            subprocess.run(['java', '-cp', self.class_path, 'kafka.tools.StorageTool', 'format', '-t', cluster_id, '-c',
                            str(home / 'server.properties')], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def properties(self, node):
        voters = ','.join(f'{n}@127.0.0.1:{self.base + 1000 + n}' for n in self.nodes)
        here = f'PLAINTEXT://127.0.0.1:{self.base + node - 1}'
        return {
            'process.roles': 'broker,controller', 'node.id': node, 'broker.rack': f'zone-{"abc"[node - 1]}',
            'controller.quorum.voters': voters, 'controller.listener.names': 'CONTROLLER',
            'listeners': f'{here},CONTROLLER://127.0.0.1:{self.base + 1000 + node}', 'advertised.listeners': here,
            'log.dirs': self.directory / f'node-{node}' / 'data', 'default.replication.factor': 3,
            'offsets.topic.replication.factor': 3, 'transaction.state.log.replication.factor': 3,
            'transaction.state.log.min.isr': 2, 'log.retention.check.interval.ms': 1000, 'log.segment.delete.delay.ms': 1000, **self.extra}

    def start(self, node):
        home = self.directory / f'node-{node}'
        with open(home / 'stdout.log', 'a') as log:
            self.processes[node] = subprocess.Popen(
                ['java', *JVM, '-cp', self.class_path, 'kafka.Kafka', str(home / 'server.properties')],
                stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)

    def start_all(self):
        for node in self.nodes:
            self.start(node)

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
                process.kill()
                process.wait()
        self.temporary.cleanup()
