"""The least of the Kafka protocol that a test needs without a client library: frames, a few requests, record batches.

It exists so that readiness, leadership and hostile bytes are asked and sent by code that shares nothing with the clients
under test. Every call is one request on its own connection unless a `Connection` is held. Requests of any kind and version,
by schema: `schema.py`.
"""
import socket
import struct
import uuid

PRODUCE, FETCH, METADATA, API_VERSIONS, CREATE_TOPICS, DESCRIBE_QUORUM = 0, 1, 3, 18, 19, 55
NONE, CORRUPT_MESSAGE, UNSUPPORTED_VERSION, TOPIC_ALREADY_EXISTS = 0, 2, 35, 36


class Closed(ConnectionError):
    """The peer closed the connection before it answered."""


class Reader:
    """Reads big-endian protocol primitives off one response body, in order."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, n):
        if n < 0 or self.at + n > len(self.data):
            raise ValueError(f'response ends at {len(self.data)}, wanted {n} bytes at {self.at}')
        self.at += n
        return self.data[self.at - n:self.at]

    def number(self, form):
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def i8(self):
        return self.number('>b')

    def i16(self):
        return self.number('>h')

    def i32(self):
        return self.number('>i')

    def i64(self):
        return self.number('>q')

    def string(self):
        n = self.i16()
        return None if n < 0 else self.take(n).decode()

    def array(self, item):
        return [item() for _ in range(max(0, self.i32()))]

    def uvarint(self):
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def varint(self):
        value = self.uvarint()
        return (value >> 1) ^ -(value & 1)

    def compact_array(self, item):
        return [item() for _ in range(max(0, self.uvarint() - 1))]

    def tags(self):
        for _ in range(self.uvarint()):
            self.uvarint()
            self.take(self.uvarint())


def string(value):
    if value is None:
        return struct.pack('>h', -1)
    raw = value.encode()
    return struct.pack('>h', len(raw)) + raw


def compact_string(value):
    raw = value.encode()
    return uvarint(len(raw) + 1) + raw


def uvarint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def varint(value):
    return uvarint((value << 1) ^ (value >> 63))


def request(key, version, body, correlation=1, flexible=False, client='ottla-tests'):
    """One request without its length prefix: header v1, or v2 when `flexible`."""
    return struct.pack('>hhi', key, version, correlation) + string(client) + (b'\0' if flexible else b'') + body


def frame(payload):
    return struct.pack('>i', len(payload)) + payload


class Connection:
    """One blocking connection; `call` sends a request and returns the body of its answer."""

    def __init__(self, address, timeout=10.0):
        self.sock = socket.create_connection(address, timeout=timeout)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.correlation = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def send_raw(self, data):
        self.sock.sendall(data)

    def receive_exactly(self, n):
        out = bytearray()
        while len(out) < n:
            try:
                part = self.sock.recv(n - len(out))
            except ConnectionResetError as e:
                raise Closed('connection reset') from e
            if not part:
                raise Closed(f'connection closed after {len(out)} of {n} bytes')
            out += part
        return bytes(out)

    def receive(self):
        """The next response frame, with its correlation id."""
        (length,) = struct.unpack('>i', self.receive_exactly(4))
        body = self.receive_exactly(length)
        return struct.unpack('>i', body[:4])[0], body[4:]

    def call(self, key, version, body, flexible=False, flexible_answer=None):
        self.correlation += 1
        self.send_raw(frame(request(key, version, body, self.correlation, flexible)))
        got, answer = self.receive()
        if got != self.correlation:
            raise ValueError(f'correlation id {got} answers {self.correlation}')
        reader = Reader(answer)
        if flexible if flexible_answer is None else flexible_answer:
            reader.tags()
        return reader

    def closed_by_peer(self):
        """Waits for the end of the stream: True when the peer closed without sending another byte."""
        try:
            return self.sock.recv(1) == b''
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False


def api_versions(address, timeout=10.0):
    """{api key: (min, max)} by ApiVersions v0."""
    with Connection(address, timeout) as c:
        r = c.call(API_VERSIONS, 0, b'')
        error = r.i16()
        if error:
            raise ValueError(f'ApiVersions v0 answered error {error}')
        return {k: (lo, hi) for k, lo, hi in r.array(lambda: (r.i16(), r.i16(), r.i16()))}


def metadata(address, topics=(), timeout=10.0):
    """Metadata v1: (brokers {id: (host, port, rack)}, controller id, topics {name: (error, {partition: (error, leader,
    replicas, isr)})}). `topics=None` asks for all."""
    body = struct.pack('>i', -1) if topics is None else struct.pack('>i', len(topics)) + b''.join(map(string, topics))
    with Connection(address, timeout) as c:
        r = c.call(METADATA, 1, body)
        brokers = {}
        for _ in range(r.i32()):
            node, host, port, rack = r.i32(), r.string(), r.i32(), r.string()
            brokers[node] = (host, port, rack)
        controller = r.i32()
        out = {}
        for _ in range(r.i32()):
            error, name, _ = r.i16(), r.string(), r.i8()
            parts = {}
            for _ in range(r.i32()):
                perr, index, leader = r.i16(), r.i32(), r.i32()
                parts[index] = (perr, leader, r.array(r.i32), r.array(r.i32))
            out[name] = (error, parts)
        return brokers, controller, out


def quorum_leader(address, timeout=10.0):
    """The node id of the active controller, by DescribeQuorum v0; None when there is none."""
    body = uvarint(2) + compact_string('__cluster_metadata') + uvarint(2) + struct.pack('>i', 0) + b'\0\0\0'
    with Connection(address, timeout) as c:
        r = c.call(DESCRIBE_QUORUM, 0, body, flexible=True)
        if r.i16():
            return None
        leaders = []

        def partition():
            _, error, leader = r.i32(), r.i16(), r.i32()
            leaders.append(None if error or leader < 0 else leader)
            r.i32(), r.i64()
            for _ in range(2):
                r.compact_array(lambda: (r.i32(), r.i64(), r.tags()))
            r.tags()

        def topic():
            r.take(r.uvarint() - 1)
            r.compact_array(partition)
            r.tags()

        r.compact_array(topic)
        return leaders[0] if leaders else None


def create_topic(address, name, partitions=1, replicas=1, timeout=10.0):
    """CreateTopics v2; returns the error code."""
    body = (struct.pack('>i', 1) + string(name) + struct.pack('>ihii', partitions, replicas, 0, 0)
            + struct.pack('>ib', 10_000, 0))
    with Connection(address, timeout) as c:
        r = c.call(CREATE_TOPICS, 2, body)
        r.i32()
        return r.array(lambda: (r.string(), r.i16(), r.string()))[0][1]


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = CRC_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _crc_table():
    table = []
    for n in range(256):
        for _ in range(8):
            n = (n >> 1) ^ (0x82F63B78 if n & 1 else 0)
        table.append(n)
    return table


CRC_TABLE = _crc_table()


def record_batch(values, timestamp=1_700_000_000_000):
    """One uncompressed v2 batch of key-less records."""
    records = b''
    for i, value in enumerate(values):
        inner = b'\0' + varint(0) + varint(i) + varint(-1) + varint(len(value)) + value + varint(0)
        records += varint(len(inner)) + inner
    after_crc = struct.pack('>hiqqqhii', 0, len(values) - 1, timestamp, timestamp, -1, -1, -1, len(values)) + records
    body = struct.pack('>ibI', -1, 2, crc32c(after_crc)) + after_crc
    return struct.pack('>qi', 0, len(body)) + body


def produce(connection, topic, partition, batch, acks=-1):
    """Produce v3 on a held connection; returns (error code, base offset)."""
    body = (string(None) + struct.pack('>hii', acks, 10_000, 1) + string(topic)
            + struct.pack('>iii', 1, partition, len(batch)) + batch)
    r = connection.call(PRODUCE, 3, body)
    out = r.array(lambda: (r.string(), r.array(lambda: (r.i32(), r.i16(), r.i64(), r.i64()))))
    _index, error, offset, _time = out[0][1][0]
    return error, offset


def unique(prefix):
    return f'{prefix}-{uuid.uuid4().hex[:10]}'
