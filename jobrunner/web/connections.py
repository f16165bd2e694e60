"""Connections of a server of ours: none may keep what it asks for to itself, nor keep the others out.

uvicorn waits for a request for as long as its sender likes, and counts whoever has only connected as one who asks: a
few hundred connections that say nothing would silence the probes, too. Here a request has a deadline to arrive by: its
head, and its body after that. Whoever does not take the answer is left after a while. Beyond so many connections the
one that has kept us waiting longest makes room. How many requests are answered at a time is the application's to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import asyncio

ARRIVAL_SECONDS = 10.0
"""For the head of a request, and again for its body."""
TAKING_SECONDS = 30.0
"""So long may an answer wait for a client that does not read."""
MOST_CONNECTIONS = 500


class Connection(H11Protocol):
    """One connection; see the module."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._awaited: tuple[object, object] | None = None
        self._since = 0.0
        self._deadline: asyncio.TimerHandle | None = None
        self._taking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Wait for the first request; where there are too many connections, one makes room."""
        super().connection_made(transport)
        self._watch()
        if len(self.connections) > MOST_CONNECTIONS:
            silent = [each for each in self.connections if isinstance(each, Connection) and each._awaited is not None]
            min(silent, key=lambda each: each._since).transport.abort()  # this one is among them

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        """Wait until the client has read."""
        super().pause_writing()
        self._taking = self._taking or self.loop.call_later(TAKING_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on: the client has read."""
        super().resume_writing()
        _cancel(self._taking)
        self._taking = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        super().connection_lost(exc)
        self._awaited = None
        _cancel(self._deadline)
        _cancel(self._taking)

    def _watch(self) -> None:
        """Set the deadline for the part that is awaited now; bytes that do not complete it do not move the deadline."""
        state = self.conn.their_state
        awaited = (state, self.cycle) if state in {h11.IDLE, h11.SEND_BODY} else None
        if awaited == self._awaited or self.transport.is_closing():
            return
        self._awaited = awaited
        _cancel(self._deadline)
        if awaited is not None:
            self._since = self.loop.time()
            self._deadline = self.loop.call_later(ARRIVAL_SECONDS, self._give_up)

    def _give_up(self) -> None:
        if self.flow.read_paused:  # we do not read yet: the delay is ours
            self._deadline = self.loop.call_later(ARRIVAL_SECONDS, self._give_up)
        else:
            self.transport.abort()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
