#!/usr/bin/env python3
"""Kafka Streams exactly once while its instances and the brokers are killed.

  streams.py [--records 20000] [--rate 1000] [--kills 6] [--seed N]

A word count and a join (Words.java, processing.guarantee=exactly_once_v2) run as two processes; meanwhile an instance or a
broker is killed with SIGKILL and started again, KILLS times. In the end every input record must have been counted once: the
committed counts of each word are 1, 2, 3, … without a gap or a repetition, and each record was joined once. OWN_BOOTSTRAP
names another cluster, to validate the checks themselves; then only instances are killed.
"""
import argparse
import collections
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / 'lib'))
import cluster as clusters  # noqa: E402
import installs  # noqa: E402
from checks import eventually  # noqa: E402
from wire import unique  # noqa: E402

PYTHON = installs.python('confluent-kafka==2.16.1')
if pathlib.Path(sys.executable) != PYTHON:
    os.execv(PYTHON, [str(PYTHON), *sys.argv])

from confluent_kafka import Consumer, Producer, TopicPartition  # noqa: E402
from confluent_kafka.admin import AdminClient, NewTopic  # noqa: E402

VOCABULARY = [f'word-{i}' for i in range(40)]
PARTITIONS = 4


class Instance:
    """One process of the application, with a state directory of its own that survives it."""

    def __init__(self, number, home, command):
        self.log = open(home / f'streams-{number}.log', 'w')
        self.command = [*command[:-5], str(home / f'state-{number}'), *command[-4:]]
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)

    def kill(self):
        self.process.kill()
        self.process.wait()


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


def kill_things(instances, cluster, options):
    """Spreads the kills over the time of the input. When they fall is the test."""
    chance = random.Random(options.seed + 1)
    for number in range(options.kills):
        time.sleep(options.records / options.rate / (options.kills + 1))
        if cluster and number % 2:
            node = chance.choice(cluster.nodes)
            print(f'kill -9 of broker {node}', flush=True)
            cluster.kill(node)
            time.sleep(chance.choice([0, 1]))
            cluster.start(node)
            cluster.wait_ready(timeout=90)
        else:
            instance = chance.choice(instances)
            print('kill -9 of an instance', flush=True)
            instance.kill()
            time.sleep(chance.choice([0, 1]))
            instance.start()


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
    own = os.environ.get('OWN_BOOTSTRAP')
    cluster = None if own else clusters.OttlaCluster()
    bootstrap = own or cluster.bootstrap
    with tempfile.TemporaryDirectory(prefix='streams-') as directory:
        home = pathlib.Path(os.environ.get('STREAMS_KEEP', directory))
        jars = installs.kafka_class_path(HERE / 'pom.xml')
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
        command = ['java', '-Xmx300m', '-XX:TieredStopAtLevel=1', '-Dorg.slf4j.simpleLogger.defaultLogLevel=warn', '-cp', f'{classes}:{jars}',
                   'Words', bootstrap, unique('app'), '', *topics]
        # The arguments end with the state directory and four topics.
        instances = [Instance(i, home, command) for i in range(2)]
        outputs, sent = Outputs(bootstrap, *topics[2:]), collections.Counter()
        outputs.start()
        try:
            # The table is read before the stream, so that every record finds its label.
            eventually(lambda: 'state RUNNING' in pathlib.Path(instances[0].log.name).read_text(), 'Streams to run', 90)
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
        print('\n'.join(found[:20]))
        print(f'{options.records} records, {options.kills} kills (seed {options.seed}): {"exactly once" if not found else "FAIL"}', flush=True)
        os._exit(1 if found else 0)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--records', type=int, default=20_000)
    parser.add_argument('--rate', type=float, default=1000)
    parser.add_argument('--kills', type=int, default=6)
    parser.add_argument('--seed', type=int, default=1)
    main(parser.parse_args())
