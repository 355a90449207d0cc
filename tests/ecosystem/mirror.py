#!/usr/bin/env python3
"""MirrorMaker 2 from an Apache Kafka cluster into an Ottla cluster and back, unmodified: records with keys and headers, topic
configs, and the offsets of a group.

  mirror.py [--records 3000]
"""
import argparse
import os
import pathlib
import sys
import tempfile

import common  # its first lines find the others
import cluster as clusters
import installs
from checks import equal, eventually

sys.path.insert(0, str(common.HERE.parents[1] / 'benches/compare'))
from kafka import KafkaCluster  # noqa: E402

PYTHON = installs.python('confluent-kafka==2.16.1')
if pathlib.Path(sys.executable) != PYTHON:
    os.execv(PYTHON, [str(PYTHON), *sys.argv])

from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, Producer, TopicPartition  # noqa: E402
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType  # noqa: E402

SETTINGS = {
    'clusters': 'kafka, ottla', 'kafka->ottla.enabled': 'true', 'ottla->kafka.enabled': 'true',
    'kafka->ottla.topics': 'there', 'ottla->kafka.topics': 'back', 'replication.factor': 3,
    **{f'{topic}.replication.factor': 3 for topic in ('checkpoints.topic', 'heartbeats.topic', 'offset-syncs.topic', 'offset.storage',
                                                     'status.storage', 'config.storage')},
    'sync.group.offsets.enabled': 'true', 'sync.group.offsets.interval.seconds': 1, 'emit.checkpoints.interval.seconds': 1,
    'refresh.topics.interval.seconds': 2, 'refresh.groups.interval.seconds': 2, 'sync.topic.configs.interval.seconds': 2,
    'offset.lag.max': 0, 'offset.flush.interval.ms': 1000,
}


def fill(bootstrap, topic, records):
    """A topic with a config of its own, records, and a group that has read all of them."""
    admin = AdminClient({'bootstrap.servers': bootstrap})
    admin.create_topics([NewTopic(topic, 3, 3, config={'retention.ms': '123456789'})])[topic].result(30)
    producer = Producer({'bootstrap.servers': bootstrap})
    for i in range(records):
        producer.produce(topic, f'{i}', key=f'key-{i}', headers=[('number', str(i).encode())])
    equal(producer.flush(60), 0, 'records left')


def read(bootstrap, topic, records, group):
    """Values with their keys and headers, in a group that commits where it has read to."""
    consumer = Consumer({'bootstrap.servers': bootstrap, 'group.id': group, 'auto.offset.reset': 'earliest',
                         'enable.auto.commit': False, 'topic.metadata.refresh.interval.ms': 1000})
    consumer.subscribe([topic])
    seen = []

    def poll():
        seen.extend((m.value(), m.key(), m.headers()) for m in consumer.consume(500, 0.2) if not m.error())
        return len(seen) >= records

    eventually(poll, f'{records} records of {topic}', 90)
    consumer.commit(asynchronous=False)
    consumer.close()
    return seen


def committed(bootstrap, group):
    admin = AdminClient({'bootstrap.servers': bootstrap})
    got = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])[group].result(20)
    return {(p.topic, p.partition): p.offset for p in got.topic_partitions}


def ends(bootstrap, topic):
    consumer = Consumer({'bootstrap.servers': bootstrap, 'group.id': 'ends'})
    found = {(topic, p): consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=20)[1] for p in range(3)}
    consumer.close()
    return found


def check(name, source, target, topic, mirrored, records):
    seen = read(target, mirrored, records, 'reader')
    equal({v for v, _, _ in seen}, {b'%d' % i for i in range(records)}, f'{name}: values')
    equal(len(seen), records, f'{name}: records')
    equal(all(k == b'key-' + v and h == [('number', v)] for v, k, h in seen), True, f'{name}: keys and headers')
    admin = AdminClient({'bootstrap.servers': target})

    def config():
        got = admin.describe_configs([ConfigResource(ResourceType.TOPIC, mirrored)])
        return next(iter(got.values())).result(20)['retention.ms'].value == '123456789'

    eventually(config, f'{name}: the topic config to be mirrored', 30)
    # The group stands at the end of each partition, there and here.
    eventually(lambda: committed(target, f'group-{topic}') == ends(target, mirrored), f'{name}: the group offsets', 60)
    print(f'ok {name}: {records} records with keys and headers, the topic config, the group\'s offsets', flush=True)


def main(options):
    ottla, kafka = clusters.OttlaCluster(), KafkaCluster()
    failed, mirror = True, None
    with tempfile.TemporaryDirectory(prefix='mirror-') as directory:
        home = pathlib.Path(directory)
        try:
            kafka.start_all()
            kafka.wait_ready(timeout=90)
            ends_of = {'there': kafka.bootstrap, 'back': ottla.bootstrap}
            for topic, bootstrap in ends_of.items():
                fill(bootstrap, topic, options.records)
                read(bootstrap, topic, options.records, f'group-{topic}')
            settings = {**SETTINGS, 'kafka.bootstrap.servers': kafka.bootstrap, 'ottla.bootstrap.servers': ottla.bootstrap}
            (home / 'mm2.properties').write_text(''.join(f'{k} = {v}\n' for k, v in settings.items()))
            mirror = common.Process(home / 'mirror.log', [*common.JAVA, '-cp', common.jars(),
                                                          'org.apache.kafka.connect.mirror.MirrorMaker', home / 'mm2.properties'])
            check('from Kafka into Ottla', kafka.bootstrap, ottla.bootstrap, 'there', 'kafka.there', options.records)
            check('from Ottla into Kafka', ottla.bootstrap, kafka.bootstrap, 'back', 'ottla.back', options.records)
            errors = [line for line in (home / 'mirror.log').read_text().splitlines() if ' ERROR ' in line]
            equal(errors, [], 'errors that MirrorMaker told')
            failed = False
        finally:
            if failed and (home / 'mirror.log').exists():
                print((home / 'mirror.log').read_text()[-3000:])
            if mirror:
                mirror.kill()
            ottla.close()
            kafka.close()
    print('MirrorMaker 2: mirrored both ways', flush=True)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--records', type=int, default=3000)
    main(parser.parse_args())
