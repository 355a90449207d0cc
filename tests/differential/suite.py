"""What Apache Kafka answered to recorded sequences, right requests and wrong ones, asked of Ottla again: no Kafka, no JVM.

The recording is `recorded.jsonl.gz`, made by `differential.py --record FILE --first 8 --seeds 4`; what may differ stands in
`expected.py`. The suite starts a cluster of its own, with the settings that Kafka was recorded with.
"""
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / 'lib')]
import cluster  # noqa: E402
import differential  # noqa: E402
import test_schema  # noqa: E402
from checks import Suite, equal  # noqa: E402

suite = Suite('differential')
ottla = cluster.OttlaCluster(overrides=[f'{name}={value}' for name, value in differential.SETTINGS.items()])


@suite.check
def samples():
    """every sample that Kafka's serialisers wrote is read and written again to the same bytes"""
    test_schema.check()


def answered_alike(sequence):
    def check():
        found = differential.compare(ottla, sequence)
        equal([text for text, _, _ in found['new']], [], f'{found["requests"]} requests')
        assert found['requests'] > 5, 'nothing was compared'

    check.__doc__ = f'a sequence of kind {sequence["kind"]} (seed {sequence["seed"]}) is answered as Kafka did'
    return check


for recorded in differential.sequences(str(HERE / 'recorded.jsonl.gz')):
    suite.check(answered_alike(recorded))

if __name__ == '__main__':
    suite.main(ottla.close)
