"""Any request of any version built, and any answer read, by the schemas that the broker's own codec is generated from.

A body is a dict of the schema's field names; what is left out has its default, and a field that the version does not have is
an error unless it has its default. Uuids are 32 hex digits, bytes are bytes. An answer that is longer or shorter than its
schema says is an error.
"""
import functools
import pathlib
import re
import struct

from wire import Reader, uvarint

ROOT = pathlib.Path(__file__).resolve().parents[2] / 'crates'
NUMBERS = {'int8': '>b', 'int16': '>h', 'uint16': '>H', 'int32': '>i', 'int64': '>q', 'float64': '>d'}
EVER = 32767


class Field:
    """One field: its type, its versions, and the fields of the struct that it declares."""

    def __init__(self, words):
        self.name, declared, versions, *rest = words
        self.array, self.type = declared.startswith('[]'), declared.removeprefix('[]')
        self.versions, self.fields = span(versions), []
        options = dict(word.split('=', 1) for word in rest)
        nullable = options.get('nullable')
        self.nullable = None if nullable is None else self.versions if nullable == 'all' else span(nullable)
        self.tag = int(options['tag']) if 'tag' in options else None
        self.default = self.parse_default(options.get('default'))

    def parse_default(self, text):
        if self.array:
            return None if text == 'null' else []
        if text == 'null' or text is None and self.type[0].isupper():
            return None
        if self.type in NUMBERS:
            return float(text or 0) if self.type == 'float64' else int(text or 0)
        return {'boolean': text == 'true', 'string': text or '', 'uuid': '0' * 32}.get(self.type, b'')

    def may_be_null(self, version):
        return self.nullable is not None and within(version, self.nullable)


class Message:
    """The fields of a request or an answer."""

    def __init__(self, block):
        head, *lines = block.splitlines()
        words = [word for word in head.split(' ') if '=' not in word]
        options = dict(word.split('=', 1) for word in head.split(' ') if '=' in word)
        self.name, self.key = ' '.join(words), int(options.get('key', -1))
        self.versions = span(options['versions'])
        self.flexible = EVER if options['flexible'] == 'none' else span(options['flexible'])[0]
        self.fields = []
        open_structs = {0: self.fields}
        for line in lines:
            depth = (len(line) - len(line.lstrip())) // 2
            field = Field(line.split())
            open_structs[depth - 1].append(field)
            open_structs[depth] = field.fields

    def encode(self, version, body):
        out = bytearray()
        encode_struct(out, self.fields, version, version >= self.flexible, body, self.name)
        return bytes(out)

    def decode(self, version, reader):
        value = decode_struct(reader, self.fields, version, version >= self.flexible)
        if reader.at != len(reader.data):
            raise ValueError(f'{self.name} v{version}: {len(reader.data) - reader.at} bytes are left')
        return value


def span(text):
    """`3+`, `3-12` or `1`."""
    if text.endswith('+'):
        return int(text[:-1]), EVER
    low, _, high = text.partition('-')
    return int(low), int(high or low)


def within(version, versions):
    return versions[0] <= version <= versions[1]


@functools.cache
def messages():
    """{'Fetch request': Message}"""
    text = (ROOT / 'protocol/schema/messages.txt').read_text()
    return {m.name: m for m in map(Message, (block for block in text.split('\n\n') if block.strip()))}


@functools.cache
def versions():
    """{'Fetch': (4, 18)}: what brokers serve, as the table of APIs says."""
    rows = (line.split() for line in (ROOT / 'protocol/schema/apis.txt').read_text().splitlines() if line[0] != '#')
    return {name: span(low_high) for _, name, low_high, _ in rows}


@functools.cache
def errors():
    """{0: 'NONE'}"""
    text = (ROOT / 'model/src/error_code.rs').read_text()
    return {int(code): name for code, name in re.findall(r'^\s+(-?\d+) \w+ "(\w+)"', text, re.M)}


def call(connection, api, version, body):
    """Sends one request on a held connection and reads its answer."""
    question = messages()[f'{api} request']
    flexible = version >= question.flexible
    reader = connection.call(question.key, version, question.encode(version, body), flexible,
                             flexible and api != 'ApiVersions')
    return messages()[f'{api} response'].decode(version, reader)


def encode_struct(out, fields, version, flexible, body, where):
    unknown = set(body) - {f.name for f in fields}
    if unknown:
        raise ValueError(f'{where} has no field {sorted(unknown)}')
    tagged = []
    for field in fields:
        value = body.get(field.name, field.default)
        if not within(version, field.versions):
            if value != field.default:
                raise ValueError(f'{where}.{field.name} is not in version {version}')
        elif field.tag is None:
            encode_field(out, field, version, flexible, value, where)
        elif value != field.default:
            part = bytearray()
            encode_field(part, field, version, flexible, value, where)
            tagged.append((field.tag, part))
    if flexible:
        out += uvarint(len(tagged))
        for tag, part in sorted(tagged):
            out += uvarint(tag) + uvarint(len(part)) + part


def encode_field(out, field, version, flexible, value, where):
    where = f'{where}.{field.name}'
    if field.array:
        if value is None and not field.may_be_null(version):
            raise ValueError(f'{where} may not be null in version {version}')
        out += uvarint(0 if value is None else len(value) + 1) if flexible else struct.pack('>i', -1 if value is None else len(value))
        for item in value or ():
            encode_value(out, field, version, flexible, item, where)
    elif field.type[0].isupper() and field.may_be_null(version):
        out += b'\xff' if value is None else b'\x01'
        if value is not None:
            encode_struct(out, field.fields, version, flexible, value, where)
    else:
        if value is None and not field.may_be_null(version):
            raise ValueError(f'{where} may not be null in version {version}')
        encode_value(out, field, version, flexible, value, where)


def encode_value(out, field, version, flexible, value, where):
    kind = field.type
    if kind[0].isupper():
        encode_struct(out, field.fields, version, flexible, value, where)
    elif kind in NUMBERS:
        out += struct.pack(NUMBERS[kind], value)
    elif kind == 'boolean':
        out.append(value)
    elif kind == 'uuid':
        out += bytes.fromhex(value)
    else:
        raw = value.encode() if isinstance(value, str) else value
        size = -1 if raw is None else len(raw)
        out += uvarint(size + 1) if flexible else struct.pack('>h' if kind == 'string' else '>i', size)
        out += raw or b''


def decode_struct(reader, fields, version, flexible):
    out, tagged = {}, {}
    for field in fields:
        if within(version, field.versions):
            if field.tag is None:
                out[field.name] = decode_field(reader, field, version, flexible)
            else:
                tagged[field.tag], out[field.name] = field, field.default
    if flexible:
        for _ in range(reader.uvarint()):
            tag, data = reader.uvarint(), Reader(reader.take(reader.uvarint()))
            if tag in tagged:
                out[tagged[tag].name] = decode_field(data, tagged[tag], version, flexible)
    return out


def decode_field(reader, field, version, flexible):
    if field.array:
        count = reader.uvarint() - 1 if flexible else reader.i32()
        return None if count < 0 else [decode_value(reader, field, version, flexible) for _ in range(count)]
    if field.type[0].isupper() and field.may_be_null(version) and reader.i8() < 0:
        return None
    return decode_value(reader, field, version, flexible)


def decode_value(reader, field, version, flexible):
    kind = field.type
    if kind[0].isupper():
        return decode_struct(reader, field.fields, version, flexible)
    if kind in NUMBERS:
        return reader.number(NUMBERS[kind])
    if kind == 'boolean':
        return reader.i8() != 0
    if kind == 'uuid':
        return reader.take(16).hex()
    size = reader.uvarint() - 1 if flexible else reader.i16() if kind == 'string' else reader.i32()
    if size < 0:
        return None
    raw = reader.take(size)
    return raw.decode() if kind == 'string' else raw
