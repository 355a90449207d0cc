"""A slow line: `proxy.py DELAY_MS BYTES_PER_SECOND LISTEN=TARGET…` (each host:port) passes bytes on, late and few at a time.

Each direction of a connection has its own line. Order is kept, nothing is lost; what a sender may have under way is bounded by
the sockets' buffers and by QUEUE pieces of at most PIECE bytes here.
"""
import asyncio
import contextlib
import sys

PIECE, QUEUE = 64 << 10, 64


async def line(reader, writer, delay, rate):
    waiting, loop = asyncio.Queue(QUEUE), asyncio.get_running_loop()

    async def read():
        while data := await reader.read(PIECE):
            await waiting.put((loop.time() + delay, data))
        await waiting.put(None)

    reading = asyncio.create_task(read())
    try:
        while piece := await waiting.get():
            due, data = piece
            await asyncio.sleep(max(0.0, due - loop.time()) + len(data) / rate)
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    finally:
        reading.cancel()


async def serve(listen, target, delay, rate):
    async def connected(reader, writer):
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection(*target)
            try:
                await asyncio.gather(line(reader, far_writer, delay, rate), line(far_reader, writer, delay, rate))
            finally:
                far_writer.close()
        writer.close()

    await asyncio.start_server(connected, *listen)


async def main(delay_ms, rate, *pairs):
    def address(text):
        return text.rsplit(':', 1)[0], int(text.rsplit(':', 1)[1])

    for pair in pairs:
        listen, target = pair.split('=')
        await serve(address(listen), address(target), float(delay_ms) / 1000, float(rate))
    print('ready', flush=True)
    await asyncio.Event().wait()


if __name__ == '__main__':
    asyncio.run(main(*sys.argv[1:]))
