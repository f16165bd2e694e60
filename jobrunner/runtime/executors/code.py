"""What an attempt sees of running code, whatever it runs in."""

from __future__ import annotations

import asyncio
import errno
import threading
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobrunner.runtime.context import RunContext
    from jobrunner.runtime.handlers import Handler
    from jobrunner.storage.runs.claims import Claim

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
    def has_returned(self) -> bool:
        """Say whether the code is known to have come to its end; `ended` may be done a moment later only."""

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


class NotStarted(Exception):
    """The node could not start the code: it has no thread, process or descriptor to spare. The run is given back."""


SHORT_OF = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOBUFS, errno.ENOSPC, errno.EDQUOT}
)
"""Errors that say what the node's machine has no more of, and nothing of the program that was to be started."""


def start_thread(body: Callable[[], None], worker: str) -> None:
    """Start a daemon thread, so that code which never ends cannot keep the process from ending.

    Raises:
        NotStarted: there is no thread to be had.
    """
    try:
        threading.Thread(target=body, name=f"jobrunner:{worker}", daemon=True).start()
    except (RuntimeError, MemoryError, OSError) as error:  # "can't start new thread"
        raise NotStarted(f"no thread: {error}") from error


class ProcessDied(Exception):
    """The process a handler ran in ended before the handler did."""


class CommandFailed(Exception):
    """A command ended with an exit code other than 0, or by a signal."""
