"""Groups of both protocols, and their offsets: members that come, stay and go, and requests that are wrong in one thing."""
from . import classic, consumer
from .common import create


def sequence(script):
    topics = [create(script, '§t1', [[1, 2, 3], [2, 3, 1]]), create(script, '§t2', [[3, 1, 2]])]
    script.rng.choice([classic.sequence, consumer.sequence])(script, topics)
