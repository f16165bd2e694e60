"""What operators do at the command line, for programs: looking at runs, changing workers, replaying dead letters.

All of it goes through the storage functions of the command line's verbs, so that each change is one transaction with
its row in `audit_log`. None of it needs a node in this process; where one runs, it is woken.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any

from jobrunner.errors import InvalidSetting
from jobrunner.model.reports import HistoryRow
from jobrunner.policy import definitions, switches
from jobrunner.policy.arguments import check_actor, check_id, check_limit, check_reason, check_text
from jobrunner.policy.filters import OUTCOMES
from jobrunner.runtime.clock import SystemClock
from jobrunner.runtime.groups import Groups
from jobrunner.runtime.moments import read_aware, read_length, read_span
from jobrunner.runtime.requests import read_request
from jobrunner.storage.reading import status
from jobrunner.storage.reading.one_run import history_row, read_run
from jobrunner.storage.records.history import read_history
from jobrunner.storage.runs import cancelling, dead_letters
from jobrunner.storage.workers import operations

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from typing import TypeVar

    from jobrunner.model.reports import RunInfo
    from jobrunner.model.worker import WorkerConfig, WorkerState
    from jobrunner.storage.database.database import Database

    T = TypeVar("T")

API = "api"
"""The actor of what a program does, unless it says another."""
_FIRST_LOOK_SECONDS, _LONGEST_LOOK_SECONDS = 0.02, 1.0


class Operator(Groups):
    """The part of `WorkerOrchestrator` that sees runs and changes workers.

    `actor` is who does it, for the audit log.
    """

    _state: str

    async def get_run(self, run_id: int) -> RunInfo:
        """Return a run, live or ended.

        Raises:
            RunNotFound: there is no such run, or its history was pruned.
            InvalidSetting: `run_id` is no whole number.
        """
        check_id("run_id", run_id)
        async with self._database() as db, db.peek() as conn:
            return await read_run(conn, run_id)

    async def wait_for_run(self, run_id: int, timeout: float | timedelta | str | None = None) -> RunInfo:  # noqa: ASYNC109 - it ends no statement halfway
        """Wait until a run has ended, and return it: with its result, or its error.

        It is looked for again and again, at least once a second. `timeout` is in seconds, a `timedelta`, or text such
        as `5m`; with None there is no end to the wait.

        Raises:
            TimeoutError: it has not ended by then.
            RunNotFound: there is no such run, or its history was pruned.
            InvalidSetting: `timeout` is no length of time, or `run_id` no whole number.
            DatabaseError: the database cannot be used any more.
        """
        clock = SystemClock()  # what people wait is real time, whatever the node's clock
        seconds = None if timeout is None else read_length("timeout", timeout)
        began, pause = clock.monotonic(), _FIRST_LOOK_SECONDS
        while True:
            run = await self.get_run(run_id)
            if run.has_ended:
                return run
            left = pause if seconds is None else seconds - (clock.monotonic() - began)
            if left <= 0:
                raise TimeoutError(f"run {run_id} of {run.worker} is still {run.state} after {seconds:g} s")
            await clock.sleep(min(pause, left))
            pause = min(pause * 1.5, _LONGEST_LOOK_SECONDS)

    async def history(
        self,
        worker: str | None = None,
        *,
        outcome: str | Iterable[str] | None = None,
        since: datetime | timedelta | str | None = None,
        until: datetime | timedelta | str | None = None,
        run_id: int | None = None,
        limit: int = 50,
        before: HistoryRow | None = None,
    ) -> list[HistoryRow]:
        """Return what ended, the newest first, at most `limit` rows; of one worker or run, if given.

        `outcome` is one of those of `jobrunner history --outcome`, or several. `since` and `until` are an aware time, a
        `timedelta` (so long ago), or text as there: `2h`, `2026-03-01T12:00Z`, or `03:00`, the last time that this
        machine's clock showed it. For the next page, give the last row of this one as `before`.

        Raises:
            WorkerNotFound: there is no trace of a worker of that name.
            InvalidSetting: an argument cannot be used.
        """
        first, last = read_span(since, until, self._clock.now())
        narrowed: dict[str, Any] = {
            "worker": None if worker is None else check_text("worker", worker),
            "outcome": _outcomes(outcome),
            "since": first,
            "until": last,
            "run_id": None if run_id is None else check_id("run_id", run_id),
            "before": _place(before),
        }
        check_limit(limit)
        async with self._database() as db, db.peek() as conn:
            if worker is not None:
                await status.require_trace(conn, worker)
            return [history_row(row) for row in await read_history(conn, **narrowed, limit=limit)]

    async def cancel_run(self, run_id: int, reason: str | None = None, *, actor: str = API) -> RunInfo:
        """Cancel a run: one that waits has ended when this returns, one that runs was told to stop.

        Raises:
            RunNotFound: there is no such live run.
            InvalidSetting: an argument cannot be used.
        """
        check_id("run_id", run_id)
        check_reason(reason)
        who = check_actor("actor", actor)

        async def cancel(db: Database) -> RunInfo:
            await cancelling.cancel(db, run_id, self._clock.now(), who, reason)
            async with db.peek() as conn:
                return await read_run(conn, run_id)

        return await self._change(cancel)

    async def replay(self, letter_id: int, payload: dict[str, Any] | None = None, *, actor: str = API) -> int:
        """Make a new run of a dead letter, with another `payload` if one is given, and close it; return the run's id.

        Raises:
            DeadLetterNotFound: there is no such letter.
            Refused: it is not open any more, its worker is gone, or a waiting run has its key.
            InvalidPayload: the payload is no JSON object, too large, or does not fit the handler.
            InvalidSetting: another argument cannot be used.
        """
        check_id("letter_id", letter_id)
        who = check_actor("actor", actor)

        async def replay(db: Database) -> int:
            now, edited = self._clock.now(), payload
            if payload is not None:
                async with db.peek() as conn:
                    worker = (await dead_letters.read_letter(conn, letter_id))["worker"]
                edited = read_request(worker, payload, now, self._code(worker)).payload
            chosen = dead_letters.Chosen(ids=(letter_id,))
            (resolved,) = (await dead_letters.replay(db, chosen, now, who, payload=edited)).resolved
            return int(resolved.run_id or 0)

        return await self._change(replay)

    async def discard(self, letter_id: int, *, actor: str = API) -> None:
        """Close a dead letter without running anything; it is kept.

        Raises:
            DeadLetterNotFound: there is no such letter.
            Refused: it is not open any more.
            InvalidSetting: an argument cannot be used.
        """
        chosen = dead_letters.Chosen(ids=(check_id("letter_id", letter_id),))
        who = check_actor("actor", actor)
        await self._change(lambda db: dead_letters.discard(db, chosen, self._clock.now(), who))

    async def enable_worker(self, name: str, reason: str | None = None, *, actor: str = API) -> WorkerState:
        """Enable a worker, zero its streak and close its circuit; the audit log keeps the reason.

        Raises:
            WorkerNotFound: the database knows no such worker.
            InvalidSetting: an argument cannot be used.
        """
        who = _checked(name, actor)
        check_reason(reason)
        return await self._change(lambda db: operations.enable(db, name, self._clock.now(), who, reason))

    async def disable_worker(self, name: str, reason: str | None = None, *, actor: str = API) -> WorkerState:
        """Disable a worker: no claim commits after this has. Raises as `enable_worker`."""
        who = _checked(name, actor)
        check_reason(reason)
        return await self._change(lambda db: operations.disable(db, name, self._clock.now(), who, reason))

    async def pause_worker(
        self,
        name: str,
        duration: float | timedelta | str | None = None,
        *,
        until: datetime | None = None,
        reason: str | None = None,
        actor: str = API,
    ) -> WorkerState:
        """Pause a worker for a `duration` (seconds, a `timedelta`, or text such as `2h`), or `until` an aware time.

        With neither it is paused until it is resumed.

        Raises:
            WorkerNotFound: the database knows no such worker.
            InvalidSetting: both are given, or the pause would not end in the future, or an argument cannot be used.
        """
        who = _checked(name, actor)
        check_reason(reason)
        now, is_length = self._clock.now(), duration is not None
        seconds = read_length("duration", duration) if is_length else None
        end = switches.end_of_pause(now, seconds, None if until is None else read_aware("until", until))
        return await self._change(lambda db: operations.pause(db, name, now, who, end, reason, is_length=is_length))

    async def resume_worker(self, name: str, reason: str | None = None, *, actor: str = API) -> WorkerState:
        """End a worker's pause now; the audit log keeps the reason. Raises as `enable_worker`."""
        who = _checked(name, actor)
        check_reason(reason)
        return await self._change(lambda db: operations.resume(db, name, self._clock.now(), who, reason))

    async def set_override(self, name: str, *, actor: str = API, **values: Any) -> WorkerConfig:
        """Lay values over a worker's definition, which no deploy undoes; return the definition that holds now.

        The names are those of `jobrunner admin set`, such as `interval_seconds`; lengths of time may also be a
        `timedelta` or text such as `5m`.

        Raises:
            WorkerNotFound: the database knows no such worker.
            InvalidWorker: a field cannot be set, or the result does not hold together; nothing was changed.
            InvalidSetting: another argument cannot be used.
        """
        who = _checked(name, actor)
        plain = {field: _plain(name, field, value) for field, value in values.items()}
        return (await self._change(lambda db: operations.set_values(db, name, plain, self._clock.now(), who))).after

    async def unset_override(self, name: str, *fields: str, actor: str = API) -> WorkerConfig:
        """Take overrides away, so that what the code says holds again; return the definition that holds now.

        Raises:
            WorkerNotFound: the database knows no such worker.
            Refused: one of the fields has no override; nothing was changed.
            InvalidWorker: a field cannot be set at all.
            InvalidSetting: another argument cannot be used.
        """
        who = _checked(name, actor)
        distinct = list(dict.fromkeys(check_text("a field", field) for field in fields))
        now = self._clock.now()
        return (await self._change(lambda db: operations.unset_values(db, name, distinct, now, who))).after

    async def get_status(self) -> dict[str, Any]:
        """Return `state` of this node, the number of `workers`, the names `running` here, and `worker_states`."""
        async with self._database() as db, db.peek() as conn:
            rows = await status.read_status(conn)
        running = [] if self._node is None else sorted(attempt.claim.run.worker for attempt in self._node.held.values())
        states = {
            row["name"]: {
                "enabled": bool(row["is_enabled"]),
                "running": bool(row["is_running"]),
                "failures": row["consecutive_failures"],
                "last_run": row["last_run_at"],
                "last_error": row["last_error"],
            }
            for row in rows
        }
        return {"state": self._state, "workers": len(states), "running": running, "worker_states": states}

    async def _change(self, change: Callable[[Database], Awaitable[T]]) -> T:
        async with self._database() as db:
            changed = await change(db)
        if self._node is not None:
            self._node.wake()
        return changed


def _checked(name: str, actor: str) -> str:
    """Check what every change of a worker is told; return who acts."""
    check_text("name", name)
    return check_actor("actor", actor)


def _plain(worker: str, field: str, value: Any) -> Any:
    """Return a value as a definition's document holds it."""
    if field == "priority":
        return int(definitions.parse_priority(worker, value))
    if field.endswith("_seconds") and isinstance(value, str | timedelta):
        return read_length(field, value)
    return str(value) if isinstance(value, Enum) else value


def _outcomes(given: str | Iterable[str] | None) -> tuple[str, ...] | None:
    if given is None:
        return None
    try:
        several = (given,) if isinstance(given, str) else tuple(given)
    except TypeError:
        raise InvalidSetting(f"outcome must be text, or several, not {given!r}") from None
    if not several:
        raise InvalidSetting("outcome names none; leave it out for all")
    for each in several:
        if each not in OUTCOMES:
            raise InvalidSetting(f"outcome {each!r} is none of {', '.join(OUTCOMES)}")
    return tuple(map(str, several))


def _place(before: HistoryRow | None) -> dict[str, Any] | None:
    if before is not None and not isinstance(before, HistoryRow):
        raise InvalidSetting(f"before must be the last row of a page, a HistoryRow, not {before!r}")
    return None if before is None else {"id": before.id, "finished_at": before.finished_at}
