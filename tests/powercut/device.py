"""Disks that lose their power: block devices whose unflushed writes may be gone, torn or out of order after a cut.

A FUSE file system of one file a disk, spoken directly to /dev/fuse; each file is bound to a loop device with an ext4 on it.
What ext4 writes arrives here as writes, what it flushes (a barrier, a FUA write, at the end of every fsync) as FSYNC. Between
two flushes a disk may keep, lose, or tear at any sector each write, in any combination: so does `cut`, by a seed, for all
disks in the same instant, into images of a next generation. Nothing else is kept: the page cache above is as lost as in a
real cut, because only what reached the device is here. After a cut the old disks take writes and forget them.

A disk can also go bad: it then answers every read, write and flush with EIO, until it is mended. And flushes can be slow, as
those of disks in a network are: each is answered so much later, while the disk takes other requests.

This is stricter than a copy of the backing file of a loop device, which would always keep every write that the device was
given. It does not model: a disk that lies about flushes, and single sectors that go bad.

Commands on standard input, one JSON object a line, answered by one line: {"make": [names], "bytes": n}, {"cut": seed}, {"bad": name}, {"mend": name},
{"flush_ms": n}.
"""
import ctypes
import errno
import json
import mmap
import os
import pathlib
import random
import select
import struct
import sys
import time

SECTOR, CHUNK, MESSAGE_MAX = 512, 1 << 20, (1 << 20) + 4096
(LOOKUP, FORGET, GETATTR, SETATTR, OPEN, READ, WRITE, STATFS, RELEASE, FSYNC, FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR, FSYNCDIR,
 INTERRUPT, DESTROY, FALLOCATE, BATCH_FORGET) = 1, 2, 3, 4, 14, 15, 16, 17, 18, 20, 25, 26, 27, 28, 29, 30, 36, 38, 43, 42
DIRECT_IO, BIG_WRITES, MAX_PAGES = 1, 1 << 5, 1 << 22


class Disk:
    """The bytes of one disk, and what of them no flush has covered yet."""

    def __init__(self, path, size):
        self.size, self.touched, self.volatile, self.dead, self.bad = size, set(), [], False, False
        with open(path, 'w+b') as f:
            f.truncate(size)
            self.bytes = mmap.mmap(f.fileno(), size)
        # The name is not needed any more; the space is given back when the disk is gone.
        os.unlink(path)

    def write(self, offset, data):
        if self.dead:
            return
        self.volatile.append((offset, self.bytes[offset:offset + len(data)], bytes(data)))
        self.put(offset, data)

    def put(self, offset, data):
        self.bytes[offset:offset + len(data)] = data
        self.touched.update(range(offset // CHUNK, (offset + len(data) - 1) // CHUNK + 1))

    def flush(self):
        self.volatile.clear()

    def cut(self, path, chance):
        """What a new disk finds after the power is back; and how many writes were kept, torn and lost."""
        after, counts = Disk(path, self.size), [0, 0, 0]
        for chunk in self.touched:
            after.put(chunk * CHUNK, self.bytes[chunk * CHUNK:(chunk + 1) * CHUNK])
        for offset, before, _ in reversed(self.volatile):
            after.put(offset, before)
        # One cut in four keeps all, one loses all: the mixtures are between.
        keep = chance.choice([0.0, 1.0, chance.random(), chance.random()])
        for offset, _, written in self.volatile:
            sectors = len(written) // SECTOR
            if chance.random() < keep:
                after.put(offset, written)
                counts[0] += 1
            elif sectors > 1 and chance.random() < 0.5:
                torn = chance.randrange(1, sectors) * SECTOR
                if chance.random() < 0.5:
                    after.put(offset, written[:torn])
                else:
                    after.put(offset + torn, written[torn:])
                counts[1] += 1
            else:
                counts[2] += 1
        self.dead, self.volatile = True, []
        return after, counts


class Device:
    """The file system. Files are numbered from 2; 1 is its root."""

    def __init__(self, home):
        self.home, self.files, self.generation = pathlib.Path(home), [], 0
        self.current = {}
        # What a flush takes in seconds, and the answers that are still to be given, with their times.
        self.flush_takes, self.later = 0, []
        self.fuse = os.open('/dev/fuse', os.O_RDWR | os.O_CLOEXEC)
        self.mount = self.home / 'disks'
        self.mount.mkdir(parents=True, exist_ok=True)
        options = f'fd={self.fuse},rootmode=40000,user_id=0,group_id=0,max_read={1 << 20}'
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b'powercut', str(self.mount).encode(), b'fuse', 6, options.encode()):
            raise OSError(ctypes.get_errno(), 'cannot mount a FUSE file system')

    # Commands

    def make(self, names, size):
        for name in names:
            self.add(name, Disk(self.home / f'{name}.bytes', size))
        return {'files': self.paths()}

    def cut(self, seed):
        chance, at, kept = random.Random(seed), time.monotonic(), [0, 0, 0]
        self.generation += 1
        for name, number in list(self.current.items()):
            after, counts = self.files[number][1].cut(self.home / f'{name}.bytes', chance)
            kept = [a + b for a, b in zip(kept, counts)]
            self.add(name, after)
        return {'at': at, 'kept': kept[0], 'torn': kept[1], 'lost': kept[2], 'files': self.paths()}

    def turn(self, name, bad):
        self.files[self.current[name]][1].bad = bad
        return {}

    def add(self, name, disk):
        self.current[name] = len(self.files)
        self.files.append((f'{name}.{self.generation}', disk))

    def paths(self):
        return {name: str(self.mount / self.files[number][0]) for name, number in self.current.items()}

    def forget(self, number):
        """A disk that nobody has open and that was cut is gone for good."""
        disk = self.files[number][1]
        if disk.dead:
            disk.bytes.close()
            disk.touched.clear()

    # Requests

    def attributes(self, node):
        if node == 1:
            size, mode = 4096, 0o40700
        else:
            size, mode = self.files[node - 2][1].size, 0o100600
        return struct.pack('<6Q10I', node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def answer(self, opcode, node, body):
        if opcode == INIT:
            return struct.pack('<IIIIHHIIHHII6I', 7, 31, 1 << 20, BIG_WRITES | MAX_PAGES, 16, 12, 1 << 20, 1, 256, 0, 0, 0, *[0] * 6)
        if opcode == LOOKUP:
            name = bytes(body).rstrip(b'\0').decode()
            found = [i for i, (each, _) in enumerate(self.files) if each == name]
            if not found:
                return -errno.ENOENT
            return struct.pack('<4Q2I', found[0] + 2, 0, 3600, 3600, 0, 0) + self.attributes(found[0] + 2)
        if opcode in (GETATTR, SETATTR):
            return struct.pack('<QII', 3600, 0, 0) + self.attributes(node)
        if opcode in (OPEN, OPENDIR):
            return struct.pack('<QII', node, DIRECT_IO if opcode == OPEN else 0, 0)
        if opcode in (READ, WRITE, FSYNC) and self.files[node - 2][1].bad:
            return -errno.EIO
        if opcode == READ:
            _, offset, size = struct.unpack_from('<QQI', body)
            return self.files[node - 2][1].bytes[offset:offset + size]
        if opcode == WRITE:
            _, offset, size = struct.unpack_from('<QQI', body)
            self.files[node - 2][1].write(offset, body[40:40 + size])
            return struct.pack('<II', size, 0)
        if opcode == FSYNC:
            self.files[node - 2][1].flush()
            return b''
        if opcode == STATFS:
            return struct.pack('<5Q4I6I', 1 << 20, 1 << 19, 1 << 19, 1 << 10, 1 << 10, 4096, 255, 4096, 0, *[0] * 6)
        if opcode == RELEASE:
            self.forget(node - 2)
            return b''
        if opcode in (FLUSH, READDIR, RELEASEDIR, FSYNCDIR, DESTROY):
            return b''
        return -errno.EOPNOTSUPP if opcode == FALLOCATE else -errno.ENOSYS

    def told(self, command):
        if 'cut' in command:
            return self.cut(command['cut'])
        if 'flush_ms' in command:
            self.flush_takes = command['flush_ms'] / 1000
            return {}
        if 'make' in command:
            return self.make(command['make'], command['bytes'])
        return self.turn(command.get('bad') or command['mend'], 'bad' in command)

    def say(self, unique, said):
        error, said = (said, b'') if isinstance(said, int) else (0, said)
        os.writev(self.fuse, [struct.pack('<IiQ', 16 + len(said), error, unique), said])

    def answer_later(self):
        """Gives the answers that are due; milliseconds until the next one is, or None."""
        while self.later and self.later[0][0] <= time.monotonic():
            _, unique, said = self.later.pop(0)
            self.say(unique, said)
        return max(0, self.later[0][0] - time.monotonic()) * 1000 if self.later else None

    def serve(self):
        """One thing after the other: a cut falls between two requests, for all disks at once."""
        waiting, buffer = select.poll(), bytearray(MESSAGE_MAX)
        for descriptor in (self.fuse, sys.stdin.fileno()):
            waiting.register(descriptor, select.POLLIN)
        view = memoryview(buffer)
        while True:
            for descriptor, _ in waiting.poll(self.answer_later()):
                if descriptor == self.fuse:
                    length = os.readv(self.fuse, [buffer])
                    _, opcode, unique, node = struct.unpack_from('<IIQQ', buffer)
                    if opcode in (FORGET, BATCH_FORGET, INTERRUPT):
                        continue
                    said = self.answer(opcode, node, view[40:length])
                    if opcode == FSYNC and self.flush_takes:
                        self.later.append((time.monotonic() + self.flush_takes, unique, said))
                    else:
                        self.say(unique, said)
                else:
                    line = sys.stdin.readline()
                    if not line:
                        return
                    print(json.dumps(self.told(json.loads(line))), flush=True)


if __name__ == '__main__':
    Device(sys.argv[1]).serve()
