"""What an attempt sees of running code, whatever it runs in."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobrunner.runtime.context import RunContext
    from jobrunner.runtime.handlers import Handler
    from jobrunner.storage.claims import Claim

LONGEST_GRACE_SECONDS = 5.0
"""What a process or command is given between SIGTERM and SIGKILL; other code is given less."""

Ended = tuple[Any, BaseException | None]
"""What the code returned and None, or None and what it raised."""


def came_of(ended: asyncio.Future[Ended]) -> Ended:
    """Return what came of code that has ended; a task cancelled before its first step never ran, and says so."""
    return (None, asyncio.CancelledError()) if ended.cancelled() else ended.result()


class Code(Protocol):
    """A handler's code, started."""

    ended: asyncio.Future[Ended]
    """Done when, and only when, the code has ended: nothing of it runs any more. `came_of` reads it."""
    started: asyncio.Future[None] | None
    """Done when the handler's code is called; None if it was called at once."""

    @property
    def can_be_killed(self) -> bool:
        """Say whether `kill` ends it."""

    @property
    def grace_seconds(self) -> float:
        """How long it may take to end once asked, before it is killed, or shown as `stopping` if it cannot be."""

    def ask_to_stop(self) -> None:
        """Ask the code to end: cancel it, or send SIGTERM."""

    def kill(self) -> None:
        """End it for good, where that can be done."""


class Starter(Protocol):
    """What starts the code of a claim: a node's `Launcher`, or a simulation's."""

    def start(
        self, claim: Claim, handler: Handler | None, context: RunContext, arguments: Callable[[], dict[str, Any]], /
    ) -> Code:
        """Start it; `handler` is None for a command worker. `arguments` raises if the payload does not fit."""


class ProcessDied(Exception):
    """The process a handler ran in ended before the handler did."""


class CommandFailed(Exception):
    """A command ended with an exit code other than 0, or by a signal."""
