#!/usr/bin/env python3
"""Kafka Streams exactly once while its instances and the brokers are killed.

  streams.py [--records 20000] [--rate 1000] [--kills 6] [--seed N]

A word count and a join (Words.java, processing.guarantee=exactly_once_v2) run as two processes; meanwhile an instance or a
broker is killed with SIGKILL and started again, KILLS times. In the end every input record must have been counted once: the
committed counts of each word are 1, 2, 3, … without a gap or a repetition, and each record was joined once. OWN_BOOTSTRAP
names another cluster, to validate the checks themselves; then only instances are killed.
"""
import collections
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import threading
import time

import common  # its first lines find the others
import installs
from checks import eventually
from common import HERE, JAVA, Process, kill_things
from wire import unique

PYTHON = installs.python('confluent-kafka==2.16.1')
if pathlib.Path(sys.executable) != PYTHON:
    os.execv(PYTHON, [str(PYTHON), *sys.argv])

from confluent_kafka import Consumer, Producer, TopicPartition  # noqa: E402
from confluent_kafka.admin import AdminClient, NewTopic  # noqa: E402

VOCABULARY = [f'word-{i}' for i in range(40)]
PARTITIONS = 4


class Outputs(threading.Thread):
    """Reads what was committed of both results, from the beginning on, as it comes."""

    def __init__(self, bootstrap, counts, joined):
        super().__init__(daemon=True)
        self.counts, self.joined = collections.defaultdict(list), collections.Counter()
        self.topic, self.total, self.stop = counts, 0, threading.Event()
        self.consumer = Consumer({'bootstrap.servers': bootstrap, 'group.id': unique('reader'), 'enable.auto.commit': False,
                                  'isolation.level': 'read_committed', 'auto.offset.reset': 'earliest'})
        self.consumer.assign([TopicPartition(t, p, 0) for t in (counts, joined) for p in range(PARTITIONS)])

    def run(self):
        while not self.stop.is_set():
            for message in self.consumer.consume(500, 0.2):
                if message.error():
                    continue
                self.total += 1
                if message.topic() == self.topic:
                    self.counts[message.key().decode()].append(int(message.value()))
                else:
                    self.joined[message.key().decode()] += 1
        self.consumer.close()


def feed(bootstrap, topic, options, sent):
    producer = Producer({'bootstrap.servers': bootstrap, 'enable.idempotence': True, 'linger.ms': 5})
    chance, begun = random.Random(options.seed), time.monotonic()
    for i in range(options.records):
        word = chance.choice(VOCABULARY)
        producer.produce(topic, word, key=word)
        sent[word] += 1
        producer.poll(0)
        time.sleep(max(0.0, begun + i / options.rate - time.monotonic()))
    if producer.flush(120):
        raise SystemExit('not all of the input was acknowledged')


def problems(sent, outputs):
    """What is not exactly once."""
    found = []
    for word, n in sent.items():
        got = outputs.counts[word]
        if got != list(range(1, n + 1)):
            odd = next((i for i, c in enumerate(got) if c != i + 1), len(got))
            found.append(f'{word}: {n} sent, {len(got)} counts, wrong from place {odd}: {got[odd:odd + 5]}')
        if outputs.joined[word] != n:
            found.append(f'{word}: {n} sent, {outputs.joined[word]} joined')
    return found


def main(options):
    cluster, bootstrap = common.cluster_under_test()
    with tempfile.TemporaryDirectory(prefix='streams-') as directory:
        home, jars = pathlib.Path(directory), common.jars()
        classes = installs.CACHE / 'streams-classes'
        classes.mkdir(parents=True, exist_ok=True)
        subprocess.run(['javac', '-d', classes, '-cp', jars, HERE / 'Words.java'], check=True)
        topics = [unique(n) for n in ('words', 'labels', 'counts', 'joined')]
        admin = AdminClient({'bootstrap.servers': bootstrap})
        new = [NewTopic(t, PARTITIONS, 3, config={'min.insync.replicas': '2'}) for t in topics]
        [f.result(30) for f in admin.create_topics(new).values()]
        labels = Producer({'bootstrap.servers': bootstrap})
        [labels.produce(topics[1], f'label of {w}', key=w) for w in VOCABULARY]
        assert labels.flush(60) == 0
        application = unique('app')
        instances = [Process(home / f'streams-{i}.log', [*JAVA, '-cp', f'{classes}:{jars}', 'Words', bootstrap, application,
                                                         home / f'state-{i}', *topics]) for i in range(2)]
        outputs, sent = Outputs(bootstrap, *topics[2:]), collections.Counter()
        outputs.start()
        try:
            # The table is read before the stream, so that every record finds its label.
            eventually(lambda: 'state RUNNING' in instances[0].log.read_text(), 'Streams to run', 90)
            feeder = threading.Thread(target=feed, args=(bootstrap, topics[0], options, sent))
            feeder.start()
            kill_things(instances, cluster, options)
            feeder.join()
            eventually(lambda: outputs.total >= 2 * options.records, 'every record in both results', 240)
            # What comes twice would come now: until everything that Streams has open is committed or aborted.
            last = -1
            while last != outputs.total:
                last = outputs.total
                time.sleep(12)
            found = problems(sent, outputs)
        except TimeoutError as error:
            found = [str(error), f'{outputs.total} of {2 * options.records} records', *problems(sent, outputs)[:10]]
        finally:
            outputs.stop.set()
            for instance in instances:
                instance.kill()
            if cluster:
                cluster.close()
    common.conclude(found, options)


if __name__ == '__main__':
    main(common.options(__doc__, kills=6))
