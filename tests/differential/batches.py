"""Record batches as a sequence describes them, right and wrong, and as an answer holds them.

A description is a dict: `records` (each with key, value, headers and a timestamp delta), and whatever shall differ from what
follows from them: `magic`, `codec`, `attributes`, `crc` ('bad'), `count`, `last_delta`, `length`, `cut`, `producer`, `epoch`,
`sequence`, `time`, `max_time`, `base`, `deltas`.
"""
import gzip
import hashlib
import struct

from wire import Reader, crc32c, varint

HEADER = '>qiibIhiqqqhii'
TIME = 1_600_000_000_000


def build(d):
    records = d.get('records', [{}])
    count = d.get('count', len(records))
    body = b''.join(record(i, r, d.get('deltas')) for i, r in enumerate(records))
    codec = d.get('codec', 0)
    if codec == 1:
        body = gzip.compress(body, mtime=0)
    first = d.get('time', TIME)
    latest = first + max((r.get('delta', 0) for r in records), default=0)
    after_crc = struct.pack('>hiqqqhii', codec | d.get('attributes', 0), d.get('last_delta',
                                                                               len(records) - 1), first, d.get(
                                                                                   'max_time', latest), d.get('producer', -1),
                            d.get('epoch', -1), d.get('sequence', -1), count) + body
    crc = crc32c(after_crc) ^ (1 if d.get('crc') == 'bad' else 0)
    rest = struct.pack('>ibI', d.get('leader_epoch', -1), d.get('magic', 2), crc) + after_crc
    whole = struct.pack('>qi', d.get('base', 0), d.get('length', len(rest))) + rest
    return whole[:len(whole) - d.get('cut', 0)]


def record(index, r, deltas):
    key, value = r.get('key'), r.get('value', 'v')
    inner = b'\0' + varint(r.get('delta', 0)) + varint(deltas[index] if deltas else index) + text(key) + text(value)
    headers = r.get('headers', ())
    inner += varint(len(headers)) + b''.join(text(name) + text(value) for name, value in headers)
    return varint(len(inner)) + inner


def text(value):
    if value is None:
        return varint(-1)
    raw = value.encode()
    return varint(len(raw)) + raw


def read(data):
    """The batches of an answer; what is cut off at its end is left out."""
    out, at = [], 0
    while at + 61 <= len(data):
        base, length, epoch, magic, _, attributes, last, first, latest, producer, producer_epoch, sequence, count = \
            struct.unpack_from(HEADER, data, at)
        end = at + 12 + length
        if length < 49 or end > len(data):
            break
        out.append({
            'Base': base, 'LeaderEpoch': epoch, 'Magic': magic, 'Attributes': attributes, 'LastDelta': last, 'MaxTime': latest,
            'ProducerId': producer, 'ProducerEpoch': producer_epoch, 'Sequence': sequence, 'Count': count,
            'Body': content(data[at + 61:end], attributes, count, first)
        })
        at = end
    return out


def content(body, attributes, count, first):
    """The records of a batch, by time, key, value and headers; of one that is marked or compressed, what it is."""
    if attributes & 7 == 1:
        body = gzip.decompress(body)
    elif attributes & 7:
        return hashlib.sha256(body).hexdigest()[:16]
    if attributes & 0x20:
        return 'abort' if body[7:9] == b'\0\0' else 'commit'
    reader, out = Reader(body), []
    for _ in range(count):
        reader.varint(), reader.i8()
        delta, offset, key, value = reader.varint(), reader.varint(), string(reader), string(reader)
        out.append([first + delta, offset, key, value, [[string(reader), string(reader)] for _ in range(reader.varint())]])
    return out


def string(reader):
    size = reader.varint()
    return None if size < 0 else reader.take(size).decode(errors='replace')
