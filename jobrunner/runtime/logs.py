"""What the code of a run says through `logging`, kept in the run's output too (`capture_logs`).

The program's loggers, levels and handlers stay as they are, also those it sets up later: nothing is added to the root
logger, whose first handler would turn off `basicConfig` and the warnings that Python shows where nobody has set up
logging. Instead each record that has passed its logger's level and filters is looked at on its way to the handlers. A
context variable says whose it is: code inherits it by `await`, by tasks and by `asyncio.to_thread`. A thread that a
handler starts with `threading.Thread` inherits no context, so what it logs goes to the program's handlers alone.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_OURS = "jobrunner"  # what a node says of its runs is in the history already
_format = logging.Formatter("%(levelname)s %(name)s: %(message)s").format


class Said(Protocol):
    """Where a run's lines go."""

    def write(self, line: str) -> Any:
        """Add a line."""


_said: ContextVar[tuple[Said, frozenset[int]] | None] = ContextVar("jobrunner_said", default=None)


@contextlib.contextmanager
def said_to(output: Said | None, descriptors: frozenset[int] = frozenset()) -> Iterator[None]:
    """Inside the block, and in the code that is started in it, keep records in `output`; None: keep none.

    `descriptors` are files of which `output` has everything already: what a program's handler writes there is not kept
    twice.
    """
    token = _said.set(None if output is None else (output, descriptors))
    try:
        yield
    finally:
        _said.reset(token)


def is_kept() -> bool:
    """Say whether records that are made here are kept."""
    return _said.get() is not None


def see_all() -> None:
    """See every record of this process from now on; to be called once a worker wants its own kept."""
    call = logging.Logger.callHandlers
    if not hasattr(call, "is_seen_by_jobrunner"):
        logging.Logger.callHandlers = _seen(call)  # type: ignore[method-assign]  # see above


def _seen(call: Callable[[logging.Logger, logging.LogRecord], None]) -> Any:
    @functools.wraps(call)
    def call_handlers(self: logging.Logger, record: logging.LogRecord) -> None:
        said = _said.get()
        if said is not None and record.name != _OURS and not _is_written_to(said[1], self, record):
            _keep(said[0], record)
        call(self, record)

    call_handlers.is_seen_by_jobrunner = True  # type: ignore[attr-defined]  # so that it is done once
    return call_handlers


def _keep(output: Said, record: logging.LogRecord) -> None:
    """Write a record down; on a copy, since a formatter leaves its text of the error in it for those that follow."""
    try:
        mine = copy.copy(record)
        mine.exc_text = None
        line = _format(mine)
    except Exception as error:  # noqa: BLE001 - the arguments do not fit the message, or cannot say what they are
        line = f"{record.levelname} {record.name}: <a record that cannot be written: {type(error).__name__}>"
    output.write(line)


def _is_written_to(descriptors: frozenset[int], logger: logging.Logger, record: logging.LogRecord) -> bool:
    """Say whether one of the program's handlers writes the record there."""
    if not descriptors:
        return False
    handlers: list[logging.Handler] = []
    at: logging.Logger | None = logger
    while at is not None:
        handlers += at.handlers
        at = at.parent if at.propagate else None
    if not handlers and logging.lastResort is not None:
        handlers.append(logging.lastResort)
    return any(record.levelno >= handler.level and _descriptor(handler) in descriptors for handler in handlers)


def _descriptor(handler: logging.Handler) -> int | None:
    try:
        return int(handler.stream.fileno())  # type: ignore[attr-defined]  # most have one
    except Exception:  # noqa: BLE001 - it has no stream, or one that is no file
        return None
