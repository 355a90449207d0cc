"""What the exactly-once programs beside this file share: a Java process that is killed and started again, kills spread over
the time of the input, and how they are called and judged."""
import argparse
import os
import pathlib
import random
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / 'lib'))
import cluster as clusters  # noqa: E402
import installs  # noqa: E402

JAVA = ['java', '-Xmx300m', '-XX:TieredStopAtLevel=1', '-Dorg.slf4j.simpleLogger.defaultLogLevel=warn']


def jars():
    return installs.kafka_class_path(HERE / 'pom.xml')


class Process:
    """One process with a log of all its lives."""

    def __init__(self, log, command):
        self.log, self.command = log, [str(part) for part in command]
        self.start()

    def start(self):
        with open(self.log, 'a') as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)

    def kill(self):
        self.process.kill()
        self.process.wait()


def cluster_under_test():
    """The cluster (None: another one's, named by OWN_BOOTSTRAP) and its bootstrap servers."""
    own = os.environ.get('OWN_BOOTSTRAP')
    cluster = None if own else clusters.OttlaCluster()
    return cluster, own or cluster.bootstrap


def kill_things(processes, cluster, options):
    """A process or a broker in turn, spread over the time of the input. When the kills fall is the test."""
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
            process = chance.choice(processes)
            print('kill -9 of a client', flush=True)
            process.kill()
            time.sleep(chance.choice([0, 1]))
            process.start()


def conclude(found, options):
    """Prints the verdict and ends the program: clients' threads may outlive a failure."""
    for problem in found[:20]:
        print(problem)
    print(f'{options.records} records, {options.kills} kills (seed {options.seed}): {"FAIL" if found else "exactly once"}', flush=True)
    os._exit(1 if found else 0)


def options(doc, kills):
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--records', type=int, default=20_000)
    parser.add_argument('--rate', type=float, default=1000)
    parser.add_argument('--kills', type=int, default=kills)
    parser.add_argument('--seed', type=int, default=1)
    return parser.parse_args()
