"""A TCP relay to an FTP server, on another loopback address and the same ports, with latency and faults."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

ADDRESS = "127.0.0.2"
BLOCK_BYTES = 1 << 16


class Relay:
    """A relay that forwards data in both directions with a latency of ``delay`` seconds.

    ``cut_after``: the connection that exceeds this number of bytes is aborted, once.
    """

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay
        self.cut_after: int | None = None
        self.cuts = 0
        self._forgotten: dict[asyncio.StreamWriter, str] = {}
        self._writers: set[asyncio.StreamWriter] = set()

    def forget(self, way: str) -> None:
        """Forget all open connections, as a firewall does: "drop" their packets, or "reset" them on the next one."""
        self._forgotten = dict.fromkeys(self._writers, way)

    def close(self) -> None:
        """Abort all connections."""
        for writer in self._writers:
            if not writer.transport.is_closing():
                writer.transport.abort()

    async def serve(self, ports: Iterable[int]) -> list[asyncio.Server]:
        """Listen on all ``ports``."""
        return [await asyncio.start_server(self._accept(port), ADDRESS, port) for port in ports]

    def _accept(self, port: int):
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._writers.add(writer)
            await asyncio.sleep(2 * self.delay)  # a round trip to open the connection
            try:
                their_reader, their_writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                writer.close()
                return
            self._writers.add(their_writer)
            await asyncio.gather(
                self._pass(reader, their_writer, writer), self._pass(their_reader, writer, their_writer)
            )

        return accept

    async def _pass(self, reader, writer, other) -> None:
        coming: asyncio.Queue = asyncio.Queue(64)
        sending = asyncio.create_task(self._send(coming, writer))
        clock = asyncio.get_running_loop().time
        block = b"-"
        while block:
            try:
                block = await reader.read(BLOCK_BYTES)
            except OSError:
                block = b""
            if way := self._forgotten.get(writer):
                if way == "drop" and block:
                    continue
                writer.transport.abort()
                other.transport.abort()
                block = b""
            if self.cut_after is not None and len(block) > 1000:  # data, not commands
                self.cut_after -= len(block)
                if self.cut_after < 0:
                    self.cut_after = None
                    self.cuts += 1
                    writer.transport.abort()
                    other.transport.abort()
                    block = b""
            await coming.put((clock() + self.delay, block))
        await sending

    async def _send(self, coming: asyncio.Queue, writer: asyncio.StreamWriter) -> None:
        clock = asyncio.get_running_loop().time
        with suppress(OSError):
            while True:
                when, block = await coming.get()
                if (wait := when - clock()) > 0:
                    await asyncio.sleep(wait)
                if not block:
                    break
                writer.write(block)
                await writer.drain()
        while not coming.empty():
            coming.get_nowait()
        with suppress(OSError):
            writer.close()


@contextmanager
def relaying(ports: Iterable[int], delay: float = 0.0) -> Iterator[Relay]:
    """Run a relay to ``ports`` in a thread."""
    relay, loop, ready = Relay(delay), asyncio.new_event_loop(), threading.Event()

    def run() -> None:
        asyncio.set_event_loop(loop)
        servers = loop.run_until_complete(relay.serve(ports))
        loop.call_soon(ready.set)
        loop.run_forever()
        for server in servers:
            server.close()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        relay.close()
        loop.run_until_complete(asyncio.sleep(0.01))  # to close the aborted connections
        loop.close()

    thread = threading.Thread(target=run, name="relay", daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield relay
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
