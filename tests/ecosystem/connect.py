#!/usr/bin/env python3
"""Kafka Connect, distributed, with an exactly-once source, while its worker and the brokers are killed.

  connect.py [--records 20000] [--rate 1000] [--kills 4] [--seed N]

A file source connector copies a file that grows into a topic; the worker or a broker is killed with SIGKILL and started again,
KILLS times. In the end the topic's committed records are the file's lines, each once and in order. OWN_BOOTSTRAP names another
cluster, to validate the checks themselves; then only the worker is killed.
"""
import json
import os
import pathlib
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

import common  # its first lines find the others
import cluster as clusters
import installs
from checks import eventually
from common import JAVA, Process, kill_things
from wire import unique

PYTHON = installs.python('confluent-kafka==2.16.1')
if pathlib.Path(sys.executable) != PYTHON:
    os.execv(PYTHON, [str(PYTHON), *sys.argv])

from confluent_kafka import Consumer, TopicPartition  # noqa: E402
from confluent_kafka.admin import AdminClient, NewTopic  # noqa: E402


class Worker(Process):
    """One Connect worker process and its REST interface."""

    def __init__(self, home, bootstrap):
        self.port, name = clusters.free_base_port(1), unique('connect')
        settings = {'bootstrap.servers': bootstrap, 'group.id': name, 'exactly.once.source.support': 'enabled',
                    'key.converter': 'org.apache.kafka.connect.storage.StringConverter',
                    'value.converter': 'org.apache.kafka.connect.storage.StringConverter',
                    'listeners': f'http://127.0.0.1:{self.port}', 'plugin.discovery': 'service_load',
                    'session.timeout.ms': 6000, 'heartbeat.interval.ms': 500, 'scheduled.rebalance.max.delay.ms': 0}
        for kind in ('offset', 'config', 'status'):
            settings |= {f'{kind}.storage.topic': f'{name}-{kind}', f'{kind}.storage.replication.factor': 3}
        file = home / 'worker.properties'
        file.write_text(''.join(f'{k}={v}\n' for k, v in settings.items()))
        super().__init__(home / 'connect.log', [*JAVA, '-cp', common.jars(), 'org.apache.kafka.connect.cli.ConnectDistributed', file])

    def ask(self, path, body=None):
        """The answer of the REST interface; None while there is none."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f'http://127.0.0.1:{self.port}{path}', data, {'Content-Type': 'application/json'})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return None


def feed(path, options):
    """Writes the lines, whole ones, at a rate."""
    begun = time.monotonic()
    with open(path, 'a') as file:
        for i in range(options.records):
            file.write(f'line {i}\n')
            file.flush()
            time.sleep(max(0.0, begun + i / options.rate - time.monotonic()))


def main(options):
    cluster, bootstrap = common.cluster_under_test()
    topic, name = unique('lines'), unique('file')
    worker, found, seen = None, [], []
    with tempfile.TemporaryDirectory(prefix='connect-') as directory:
        home = pathlib.Path(directory)
        try:
            new = NewTopic(topic, 1, 3, config={'min.insync.replicas': '2'})
            admin = AdminClient({'bootstrap.servers': bootstrap})
            admin.create_topics([new])[topic].result(30)
            (home / 'lines').touch()
            worker = Worker(home, bootstrap)
            config = {'connector.class': 'org.apache.kafka.connect.file.FileStreamSourceConnector', 'tasks.max': '1', 'topic': topic,
                      'file': str(home / 'lines'), 'exactly.once.support': 'required', 'transaction.boundary': 'interval',
                      'transaction.boundary.interval.ms': '100'}
            eventually(lambda: worker.ask('/connectors', {'name': name, 'config': config}), 'the connector to be taken', 90)
            feeder = threading.Thread(target=feed, args=(home / 'lines', options))
            feeder.start()
            kill_things([worker], cluster, options)
            feeder.join()
            consumer = Consumer({'bootstrap.servers': bootstrap, 'group.id': unique('reader'), 'isolation.level': 'read_committed',
                                 'enable.auto.commit': False})
            consumer.assign([TopicPartition(topic, 0, 0)])

            def read():
                seen.extend(m.value().decode() for m in consumer.consume(1000, 0.2) if not m.error())
                return len(seen) >= options.records

            eventually(read, 'every line in the topic', 180)
            # What comes twice would come now.
            quiet = time.monotonic() + 10
            while time.monotonic() < quiet:
                read()
            consumer.close()
        except TimeoutError as error:
            found = [str(error), f'{len(seen)} of {options.records} lines', (home / 'connect.log').read_text()[-3000:]]
        finally:
            if worker:
                worker.kill()
            if cluster:
                cluster.close()
        if seen != [f'line {i}' for i in range(options.records)]:
            odd = next((i for i, line in enumerate(seen) if line != f'line {i}'), len(seen))
            found.append(f'{len(seen)} lines, wrong from place {odd}: {seen[odd:odd + 3]}')
    common.conclude(found, options)


if __name__ == '__main__':
    main(common.options(__doc__, kills=4))
