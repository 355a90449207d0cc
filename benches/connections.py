#!/usr/bin/env python3
"""Very many connections to one broker, and what they may make it hold.

  connections.py [--bootstrap 127.0.0.1:9092] [--pid PID] [--count 10000] [--frame 1048576] [--sent 65536]

Three steps, each bounded in time, against a broker that runs already (`ottla local --nodes 1 --ephemeral`):
every connection asks one question and is answered; then each announces a large request and sends only its beginning, which
is more than `queued.max.request.bytes` allows: the broker must not hold more than its budget; then all of them go away and
one that comes anew is answered. Needs nothing but Python; with --pid the memory of the broker is told after each step.
"""
import argparse
import asyncio
import pathlib
import resource
import struct
import time


def raise_open_files(count):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count + 100:
        raise SystemExit(f'the system allows {hard} open files; {count} connections need more')
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def api_versions(correlation):
    body = struct.pack('>hhih', 18, 0, correlation, -1)
    return struct.pack('>i', len(body)) + body


async def ask(reader, writer, correlation):
    writer.write(api_versions(correlation))
    size, = struct.unpack('>i', await reader.readexactly(4))
    answer = await reader.readexactly(size)
    answered, error = struct.unpack('>ih', answer[:6])
    assert (answered, error) == (correlation, 0), (answered, correlation, error)


def memory(pid):
    if pid is None:
        return ''
    fields = dict(line.split(':', 1) for line in pathlib.Path(f'/proc/{pid}/status').read_text().splitlines() if ':' in line)
    return f", RSS {int(fields['VmRSS'].split()[0]) / 1024:.0f} MiB"


async def main(options):
    host, port = options.bootstrap.rsplit(':', 1)
    raise_open_files(options.count)
    # As many connects at a time as the broker's backlog takes easily.
    gate = asyncio.Semaphore(200)

    async def connect(number):
        async with gate:
            reader, writer = await asyncio.open_connection(host, int(port), limit=4096)
            await ask(reader, writer, number)
            return reader, writer

    def told(step, since):
        print(f'{step}: {time.monotonic() - since:.1f} s{memory(options.pid)}', flush=True)

    print(f'before{memory(options.pid)}')
    since = time.monotonic()
    async with asyncio.timeout(120):
        connections = await asyncio.gather(*(connect(number) for number in range(options.count)))
    told(f'{len(connections)} connections, each answered', since)

    since = time.monotonic()
    beginning = struct.pack('>i', options.frame) + bytes(options.sent)
    for _, writer in connections:
        writer.write(beginning)
    await asyncio.sleep(10)
    told(f'{options.count * options.frame >> 20} MiB announced', since)

    since = time.monotonic()
    for _, writer in connections:
        writer.transport.abort()
    async with asyncio.timeout(60):
        reader, writer = await asyncio.open_connection(host, int(port))
        await ask(reader, writer, 1)
    told('another one, answered', since)
    writer.close()


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--bootstrap', default='127.0.0.1:9092')
    parser.add_argument('--pid', type=int)
    parser.add_argument('--count', type=int, default=10_000)
    parser.add_argument('--frame', type=int, default=1 << 20)
    parser.add_argument('--sent', type=int, default=1 << 16)
    asyncio.run(main(parser.parse_args()))
