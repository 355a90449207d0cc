"""The checker finds one planted anomaly of each class, and nothing in a sound run: `python3 -m unittest`."""
import copy
import pathlib
import struct
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from history import (FAILED, OK, UNKNOWN, Commit, Committed, History, Poll, Produce, check, read_replica)  # noqa: E402


def sound():
    """Two producers, one partition, ten records each in turn; the last of the second producer is unknown and not there."""
    h = History()
    log = []
    for i in range(20):
        producer = 'ab'[i % 2]
        op = Produce(producer, 0, i // 2, f'{producer}{i // 2}', invoke=i, complete=i + 1.5, status=OK, offset=i)
        if i == 19:
            op.status, op.offset, op.error = UNKNOWN, -1, 'timed out'
        else:
            log.append((i, op.value))
        h.produces.append(op)
    h.log, h.high_watermark = {0: log}, {0: 19}
    h.polls = [Poll('c', 1, 0, offset, value, at=30 + offset) for offset, value in log]
    h.commits = [Commit(0, 5, 40, 41, OK), Commit(0, 9, 42, 43, UNKNOWN), Commit(0, 12, 44, 45, OK)]
    h.committed = [Committed(0, -1, 39, 39.5), Committed(0, 5, 41.5, 41.6), Committed(0, 12, 46, 47)]
    batches = [(i, i, f'digest {i}') for i in range(19)]
    h.replicas = {0: {1: batches, 2: list(batches), 3: batches + [(19, 19, 'above the high watermark')]}}
    return h


class Planted(unittest.TestCase):
    def kinds(self, history):
        return {a.kind for a in check(history)}

    def plant(self, kind, change, beside=()):
        """After `change` the checker names `kind`, and otherwise only what follows from it."""
        history = sound()
        change(history)
        found = self.kinds(history)
        self.assertIn(kind, found)
        self.assertLessEqual(found - {kind}, set(beside), f'{kind} also raised')

    def test_a_sound_run_has_no_anomaly(self):
        self.assertEqual(check(sound()), [])

    def test_an_unknown_record_may_be_in_the_log(self):
        h = sound()
        h.log[0].append((19, 'b9'))
        h.high_watermark[0] = 20
        for node in (1, 2):
            h.replicas[0][node] = h.replicas[0][3]
        self.assertEqual(check(h), [])

    def test_a_lost_record_is_found(self):
        def change(h):
            h.log[0][7] = (7, 'b9')
            h.polls = []
        self.plant('lost', change, beside={'reordered'})

    def test_a_lost_record_acknowledged_without_an_offset_is_found(self):
        h = sound()
        h.produces[6].offset = -1
        self.assertEqual(check(h), [])
        h.produces[19].status = OK
        self.assertEqual(self.kinds(h), {'lost'})

    def test_a_lost_tail_is_found(self):
        def change(h):
            del h.log[0][-1]
            h.high_watermark[0] = 18
            h.polls.pop()
        self.plant('lost', change)

    def test_a_duplicate_is_found(self):
        def change(h):
            h.log[0].append((19, 'a9'))
            h.high_watermark[0] = 20
            h.replicas = {}
        self.plant('duplicate', change)

    def test_reordered_records_are_found(self):
        def change(h):
            a, b = h.produces[4], h.produces[6]
            a.offset, b.offset = b.offset, a.offset
            a.complete = b.complete = 9  # concurrent, so that only the producer's own order is broken
            h.log[0][4], h.log[0][6] = (4, b.value), (6, a.value)
            h.polls = []
        self.plant('reordered', change)

    def test_a_wrong_offset_is_found(self):
        def change(h):
            h.produces[3].offset = 30
            h.produces[3].complete = 100
        self.plant('wrong-offset', change)

    def test_two_records_acknowledged_at_one_offset_are_found(self):
        def change(h):
            h.produces[5].offset = 4
            h.produces[5].invoke = 4
        self.plant('same-offset', change, beside={'wrong-offset'})

    def test_a_phantom_is_found(self):
        def change(h):
            h.log[0].append((19, 'never sent'))
            h.high_watermark[0] = 20
            h.replicas = {}
        self.plant('phantom', change)

    def test_a_failed_record_that_shows_is_found(self):
        def change(h):
            h.produces[19].status = FAILED
            h.log[0].append((19, 'b9'))
            h.high_watermark[0] = 20
            h.replicas = {}
        self.plant('failed-visible', change)

    def test_an_offset_below_one_acknowledged_before_is_found(self):
        def change(h):
            # Offsets of two producers' records change places; the first was acknowledged before the second was sent.
            a, b = h.produces[4], h.produces[7]
            a.offset, b.offset = 7, 4
            h.log[0][4], h.log[0][7] = (4, b.value), (7, a.value)
            h.polls = []
        self.plant('stale-offset', change, beside={'reordered'})

    def test_a_hole_is_found(self):
        def change(h):
            h.log[0] = [(o if o < 18 else o + 1, v) for o, v in h.log[0]]
            h.produces[18].offset = 19
            h.polls.pop()
        self.plant('hole', change)

    def test_a_skipped_record_is_found(self):
        self.plant('poll-skip', lambda h: h.polls.pop(5))

    def test_a_poll_that_goes_back_is_found(self):
        self.plant('nonmonotonic-poll', lambda h: h.polls.append(copy.copy(h.polls[3])))

    def test_a_new_session_may_read_again(self):
        h = sound()
        again = copy.copy(h.polls[3])
        again.session = 2
        h.polls.append(again)
        self.assertEqual(check(h), [])

    def test_a_read_that_the_log_does_not_hold_is_found(self):
        def change(h):
            h.polls[6].value = 'b9'
        self.plant('unstable-read', change)

    def test_a_commit_that_goes_back_is_found(self):
        self.plant('commit-went-back', lambda h: h.committed.append(Committed(0, 5, 50, 51)))
        self.plant('commit-went-back', lambda h: h.committed.append(Committed(0, -1, 50, 51)))

    def test_an_unknown_commit_may_count_or_not(self):
        for offset in (5, 9):
            h = sound()
            h.committed.insert(2, Committed(0, offset, 43.5, 43.6))
            self.assertEqual(check(h), [])

    def test_a_commit_that_nobody_made_is_found(self):
        self.plant('commit-invented', lambda h: h.committed.append(Committed(0, 13, 50, 51)))

    def test_a_diverged_replica_is_found(self):
        def change(h):
            h.replicas[0][2][11] = (11, 11, 'other bytes')
        self.plant('diverged-replica', change)

    def test_a_short_replica_is_found(self):
        def change(h):
            h.replicas[0][2] = h.replicas[0][2][:-1]
        self.plant('short-replica', change)


class Segments(unittest.TestCase):
    def test_batches_are_read_across_segments_and_a_torn_tail_is_left_out(self):
        def batch(base, count):
            body = struct.pack('>ibIhiqqqhii', 0, 2, 0, 0, count - 1, 0, 0, -1, -1, -1, count) + b'records'
            return struct.pack('>qi', base, len(body)) + body
        with tempfile.TemporaryDirectory() as home:
            pathlib.Path(home, '00000000000000000000.log').write_bytes(batch(0, 3) + batch(3, 1))
            pathlib.Path(home, '00000000000000000004.log').write_bytes(batch(4, 2) + batch(6, 1)[:40])
            got = read_replica(home)
        self.assertEqual([b[:2] for b in got], [(0, 2), (3, 3), (4, 5)])
        self.assertEqual(len({b[2] for b in got}), 3)


if __name__ == '__main__':
    unittest.main()
