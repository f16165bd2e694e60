"""What a handler is given: its run."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from jobrunner.errors import Refused, StopRequested
from jobrunner.model.flow import Before
from jobrunner.runtime.output import Output
from jobrunner.storage.records.history import storable

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime

    from jobrunner.model.run import Run
    from jobrunner.storage.runs.finishes import Finished
    from jobrunner.storage.runs.transaction import AsyncConnection

MAX_MESSAGE_BYTES = 1000


def shown(message: object) -> str:
    """Return what an object says of itself, as `str` and nothing else; that it cannot say it fails no attempt."""
    try:
        return str.__str__(str(message))
    except Exception:  # noqa: BLE001 - a broken __str__; but what ends the code (a signal's SystemExit) ends it
        return f"<an object of type {type(message).__name__} that cannot say what it is>"


def _share(fraction: object) -> float:
    """Return a share of the work as a float and nothing else. Raises `ValueError` if it is no number from 0 to 1."""
    try:
        number = math.nan if isinstance(fraction, str | bytes | bytearray) else float(fraction)  # type: ignore[arg-type]  # asked here
    except Exception:  # noqa: BLE001 - whatever its own conversion raises, it is no number
        number = math.nan
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"progress is a number from 0 to 1, not {shown(fraction)}")
    return number


class RunContext:
    """One attempt at a run, as its handler sees it. Safe to use from a thread."""

    def __init__(self, run: Run, deadline: datetime, before: Before | None = None) -> None:
        self._run = run
        self.before = before or Before()  # of a step of a flow: what is known of those before it
        self._deadline = deadline
        self._is_asked_to_stop = False
        self._payload: dict[str, Any] | None = None
        self._output = Output()
        self.latest_progress: dict[str, Any] | None = None
        self.result: Any = None
        self.finished: Finished | None = None  # once the run has ended in its handler's own transaction
        self.open_transaction: Callable[[], AbstractAsyncContextManager[AsyncConnection]] | None = None
        self.trace_context: str | None = None  # of the attempt's own span: what it hands on to a process
        self.result_remark: str | None = None  # why a result is not kept, where another process has looked at it

    @property
    def output(self) -> Output:
        """What the attempt has said so far; for the runtime."""
        return self._output

    @property
    def worker(self) -> str:
        """The worker's name."""
        return self._run.worker

    @property
    def id(self) -> int:
        """The run's id in `runs`, and later `run_id` in `run_history`."""
        return self._run.id

    @property
    def attempt(self) -> int:
        """Which try this is, from 1."""
        return self._run.attempt

    @property
    def payload(self) -> dict[str, Any]:
        """The run's payload, a JSON object. The attempt's own: changes to it are nobody else's, and not stored."""
        if self._payload is None:
            self._payload = json.loads(json.dumps(self._run.payload))
        return self._payload

    @property
    def batch_id(self) -> int | None:
        """The batch that the run is a member of; `trigger_worker(..., batch=run.batch_id)` adds another."""
        return self._run.batch_id

    @property
    def step(self) -> str | None:
        """The run's name in its flow."""
        return self._run.step

    @property
    def results(self) -> dict[str, Any]:
        """Of a step of a flow: what those that it waited for have returned, by name; of those that succeeded."""
        return self.before.results

    @property
    def outcomes(self) -> dict[str, str]:
        """How those ended, by name: `succeeded`, `exhausted`, `discarded` or `cancelled`."""
        return self.before.outcomes

    @property
    def scheduled_for(self) -> datetime:
        """The occurrence's own time, UTC; the same for every attempt."""
        return self._run.scheduled_for

    @property
    def deadline(self) -> datetime:
        """When the attempt times out, UTC."""
        return self._deadline

    @property
    def fence(self) -> int:
        """The claim's number, larger for every later claim of this worker: for what must refuse stale writers."""
        return self._run.fence or 0

    @property
    def should_stop(self) -> bool:
        """True once the run was told to stop; code in a thread cannot be stopped otherwise.

        Whatever it does then, the attempt ends as it was told: `cancelled`, `timed_out`, or at a drain `interrupted`.
        What it returns is kept as the result.
        """
        return self._is_asked_to_stop

    def check_stop(self) -> None:
        """Go on, unless the run was told to stop.

        Raises:
            StopRequested: it was. Let it pass: the attempt ends as `should_stop` says.
        """
        if self.should_stop:
            raise StopRequested("the run was told to stop")

    def log(self, message: object) -> None:
        """Add a line to the attempt's output: the last 64 KiB are kept in `run_history.output`.

        Until the attempt ends they show in `runs.output`, written at most once a second.
        """
        self.output.write(shown(message))

    def progress(self, fraction: float, message: str = "") -> None:
        """Show how far the work is: `fraction` from 0 to 1. Written to `runs.progress` at most once a second.

        Raises:
            ValueError: the fraction is no number from 0 to 1.
        """
        self.latest_progress = {"fraction": _share(fraction), "message": storable(shown(message), MAX_MESSAGE_BYTES)}

    def set_result(self, value: Any) -> None:
        """Set what is kept in `run_history.result`: JSON, at most 64 KiB. What the handler returns replaces it."""
        self.result = value

    def transaction(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """End the run, as succeeded, in the same transaction as the handler's own writes to jobrunner's database.

            async with run.transaction() as connection:  # a SQLAlchemy AsyncConnection
                await connection.execute(...)
                run.set_result({"rows": 1})

        Both are committed when the block is left, or neither: an error rolls back, and the attempt ends with it as any
        other. Make it the last thing the handler does. For `async def` handlers on the loop. On SQLite the database's
        write lock is held for the whole block: be short, and write through `connection` only.

        Raises:
            ClaimLost: at the beginning or the end of the block: the run is no longer this node's. Nothing is written.
            Refused: the handler runs in a thread or process, or the run has ended already.
        """
        if self.open_transaction is None:
            raise Refused("run.transaction() needs an async def handler that runs on the node's loop (not a thread)")
        return self.open_transaction()

    def request_stop(self) -> None:
        """Set `should_stop`; for the runtime."""
        self._is_asked_to_stop = True
