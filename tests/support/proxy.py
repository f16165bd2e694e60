"""A TCP proxy on loopback that can forget: it goes on reading, and so acknowledging, and forwards nothing any more.

That is what a connection looks like whose other half died behind a load balancer, a NAT or a sleeping server: neither
end closes, and TCP finds nothing wrong. Connections are told apart by what the client has said on them.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

from sqlalchemy.engine import make_url


class _Link:
    """One connection through the proxy."""

    def __init__(self, *, is_stalled: bool) -> None:
        self.is_stalled = is_stalled
        self.said = b""


class StallingProxy:
    """Forwards to the server of a URL until told to stall. Runs in a thread of its own; end it with `close`."""

    def __init__(self, url: str) -> None:
        self._target = make_url(url)
        self._links: list[_Link] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stalls_new = False
        self._trap: tuple[bytes, bool] | None = None
        self.sprung = threading.Event()
        """A connection has stalled at what `stall_at` waits for."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._do(asyncio.start_server(self._serve, "127.0.0.1", 0))
        port = self._server.sockets[0].getsockname()[1]
        self.url = self._target.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)

    def stall(self) -> None:
        """Stall every connection there is and every one to come, until `resume`."""
        self._stalls_new = True
        self._stall_those("")

    def stall_those_that_said(self, words: str) -> int:
        """Stall, for good, the connections on which the client has said `words`; return how many."""
        return self._stall_those(words)

    def _stall_those(self, words: str) -> int:
        chosen = [link for link in self._links if words.encode() in link.said and not link.is_stalled]
        for link in chosen:
            link.is_stalled = True
        return len(chosen)

    def stall_at(self, words: str, *, forward: bool) -> None:
        """Stall the connection on which the client next says `words`, before or after these have been forwarded."""
        self.sprung.clear()
        self._trap = (words.encode(), forward)

    def resume(self) -> None:
        """Forward what comes on new connections; those that have stalled stay so."""
        self._stalls_new = False

    def close(self) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        for _ in range(3):  # also what has just been accepted: a driver asks on a new connection for a cancel
            await asyncio.sleep(0.02)
            for task in list(self._tasks):
                task.cancel()
            if self._tasks:
                await asyncio.wait(list(self._tasks))

    def _do(self, work: Any) -> Any:
        result: Future[Any] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return result.result(30)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(is_stalled=self._stalls_new)
        self._links.append(link)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        writers = [writer]
        try:
            with contextlib.suppress(OSError):
                there_reader, there = await asyncio.open_connection(self._target.host, self._target.port or 5432)
                writers.append(there)
                out = asyncio.ensure_future(self._pump(reader, there, link, is_client=True))
                back = asyncio.ensure_future(self._pump(there_reader, writer, link, is_client=False))
                try:
                    await asyncio.wait([out, back], return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for pump in (out, back):
                        pump.cancel()
                    await asyncio.wait([out, back])
        except asyncio.CancelledError:  # the proxy is closed
            pass
        finally:
            for each in writers:
                each.transport.abort()
            self._links.remove(link)
            self._tasks.discard(task)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: _Link, *, is_client: bool
    ) -> None:
        while chunk := await reader.read(65536):
            is_trapped = is_client and self._trap is not None and self._trap[0] in chunk
            if is_client:
                link.said += chunk
            if is_trapped and not self._is_forwarding_trapped():
                link.is_stalled = True
            if not link.is_stalled:
                writer.write(chunk)
                await writer.drain()
            if is_trapped:
                link.is_stalled = True  # before the answer can be here
                self._trap = None
                self.sprung.set()

    def _is_forwarding_trapped(self) -> bool:
        return self._trap is not None and self._trap[1]


@contextlib.contextmanager
def stalling(url: str) -> Iterator[StallingProxy]:
    """A proxy before the server of `url` for the length of a block."""
    proxy = StallingProxy(url)
    try:
        yield proxy
    finally:
        proxy.close()
