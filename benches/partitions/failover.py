"""How long many partitions take: creates a topic of PARTITIONS (default 10,000), three replicas each, on three nodes, then
kills one with SIGKILL, and prints how many milliseconds it takes until every partition has a living leader, as each
survivor tells its clients.

    failover.py [PARTITIONS] [ROUNDS]       $OTTLA is the binary, default target/release/ottla
"""
import pathlib
import struct
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / 'tests/lib'))
import cluster  # noqa: E402
import wire  # noqa: E402
from checks import eventually  # noqa: E402

TOPIC = 'many'


def leaders(connection):
    """The leader of each partition, by Metadata v1."""
    r = connection.call(wire.METADATA, 1, struct.pack('>i', 1) + wire.string(TOPIC))
    r.array(lambda: (r.i32(), r.string(), r.i32(), r.string()))
    r.i32()
    found = []

    def partition():
        _, _, leader = r.i16(), r.i32(), r.i32()
        r.array(r.i32), r.array(r.i32)
        found.append(leader)

    def topic():
        r.i16(), r.string(), r.i8()
        r.array(partition)

    r.array(topic)
    return found


def all_led(nodes, connection, count):
    led = leaders(connection)
    return len(led) == count and all(leader in nodes for leader in led)


def watch(address, nodes, count, began, results):
    """Asks one survivor until all are led, and notes when the answer came."""
    with wire.Connection(address, 60) as connection:
        while not all_led(nodes, connection, count):
            if time.monotonic() - began > 120:
                return
            time.sleep(0.005)
        results.append((time.monotonic() - began) * 1000)


def one_round(under_test, count, victim):
    survivors = {n: a for n, a in under_test.addresses.items() if n != victim}
    held = sum(leader == victim for leader in leaders_of(under_test))
    results = []
    under_test.kill(victim)
    began = time.monotonic()
    threads = [threading.Thread(target=watch, args=(address, set(survivors), count, began, results))
               for address in survivors.values()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(results) != len(survivors):
        raise SystemExit(f'after 120 s not all {count} partitions are led: {results}')
    print(f'node {victim} led {held} of {count}: all led again after {min(results):.0f} ms at the first survivor, '
          f'{max(results):.0f} ms at the last', flush=True)
    under_test.start(victim)
    began = time.monotonic()
    under_test.wait_full_isr(TOPIC, timeout=300)
    print(f'  started again: every replica in sync after {time.monotonic() - began:.1f} s', flush=True)
    return max(results)


def leaders_of(under_test):
    return under_test.ask(lambda address: with_connection(address, leaders))


def with_connection(address, question):
    with wire.Connection(address, 60) as connection:
        return question(connection)


def main(count, rounds):
    under_test = cluster.OttlaCluster()
    try:
        began = time.monotonic()
        error = wire.create_topic(under_test.addresses[1], TOPIC, count, 3, timeout=120)
        if error:
            raise SystemExit(f'CreateTopics answered error {error}')
        nodes = set(under_test.nodes)
        for address in under_test.addresses.values():
            eventually(lambda: with_connection(address, lambda c: all_led(nodes, c, count)), 'all partitions led', 120)
        print(f'{count} partitions created and led after {time.monotonic() - began:.2f} s', flush=True)
        under_test.wait_full_isr(TOPIC, timeout=300)
        took = [one_round(under_test, count, 1 + at % len(under_test.nodes)) for at in range(rounds)]
        print(f'median {sorted(took)[len(took) // 2]:.0f} ms, worst {max(took):.0f} ms of {rounds} rounds')
    finally:
        under_test.close()


if __name__ == '__main__':
    numbers = [int(argument) for argument in sys.argv[1:]]
    main(*(numbers + [10_000, 3][len(numbers):]))
