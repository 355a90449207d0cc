"""How long a partition is without acknowledgements, as a client sees it that does not wait for anything of its own.

A thread for each broker writes single records with acks=all to that broker and nobody else, whoever leads: those that do not
refuse. So the gap that is measured is the cluster's. What clients add to it (a request that waits for its timeout at a broker
which is paused, metadata that is asked for seldom) depends on their settings.
"""
import threading
import time

import wire

PACE_SECONDS = 0.005
# One that is paused answers nobody; its thread must end all the same.
PATIENCE_SECONDS = 1.0


class Prober:
    """Writes to one partition until the end of the `with` block; `acked` has when, and by whom."""

    def __init__(self, addresses, topic, partition):
        self.acked, self.stop = [], threading.Event()
        self.batch = wire.record_batch([b'x'])
        self.threads = [threading.Thread(target=self.run, args=(node, address, topic, partition), daemon=True)
                        for node, address in addresses.items()]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def run(self, node, address, topic, partition):
        connection = None
        while not self.stop.is_set():
            try:
                connection = connection or wire.Connection(address, PATIENCE_SECONDS)
                if wire.produce(connection, topic, partition, self.batch)[0] == wire.NONE:
                    self.acked.append((time.monotonic(), node))
            except (OSError, ValueError):
                if connection:
                    connection.sock.close()
                connection = None
            self.stop.wait(PACE_SECONDS)
        if connection:
            connection.sock.close()

    def wait_acked(self, since, timeout, other_than=None):
        """When somebody acknowledged a record after `since`, other than a certain broker; None where nobody does in time."""
        while time.monotonic() < since + timeout:
            found = [at for at, node in list(self.acked) if at > since and node != other_than]
            if found:
                return min(found)
            time.sleep(0.005)
        return None

    def gap(self, since, until):
        """The longest time without an acknowledgement that began at `since` or a little before, in seconds."""
        times = sorted(at for at, _ in list(self.acked) if at <= until)
        before = [at for at in times if at <= since]
        times = ([before[-1]] if before else [since]) + [at for at in times if at > since]
        return max((b - a for a, b in zip(times, times[1:])), default=until - since)
