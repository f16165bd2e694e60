"""Telling open pages that something has changed, over server-sent events.

One look at the database serves all who listen, and nobody looks while nobody listens. A look is one statement
(`read_pulse`), every two seconds. What open pages then ask anew is paid for: each second gives a statement of credit,
up to twenty, and while that is used up nobody looks, for thirty seconds at most. So what happens now and then is seen
at once, and all that watch the same page cost the database about a statement a second, however many they are and
however busy it is. What somebody does here is told at once.

A browser opens no more than six connections to a server, and a stream takes one. So each browser has three at most
(a cookie tells browsers apart); further tabs are answered 204 and ask again by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from starlette.responses import Response, StreamingResponse

from jobrunner.errors import JobrunnerError
from jobrunner.storage.reading.pulse import Pulse, read_pulse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from jobrunner.web.desk import Desk

MOST_STREAMS = 3
LOOK_SECONDS, SLOWEST_SECONDS = 2.0, 30.0
MOST_CREDIT = 20.0
"""Statements."""
ALIVE_SECONDS = 15.0
"""So often something is said to who listens; pages are told to look again, too, since some things change by time."""
COOKIE = "jobrunner_browser"


class Stream:
    """The route, and what it knows of changes, for each event loop that asks."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._hubs: WeakKeyDictionary[asyncio.AbstractEventLoop, _Hub] = WeakKeyDictionary()

    @property
    def generation(self) -> int | None:
        """The number of the last change; None while nobody listens, so that nobody looks."""
        hub = self._hubs.get(asyncio.get_running_loop())
        return hub.generation if hub is not None and hub.listeners else None

    def wake(self) -> None:
        """Tell all who listen, on every loop, that something was changed here."""
        for loop, hub in list(self._hubs.items()):
            if loop.is_running():
                loop.call_soon_threadsafe(hub.change)

    def costs(self, statements: int) -> None:
        """Take note of statements that were asked for pages that are open."""
        hub = self._hubs.get(asyncio.get_running_loop())
        if hub is not None:
            hub.credit -= statements

    def end(self) -> None:
        """End all streams, since the server does."""
        for loop, hub in list(self._hubs.items()):
            hub.is_ended = True
            if loop.is_running():
                loop.call_soon_threadsafe(hub.change)

    async def show(self, request: Request) -> Response:
        """Answer with the stream, or with 204 where the browser has enough of them."""
        hub = self._hubs.setdefault(asyncio.get_running_loop(), _Hub(self._desk))
        browser = request.cookies.get(COOKIE) or secrets.token_hex(8)
        if hub.streams.get(browser, 0) >= MOST_STREAMS:
            return Response(status_code=204)
        response = _Events(hub.listen(browser), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        if COOKIE not in request.cookies:
            response.set_cookie(COOKIE, browser, httponly=True, samesite="strict")
        return response


class _Events(StreamingResponse):
    """A stream that ends when its reader goes, also while there is nothing to say."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Send what there is until the reader has gone."""

        async def gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        sending = asyncio.ensure_future(self.stream_response(send))
        leaving = asyncio.ensure_future(gone())
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in (sending, leaving):
                each.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)


class _Hub:
    """Of one event loop: who listens, and the task that looks for them."""

    def __init__(self, desk: Desk) -> None:
        self.generation = 0
        self.credit = MOST_CREDIT
        self.is_ended = False
        self.listeners: set[asyncio.Event] = set()
        self.streams: dict[str, int] = {}
        self._desk = desk
        self._is_lost = False
        self._last: Pulse | None = None
        self._looking: asyncio.Task[None] | None = None

    def change(self) -> None:
        """Tell all who listen."""
        self.generation += 1
        for changed in self.listeners:
            changed.set()

    async def listen(self, browser: str) -> AsyncIterator[bytes]:
        """Yield the events of one stream, until whoever listens goes."""
        changed = asyncio.Event()
        self.listeners.add(changed)
        self.streams[browser] = self.streams.get(browser, 0) + 1
        if self._looking is None:
            self._looking = asyncio.create_task(self._look_on())
        try:
            yield b"retry: 2000\n\n"
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ALIVE_SECONDS):
                        await changed.wait()
                changed.clear()
                if self.is_ended:
                    break
                yield self._said()
        finally:
            self.listeners.discard(changed)
            self.streams[browser] -= 1
            if not self.streams[browser]:
                del self.streams[browser]
            if not self.listeners and self._looking is not None:
                self._looking.cancel()
                self._looking = None

    def _said(self) -> bytes:
        return f"event: {'lost' if self._is_lost else 'changed'}\ndata: {self.generation}\n\n".encode()

    async def _look_on(self) -> None:
        clock = self._desk.orchestrator.clock
        looked = paid = clock.monotonic()
        while True:
            await clock.sleep(LOOK_SECONDS / 2)
            now = clock.monotonic()
            self.credit = min(self.credit + now - paid, MOST_CREDIT)
            paid = now
            if now - looked >= (LOOK_SECONDS if self.credit > 0 else SLOWEST_SECONDS):
                looked = now
                self.credit -= 1
                await self._look()

    async def _look(self) -> None:
        try:
            async with self._desk.database() as db, db.peek() as conn:  # one statement needs no transaction
                pulse = await read_pulse(conn)
        except JobrunnerError:
            was_lost, self._is_lost, self._last = self._is_lost, True, None
            if not was_lost:
                self.change()
            return
        self._is_lost = False
        if pulse != self._last:
            self._last = pulse
            self.change()
