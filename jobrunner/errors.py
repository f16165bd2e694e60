"""Every error jobrunner raises on purpose: one tree, a sentence each.

A message says what is wrong and what to do next, in one line. The facts a program may want are attributes.
`exit_code` is what the command line returns for it (docs/operating.md, "Exit codes").
"""

from __future__ import annotations

from datetime import timedelta
from numbers import Real
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_MOST_SHOWN = 5


class JobrunnerError(Exception):
    """Root of the tree; catch it to catch everything jobrunner raises on purpose."""

    exit_code = 1


class UsageError(JobrunnerError, ValueError):
    """The caller's input is wrong; nothing was changed."""

    exit_code = 2


class OutputFailed(JobrunnerError):
    """Standard output cannot be written: its disk is full, say."""

    def __init__(self, why: str) -> None:
        super().__init__(f"standard output cannot be written: {why}")


class InvalidWorker(UsageError):
    """A worker definition does not hold together."""

    def __init__(self, worker: str, problem: str) -> None:
        super().__init__(f"worker {worker!r}: {problem}")
        self.worker = worker
        self.problem = problem


class InvalidSchedule(UsageError):
    """An interval, a cron expression or a time zone cannot be used."""


class DependencyCycle(UsageError):
    """Workers wait for each other in a circle; `path` names them, the first repeated at the end."""

    def __init__(self, path: tuple[str, ...]) -> None:
        super().__init__(f"dependency cycle: {' -> '.join(path)}; take one of these depends_on away")
        self.path = path


class InvalidPayload(UsageError):
    """A payload is no JSON object, is too large, or does not fit the worker's handler."""


class InvalidSetting(UsageError):
    """A setting, from code, the environment or the command line, has a value that cannot be used."""


class InvalidDatabaseUrl(UsageError):
    """The database URL cannot be used: no URL at all, an unknown driver, or an unsupported database."""


class ModuleNotUsable(UsageError):
    """`jobrunner run MODULE` or `register MODULE` was given one that does not import or holds no orchestrator."""


class MissingExtra(JobrunnerError, ImportError):
    """A part of jobrunner is used whose packages are not installed; `extra` names the set of them."""

    exit_code = 2

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs packages that are not installed; run: pip install 'jobrunner[{extra}]'")
        self.extra = extra


class CannotListen(JobrunnerError):
    """The address cannot be listened on: it is in use, or not this machine's."""


class NotFound(JobrunnerError, LookupError):
    """What was named does not exist."""

    exit_code = 3


class WorkerNotFound(NotFound):
    """No worker of that name is registered in the database."""

    def __init__(self, worker: str, advice: str | None = None) -> None:
        """`advice` is what to do, if that is more than to look at the names."""
        super().__init__(f"no worker named {worker!r}; {advice or '`jobrunner admin list` shows the names'}")
        self.worker = worker
        self.is_advised = advice is not None


class NoWorkerFits(NotFound):
    """A pattern of names fits no worker."""

    def __init__(self, pattern: str) -> None:
        super().__init__(f"no worker's name fits {pattern!r}; `jobrunner admin list` shows the names")
        self.pattern = pattern


class RunNotFound(NotFound):
    """No live run has that id; or, where ended ones are looked for, too, no run at all."""

    def __init__(self, run_id: int, *, is_live: bool = True) -> None:
        live = (
            f"no live run {run_id}; `jobrunner runs` shows those there are, `jobrunner show {run_id}` how it ended if"
            " there was one"
        )
        super().__init__(live if is_live else f"no run {run_id}, neither live nor in the history")
        self.run_id = run_id


class DeadLetterNotFound(NotFound):
    """No dead letter has that id."""

    def __init__(self, letter_id: int) -> None:
        super().__init__(f"no dead letter {letter_id}; `jobrunner dead-letters list --all` shows those there are")
        self.letter_id = letter_id


class AlertRuleNotFound(NotFound):
    """No alert rule has that name."""

    def __init__(self, rule: str) -> None:
        super().__init__(f"no alert rule {rule!r}; `jobrunner alerts rules` shows those there are")
        self.rule = rule


class LimitNotFound(NotFound):
    """No named limit has that name."""

    def __init__(self, limit: str, near: str | None = None) -> None:
        """`near` is the one that was probably meant."""
        advice = "`jobrunner admin limit` shows the names" if near is None else f"did you mean {near!r}?"
        super().__init__(f"no limit named {limit!r}; {advice}")
        self.limit = limit


class NotSent(JobrunnerError):
    """A receiver of alerts did not take a message, or the channel to it cannot be used here."""


class BulkNotFound(NotFound):
    """No bulk operation has that id."""

    def __init__(self, bulk_id: int) -> None:
        super().__init__(f"no bulk operation {bulk_id}; `jobrunner bulk list` shows those there are")
        self.bulk_id = bulk_id


class WaitedTooLong(JobrunnerError):
    """A run has not ended by the time that was set for it to be waited for; it goes on."""


class Refused(JobrunnerError):
    """The request is well formed, but the state of things forbids it; nothing was changed."""


class ClaimLost(JobrunnerError):
    """A run was taken away from the node that runs its handler; what the handler was about to commit is not written."""

    def __init__(self, run_id: int) -> None:
        super().__init__(f"run {run_id} is no longer this node's; its transaction was rolled back")
        self.run_id = run_id


class FastPathRefused(JobrunnerError):
    """The fast path cannot be had: the user lacks the right TEMPORARY, or the session is not the node's own."""


class DatabaseError(JobrunnerError):
    """The database is unreachable, refuses the connection, or cannot be written."""


class DatabaseUnavailable(DatabaseError):
    """What may go away by itself: unreachable, connection lost, locked, disk full, starting up; try again later."""


class GaveWay(DatabaseUnavailable):
    """The database is there, but has ended a statement: a deadlock, a lock not had, its time was up. Try again."""


class ReadTooLong(DatabaseError):
    """A bounded read was given up: what it asks for takes the database too long."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"the answer takes the database more than {seconds:g} s; ask for less: one worker, a shorter time, or"
            " fewer rows"
        )
        self.seconds = seconds


def is_outage(error: BaseException) -> bool:
    """Say whether an error means that the database cannot be used, not only that it has ended a statement."""
    return isinstance(error, DatabaseError) and not isinstance(error, GaveWay | ReadTooLong)


class DatabaseGone(DatabaseError):
    """SQLite's file was removed, replaced or emptied under a process that uses it: it must not be used any more."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} while it was in use; put the file back or restore a backup, then start again")


class SchemaError(JobrunnerError):
    """The schema in the database is not the one this version of jobrunner needs."""

    exit_code = 4


class SchemaMissing(SchemaError):
    """The database has no jobrunner schema yet."""

    def __init__(self, file: str | None = None) -> None:
        """Of SQLite, `file` is the database's: a node makes what is missing there."""
        advice = "run `jobrunner db upgrade`"
        if file is not None:
            advice = f"`jobrunner run MODULE` makes it in {file}, or {advice}"
        super().__init__(f"the database has no jobrunner schema; {advice}")


class SchemaBehind(SchemaError):
    """The schema is older than the code."""

    def __init__(self, current: str, head: str) -> None:
        super().__init__(f"the schema is at {current}, this version needs {head}; run `jobrunner db upgrade`")
        self.current = current
        self.head = head


class SchemaAhead(SchemaError):
    """The schema is newer than the code, which therefore must not touch it."""

    def __init__(self, current: str) -> None:
        super().__init__(
            f"the schema is at {current}, which this version does not know: "
            "the database was upgraded by a newer jobrunner; install that version"
        )
        self.current = current


class SchemaDamaged(SchemaError):
    """The revision is the right one, but parts of the schema are gone; `missing` names them."""

    def __init__(self, missing: Sequence[str]) -> None:
        shown = ", ".join(missing[:_MOST_SHOWN]) + (", …" if len(missing) > _MOST_SHOWN else "")
        super().__init__(
            f"the schema is damaged: it has no {shown} (`jobrunner db check` lists all); restore it from a backup"
        )
        self.missing = tuple(missing)


class Discard(Exception):
    """Raised by a handler: give this run up now, without retry and without touching the failure streak."""

    def __init__(self, reason: object = None) -> None:
        """`reason` is kept as its text."""
        said = "discarded by its handler" if reason is None else str(reason)
        super().__init__(said)
        self.reason = said


class Snooze(Exception):
    """Raised by a handler: run the same attempt again after `seconds`, a number of them or a `timedelta`."""

    def __init__(self, seconds: float | timedelta, reason: str | None = None) -> None:
        """Note both.

        Raises:
            TypeError: `seconds` is neither a number nor a `timedelta`.
            ValueError: it is not a number (nan).
        """
        self.seconds = seconds_of(seconds)
        self.reason = reason
        super().__init__(self.seconds, reason)  # what pickle makes it anew from

    def __str__(self) -> str:
        return f"snoozed for {self.seconds:g} s" if self.reason is None else str(self.reason)


class RetryAfter(Exception):
    """Raised by a handler: this attempt failed, and the next, if any is left, is due after `seconds`."""

    def __init__(self, seconds: float | timedelta, reason: str | None = None) -> None:
        """Note both. Raises as `Snooze`."""
        self.seconds = seconds_of(seconds)
        self.reason = reason
        super().__init__(self.seconds, reason)

    def __str__(self) -> str:
        return f"asked to be retried after {self.seconds:g} s" if self.reason is None else str(self.reason)


class StopRequested(BaseException):
    """Raised by `run.check_stop()` once the run was told to stop: let it pass, and the attempt ends as it was told.

    No `Exception`, as `asyncio.CancelledError` is none: a handler's own `except Exception` does not keep it.
    """


def seconds_of(value: object) -> float:
    """Return a length of time, given as a number of seconds or a `timedelta`, in seconds.

    Raises:
        TypeError: it is neither; text is no number.
        ValueError: it is not a number (nan), or is larger than a float can be.
    """
    kind = type(value)
    if issubclass(kind, timedelta):
        return timedelta.total_seconds(value)  # type: ignore[arg-type]  # the line above says so
    if issubclass(kind, bool) or not issubclass(kind, Real):
        raise TypeError(f"a length of time is a number of seconds or a timedelta, not {kind.__name__}")
    try:
        seconds = float(value)  # type: ignore[arg-type]  # every Real has a float
    except OverflowError:
        raise ValueError("a length of time is a number of seconds, at most 1.8e308") from None
    if seconds != seconds:
        raise ValueError("a length of time is a number of seconds, not nan")
    return seconds
