"""A small TCP proxy on loopback that can stall (take everything, forward nothing) and cut what goes through it."""

from __future__ import annotations

import asyncio
import contextlib
import threading


class Proxy:
    """Forwards `port` to another port of 127.0.0.1, in a thread of its own. Safe to use from any thread."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop
        ).result()
        self.port: int = self._server.sockets[0].getsockname()[1]

    @property
    def connections(self) -> int:
        """How many clients are connected now."""
        return len(self._writers) // 2

    def stall(self) -> None:
        """From now on nothing is forwarded, either way; new connections are accepted and hear nothing."""
        self._loop.call_soon_threadsafe(self._flows.clear)

    def resume(self) -> None:
        """Forward again, what was held back first."""
        self._loop.call_soon_threadsafe(self._flows.set)

    def cut(self) -> None:
        """Drop every connection; new ones are taken."""
        self._loop.call_soon_threadsafe(self._abort)

    def close(self) -> None:
        """Drop everything and end."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        self._flows.set()
        self._abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _abort(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        mine = {writer}
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
            mine.add(far_writer)
            self._writers |= mine
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        except OSError:
            pass  # the server is away, or one side hung up
        finally:
            self._writers -= mine
            self._tasks.discard(task)
            for each in mine:
                each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward until one side ends; then end the other side too."""
        try:
            while data := await reader.read(65536):
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
        finally:
            with contextlib.suppress(OSError, RuntimeError):
                writer.close()
