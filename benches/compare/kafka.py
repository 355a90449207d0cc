"""A three-node Apache Kafka (KRaft, brokers and controllers combined) from Maven's jars, to compare with.

Kafka's defaults, but for what a cluster of three on one machine needs and what `ottla local` sets too: replication 3, min
ISR 2 of the internal topics, a rack for each node. JVM options are those of Kafka's own start script. Retention is looked
at every second on both sides, so that a benchmark with a small retention.bytes does not fill the disk.
"""
import base64
import pathlib
import subprocess
import sys
import uuid

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / 'tests/lib'))
import cluster  # noqa: E402
import installs  # noqa: E402

JVM = ['-Xms1g', '-Xmx1g', '-server', '-XX:+UseG1GC', '-XX:MaxGCPauseMillis=20', '-XX:InitiatingHeapOccupancyPercent=35',
       '-XX:+ExplicitGCInvokesConcurrent', '-Djava.awt.headless=true', '-Dlog4j2.level=WARN']


class KafkaCluster(cluster.ProcessCluster):
    """Formats fresh data directories; `start_all` starts the nodes. `extra` are further properties."""

    name = 'Kafka'

    def __init__(self, extra=()):
        self.base = cluster.free_base_port()
        super().__init__(','.join(f'127.0.0.1:{self.base + i}' for i in range(3)), [1, 2, 3], prefix='compare-kafka-')
        self.extra, self.class_path = dict(extra), installs.kafka_class_path()
        # Not one that begins with '-': it would be taken for an option.
        identity = uuid.uuid4().bytes
        cluster_id = base64.urlsafe_b64encode(bytes([identity[0] & 0x7F]) + identity[1:]).decode().rstrip('=')
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

    def command(self, node):
        return ['java', *JVM, '-cp', self.class_path, 'kafka.Kafka', str(self.directory / f'node-{node}' / 'server.properties')]

    def start_all(self):
        for node in self.nodes:
            self.start(node)
