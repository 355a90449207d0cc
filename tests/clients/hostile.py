"""Hostile bytes on raw sockets: what is wrong ends that connection or that request, and nobody else notices."""
import os
import pathlib
import random
import struct
import sys
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / 'lib'))
from checks import Suite, addresses, equal, eventually, wait_topic  # noqa: E402
import wire  # noqa: E402
from wire import Connection  # noqa: E402

suite = Suite('hostile')
A = addresses()


def topic():
    """A one-partition topic and the address of its leader."""
    name = wire.unique('hostile')
    equal(wire.create_topic(A[0], name, 1, 3), 0, 'CreateTopics')
    wait_topic(name, 1)
    brokers, _, topics = wire.metadata(A[0], [name])
    host, port, _ = brokers[topics[name][1][0][1]]
    return name, (host, port)


def closes(*chunks, shut=False):
    """The broker closes a connection that sends these bytes, and one beside it is served before and after."""
    with Connection(A[0]) as witness, Connection(A[0]) as c:
        witness.call(wire.API_VERSIONS, 0, b'')
        try:
            for chunk in chunks:
                c.send_raw(chunk)
            if shut:
                c.sock.shutdown(1)
        except OSError:
            pass  # closed before all of it was sent
        assert c.closed_by_peer(), 'the connection stayed open or was answered'
        equal(witness.call(wire.API_VERSIONS, 0, b'').i16(), 0, 'ApiVersions beside it')


@suite.check
def oversized():
    """a frame that announces more than socket.request.max.bytes closes the connection at once"""
    for size in (0x7FFFFFFF, 104857601):
        closes(struct.pack('>i', size))


@suite.check
def negative():
    """a negative frame length closes the connection"""
    for size in (-1, -2, -0x80000000):
        closes(struct.pack('>i', size) + b'x' * 64)


@suite.check
def empty():
    """a frame too short for a header closes the connection"""
    closes(wire.frame(b''))
    closes(wire.frame(b'\0\x12\0'))


@suite.check
def truncated():
    """a frame cut short by the end of the stream closes the connection"""
    whole = wire.frame(wire.request(wire.METADATA, 1, struct.pack('>i', -1)))
    for cut in (2, 4, 9, len(whole) - 1):
        closes(whole[:cut], shut=True)


@suite.check
def garbage():
    """frames of garbage close the connection"""
    rng = random.Random(7)
    for _ in range(50):
        # An API key beyond all that exist, so that no garbage is by chance a request.
        closes(wire.frame(struct.pack('>h', rng.randrange(1000, 32767)) + rng.randbytes(rng.randrange(8, 2000))))


@suite.check
def other_protocols():
    """a client of another protocol (HTTP, TLS, a shell) is turned away"""
    closes(b'GET / HTTP/1.1\r\nHost: localhost\r\n\r\n')
    closes(bytes.fromhex('16030100c8010000c40303') + os.urandom(200), shut=True)
    closes(b'ls -la\n' * 50, shut=True)


@suite.check
def lying_body():
    """a known request whose body lies about its lengths closes the connection, whatever it claims"""
    for body in (struct.pack('>i', 0x7FFFFFFF), struct.pack('>ih', 1, 0x7FFF), struct.pack('>ih', 1, 10) + b'abc',
                 struct.pack('>i', 1_000_000) + b'\0' * 100, b''):
        closes(wire.frame(wire.request(wire.METADATA, 1, body)))
    # A compact array that claims 2^28 entries; a varint that never ends; tagged fields that claim as many.
    for body in (b'\xff\xff\xff\x7f' + b'\0' * 8, b'\xff' * 32, b'\0\0\0\xff\xff\xff\x7f'):
        closes(wire.frame(wire.request(wire.METADATA, 12, body, flexible=True)))


@suite.check
def unknown_version():
    """ApiVersions of a version from the future answers UNSUPPORTED_VERSION with a v0 body that lists what is served"""
    for version in (77, 32767):
        with Connection(A[0]) as c:
            r = c.call(wire.API_VERSIONS, version, b'\x05test\x051.0\0', flexible=True, flexible_answer=False)
            equal(r.i16(), wire.UNSUPPORTED_VERSION, 'error')
            listed = dict(r.array(lambda: (r.i16(), (r.i16(), r.i16()))))
            assert wire.API_VERSIONS in listed, f'it does not list ApiVersions: {listed}'
            equal(c.call(wire.API_VERSIONS, 0, b'').i16(), 0, 'the same connection afterwards')


@suite.check
def unsupported_requests():
    """a request of an unknown key or of a version that is not served closes the connection"""
    top = wire.api_versions(A[0])
    closes(wire.frame(wire.request(9999, 0, b'')))
    closes(wire.frame(wire.request(-7, 0, b'')))
    closes(wire.frame(wire.request(wire.METADATA, top[wire.METADATA][1] + 50, struct.pack('>i', 0))))
    closes(wire.frame(wire.request(wire.METADATA, -1, struct.pack('>i', 0))))


@suite.check
def versions_match():
    """every API that is advertised is answered in its lowest version's header, ApiVersions from 0"""
    for address in A:
        listed = wire.api_versions(address)
        equal(listed[wire.API_VERSIONS][0], 0, 'lowest ApiVersions')
        assert listed[wire.PRODUCE][1] >= 13 and listed[wire.FETCH][1] >= 13 and listed[wire.METADATA][1] >= 12, listed


@suite.check
def corrupt():
    """a batch with a wrong CRC: CORRUPT_MESSAGE, nothing is written, and the next batch on the connection passes"""
    name, leader = topic()
    good = wire.record_batch([b'good', b'better'])
    for at in (17, 40, len(good) - 1):
        bad = bytearray(good)
        bad[at] ^= 0x40
        with Connection(leader) as c:
            error, _ = wire.produce(c, name, 0, bytes(bad))
            equal(error, wire.CORRUPT_MESSAGE, f'error for a flipped bit at {at}')
    with Connection(leader) as c:
        equal(wire.produce(c, name, 0, good), (0, 0), 'the good batch')


@suite.check
def malformed_batches():
    """batches that lie about length, magic or counts are refused with an error, and nothing of them is written"""
    name, leader = topic()
    good = wire.record_batch([b'a'])

    def crafted(**fields):
        batch = bytearray(good)
        for at, raw in fields.values():
            batch[at:at + len(raw)] = raw
        batch[17:21] = struct.pack('>I', wire.crc32c(bytes(batch[21:])))
        return bytes(batch)

    refused = {
        'length too long': crafted(a=(8, struct.pack('>i', 5000))),
        'length negative': crafted(a=(8, struct.pack('>i', -5))),
        'length tiny': crafted(a=(8, struct.pack('>i', 3))),
        'magic 9': crafted(a=(16, b'\x09')),
        'record count beyond the records': crafted(a=(57, struct.pack('>i', 1000)), b=(23, struct.pack('>i', 999))),
        'record count negative': crafted(a=(57, struct.pack('>i', -1))),
        'last offset delta without records': crafted(a=(23, struct.pack('>i', 70))),
        'unknown codec': crafted(a=(21, b'\0\x07')),
        'half a header': good[:30],
        'garbage': os.urandom(200),
    }
    for what, batch in refused.items():
        with Connection(leader) as c:
            try:
                error, _ = wire.produce(c, name, 0, batch)
                assert error != 0, f'{what}: it was taken'
            except wire.Closed:
                pass  # also a refusal
    with Connection(leader) as c:
        equal(wire.produce(c, name, 0, good), (0, 0), 'the good batch after all of them')


@suite.check
def pipelined():
    """requests sent without waiting are answered in order"""
    with Connection(A[0]) as c:
        for i in range(200):
            key, body = (wire.API_VERSIONS, b'') if i % 2 else (wire.METADATA, struct.pack('>i', 0))
            version = 0 if i % 2 else 1
            c.send_raw(wire.frame(wire.request(key, version, body, correlation=i)))
        equal([c.receive()[0] for _ in range(200)], list(range(200)), 'correlation ids')


@suite.check
def byte_by_byte():
    """a request that comes in single bytes is answered"""
    with Connection(A[0]) as c:
        for byte in wire.frame(wire.request(wire.API_VERSIONS, 0, b'', correlation=5)):
            c.send_raw(bytes([byte]))
        equal(c.receive()[0], 5, 'correlation id')


@suite.check
def thousands():
    """after 3,000 connections of garbage every broker serves others as before, and keeps none of them open"""
    name, leader = topic()
    pids = os.environ.get('BROKER_PIDS', '').split()
    before = {p: len(os.listdir(f'/proc/{p}/fd')) for p in pids}

    def attack(seed):
        rng = random.Random(seed)
        for i in range(300):
            try:
                with Connection(A[i % len(A)]) as c:
                    kind = rng.randrange(4)
                    if kind == 0:
                        c.send_raw(struct.pack('>i', 0x7FFFFFFF))
                    elif kind == 1:
                        c.send_raw(rng.randbytes(rng.randrange(1, 400)))
                    elif kind == 2:
                        c.send_raw(wire.frame(wire.request(wire.PRODUCE, 9, rng.randbytes(100), flexible=True)))
                    # kind 3: connects and goes away
            except OSError:
                pass

    threads = [threading.Thread(target=attack, args=(seed,)) for seed in range(10)]
    for t in threads:
        t.start()
    with Connection(leader) as c:
        served = 0
        while any(t.is_alive() for t in threads):
            error, _ = wire.produce(c, name, 0, wire.record_batch([b'x']))
            equal(error, 0, f'produce {served} under attack')
            served += 1
    for t in threads:
        t.join()
    assert served > 3, f'only {served} produces beside the attack'
    for address in A:
        equal(len(wire.metadata(address)[0]), len(A), f'brokers that {address} knows')
    for pid, count in before.items():
        eventually(lambda pid=pid, count=count: len(os.listdir(f'/proc/{pid}/fd')) <= count + 40, f'process {pid} to close its connections')


suite.main()
