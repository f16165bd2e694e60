"""What happens in a node, as values: the code that does it emits them, subscribers log and count them."""

from __future__ import annotations

import traceback
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobrunner.model.record import record

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from jobrunner.model.run import Outcome, Run
    from jobrunner.model.worker import WorkerState
    from jobrunner.telemetry.tracing import TraceIds


@dataclass(frozen=True, slots=True)
class NodeStarted:
    """A node ticks."""

    node_id: str
    workers: int
    database: str


@dataclass(frozen=True, slots=True)
class NodeDraining:
    """A node claims nothing more; `running` runs are given `seconds` to end."""

    node_id: str
    running: int
    seconds: float


@dataclass(frozen=True, slots=True)
class NodeStopped:
    """A node has left; `left_behind` runs' code had not ended."""

    node_id: str
    left_behind: int


@record
class RunStarted:
    """An attempt's code starts. `ping` is the worker's URL that is told of it, if it has one.

    `trace` is its span's, or its trigger's; None where nothing is traced.
    """

    run: Run
    ping: str | None = None
    trace: TraceIds | None = None


@record
class RunEnded:
    """An attempt's end is written. `ends_run` is None when the run waits for another attempt, due at `retry_at`.

    `timezone` is the worker's; `trace` is as for `RunStarted`.
    """

    run: Run
    outcome: Outcome
    ends_run: str | None
    retry_at: datetime | None
    timezone: str = "UTC"
    trace: TraceIds | None = None


@dataclass(frozen=True, slots=True)
class RunTakenAway:
    """An attempt ended here, but its claim was no longer this node's: nothing was written."""

    run: Run


@dataclass(frozen=True, slots=True)
class CircuitOpened:
    """A worker was disabled after failing too often in a row."""

    state: WorkerState


@dataclass(frozen=True, slots=True)
class DatabaseLost:
    """The database cannot be used; said once for each outage."""

    error: str


@dataclass(frozen=True, slots=True)
class DatabaseBack:
    """The database can be used again, after `seconds`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class NodeCrashed:
    """A part of this node failed in a way it does not expect; the node stops."""

    node_id: str
    error: BaseException


@dataclass(frozen=True, slots=True)
class NodeLost:
    """Another node was declared lost; its runs are rescued."""

    node_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class LoopBlocked:
    """A node's event loop has been blocked for so many seconds, by the code of one of these workers."""

    seconds: float
    workers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Timed:
    """How long a part of the node's own work took: `what` is `tick`, `claim` or `finish`, `seconds` on its clock."""

    what: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Warned:
    """Something an operator should know, in a sentence."""

    message: str


Event = (
    NodeStarted
    | NodeDraining
    | NodeStopped
    | RunStarted
    | RunEnded
    | RunTakenAway
    | CircuitOpened
    | DatabaseLost
    | DatabaseBack
    | NodeCrashed
    | NodeLost
    | LoopBlocked
    | Timed
    | Warned
)


class Events:
    """Hands each event to every subscriber, in order. A subscriber must not block.

    One that raises is told of once, on standard error: what it was told of goes on.
    """

    def __init__(self) -> None:
        self._subscribers: list[Callable[[Event], None]] = []
        self._is_told = False

    def subscribe(self, subscriber: Callable[[Event], None]) -> None:
        """Add a subscriber; it may be called from any thread of the node."""
        self._subscribers.append(subscriber)

    def unsubscribe(self, subscriber: Callable[[Event], None]) -> None:
        """Take a subscriber away, if it is there."""
        with suppress(ValueError):
            self._subscribers.remove(subscriber)

    def emit(self, event: Event) -> None:
        """Hand `event` to everyone."""
        for subscriber in self._subscribers:
            try:
                subscriber(event)
            except Exception:  # noqa: BLE001 - a program's own, or its logging handlers
                self._tell_once()

    def _tell_once(self) -> None:
        is_told, self._is_told = self._is_told, True
        if not is_told:
            with suppress(Exception):  # there may be no standard error
                traceback.print_exc()
