"""A node for tests of many: `python -m tests.support.node URL --scenario=… --lease=…`.

Its handlers note what they do in the file of `--notes`, a line a moment: start or end, run, fence, process, and the
machine's monotonic clock, which all processes share. `--elsewhere` gives the node a boot id of its own, as if it were
another machine's: then others cannot see that its process has ended, and must judge it by its beats. `--die-at` makes
it kill itself with SIGKILL at one of `POINTS`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jobrunner.runtime.identity as identities
from jobrunner import Discard, RunContext, Snooze, WorkerOrchestrator
from jobrunner.runtime import outbox, recorder, slots, tick
from jobrunner.storage import nodes as node_store
from jobrunner.storage.runs import claims, finishes
from jobrunner.storage.turns.postgres import PostgresFastPath
from jobrunner.storage.turns.sqlite import SqliteFastPath

_notes: Path | None = None


def note(what: str, run: RunContext) -> None:
    """Append one short line, which the kernel does in one piece."""
    if _notes is not None:
        line = f"{what} {run.worker} {run.id} {run.fence} {os.getpid()} {time.monotonic():.6f}\n"
        handle = os.open(_notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, line.encode())
        os.close(handle)


async def work(run: RunContext) -> None:
    """Take `seconds` of the payload."""
    note("start", run)
    try:
        await asyncio.sleep(float(run.payload.get("seconds", 0.02)))
    finally:
        note("end", run)


def stubborn(run: RunContext) -> None:
    """Take `seconds` in a thread, whatever one is told."""
    note("start", run)
    time.sleep(float(run.payload.get("seconds", 1.0)))
    note("end", run)


async def rude(run: RunContext) -> None:
    """Block the node's loop for `seconds` at the first attempt."""
    note("start", run)
    if run.attempt == 1:
        time.sleep(float(run.payload.get("seconds", 1.0)))
    note("end", run)


def poisonous() -> None:
    """Take the whole process down, as a fault in a C library would."""
    os.kill(os.getpid(), signal.SIGKILL)


async def moody(run: RunContext) -> None:
    """Succeed, fail, snooze or give up, by the run's number."""
    await asyncio.sleep(0.01)
    match (run.id + run.attempt) % 7:
        case 0 | 1:
            raise ValueError("no luck")
        case 2 if run.scheduled_for is not None and time.time() - run.scheduled_for.timestamp() < 2:
            raise Snooze(0.2)
        case 3 if run.id % 5 == 0:
            raise Discard("not worth it")


# --- scenarios: which workers there are ---------------------------------------------------------------------------


def simple(o: WorkerOrchestrator) -> None:
    """Workers that are triggered; a run that was lost is tried again at once."""
    often: dict[str, Any] = {"execution_mode": "triggered", "max_retries": 20, "retry_delay_seconds": 0.0}
    o.register_worker("work", work, max_running=1000, timeout_seconds=600, **often)
    o.register_worker("alone", work, timeout_seconds=600, **often)
    o.register_worker("stubborn", stubborn, max_running=100, timeout_seconds=600, **often)
    o.register_worker("rude", rude, timeout_seconds=600, **often)
    o.register_worker("poisonous", poisonous, execution_mode="triggered", max_retries=50, retry_delay_seconds=0.0)


def clock(o: WorkerOrchestrator) -> None:
    """A schedule of one second."""
    o.register_worker("tick", work, interval_seconds=1.0)


def crowd(o: WorkerOrchestrator) -> None:
    """Forty busy workers: eight in blocks, four with limits, the others free; all want to run all the time."""
    often: dict[str, Any] = {"execution_mode": "continuous", "interval_seconds": 0.0}
    for i in range(0, 8, 2):
        o.register_worker(f"block-{i}", work, blocks=[f"block-{i + 1}"], **often)
        o.register_worker(f"block-{i + 1}", work, blocks=[f"block-{(i + 2) % 8}"] if i % 4 == 0 else [], **often)
    for i in range(4):
        o.register_worker(f"limit-{i}", work, execution_mode="triggered", max_running=i + 1)
    for i in range(28):
        o.register_worker(f"free-{i}", work, **{**often, "interval_seconds": 0.2})


def old(o: WorkerOrchestrator) -> None:
    """A program before a deploy."""
    o.register_worker("shared", work, execution_mode="triggered", max_running=10, description="old")
    o.register_worker("dropped", work, execution_mode="triggered", max_running=10)


def new(o: WorkerOrchestrator) -> None:
    """The program after it: one worker redefined, one gone, one new."""
    o.register_worker("shared", work, execution_mode="triggered", max_running=10, description="new", timeout_seconds=99)
    o.register_worker("added", work, execution_mode="triggered", max_running=10)


def mixed(o: WorkerOrchestrator) -> None:
    """Runs that end in every way there is, of workers that are tied to each other."""
    quick: dict[str, Any] = {"retry_delay_seconds": 0.1, "retry_max_delay_seconds": 0.2, "cooldown_seconds": 1.0}
    often: dict[str, Any] = {"execution_mode": "triggered", "max_retries": 2, **quick}
    o.register_worker("moody", moody, max_running=4, max_consecutive_failures=3, **often)
    o.register_worker("other", moody, max_running=2, blocks=["loop"], max_consecutive_failures=1000, **often)
    o.register_worker("after", moody, max_running=2, depends_on=["tick"], **often)
    o.register_worker("tick", work, interval_seconds=0.5, max_consecutive_failures=1000, **quick)
    o.register_worker("loop", moody, execution_mode="continuous", interval_seconds=0.1, **quick)
    o.register_worker("late", stubborn, max_running=3, timeout_seconds=0.3, **often)


async def unlucky() -> None:
    """Fail."""
    raise ValueError("no luck")


def failing(o: WorkerOrchestrator) -> None:
    """Four workers of which each run fails, and opens the circuit."""
    for number in range(4):
        rules: dict[str, Any] = {"execution_mode": "triggered", "max_retries": 0, "max_consecutive_failures": 1}
        o.register_worker(f"fails-{number}", unlucky, **rules)


def limited(o: WorkerOrchestrator) -> None:
    """Workers with limits of every kind; the limit `shared` is there already."""
    often: dict[str, Any] = {"execution_mode": "triggered", "max_retries": 50, "retry_delay_seconds": 0.0}
    keyed: dict[str, Any] = {"limit_key": "customer", "max_running": 1000, **often}
    o.register_worker("keyed", work, max_running_per_key=1, **keyed)
    o.register_worker("order", work, ordered=True, **keyed)
    o.register_worker("fair", work, fair=True, max_running_per_key=2, **keyed)
    o.register_worker("each", work, rate_per_key="2/1s", **keyed)
    o.register_worker("rated", work, rate="80/1s", max_running=1000, **often)
    o.register_worker("paid", work, limits=["shared"], max_running=1000, **often)
    o.register_worker("billed", work, limits=["shared"], rate="100/2s", smooth=True, max_running=1000, **often)


SCENARIOS: dict[str, Callable[[WorkerOrchestrator], None]] = {
    "simple": simple,
    "clock": clock,
    "crowd": crowd,
    "old": old,
    "new": new,
    "mixed": mixed,
    "failing": failing,
    "limited": limited,
}


# --- dying at a named point ---------------------------------------------------------------------------------------


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _around(owner: Any, name: str, is_due: Callable[..., bool], *, after: bool) -> Callable[[], None]:
    """Patch the coroutine function `owner.name` so that a call with something to do ends the process."""

    def patch() -> None:
        real = getattr(owner, name)

        async def patched(*arguments: Any, **more: Any) -> Any:
            if not after and is_due(*arguments):
                die()
            result = await real(*arguments, **more)
            if after and is_due(*arguments, result):
                die()
            return result

        setattr(owner, name, patched)

    return patch


def _in_method(owner: Any, name: str, *, after: bool) -> Callable[[], None]:
    def patch() -> None:
        real = getattr(owner, name)

        def patched(*arguments: Any) -> Any:
            if not after:
                die()
            real(*arguments)
            die()

        setattr(owner, name, patched)

    return patch


def _has_starts(*arguments: Any) -> bool:
    return bool(arguments[4])


def _in_turn(is_due: Callable[..., bool], *, after: bool) -> Callable[[], None]:
    """Die before or after the commit of a turn of the fast path, on whatever database."""

    def patch() -> None:
        for owner in (PostgresFastPath, SqliteFastPath):
            _around(owner, "turn", is_due, after=after)()

    return patch


def _once_sent() -> None:
    """Die with a turn under way that ends runs: the database may or may not come to commit it."""
    for owner in (PostgresFastPath, SqliteFastPath):
        real = owner.turn

        async def patched(*arguments: Any, real: Callable[..., Any] = real) -> Any:
            if arguments[5]:
                asyncio.get_running_loop().call_later(0.001, die)
            return await real(*arguments)

        owner.turn = patched  # type: ignore[attr-defined]


def _has_ends(*arguments: Any) -> bool:
    return bool(arguments[5])


POINTS: dict[str, Callable[[], None]] = {
    "turn, before the ends are written": _in_turn(_has_ends, after=False),
    "turn, sent off with ends": _once_sent,
    "turn, after the commit of ends": _in_turn(lambda *a: bool(a[-1].written), after=True),
    "turn, after the commit of claims": _in_turn(lambda *a: bool(a[-1].runs), after=True),
    "claim, before the write": _around(claims, "_write", _has_starts, after=False),
    "claim, before the commit": _around(claims, "_write", _has_starts, after=True),
    "claim, after the commit": _around(tick.Ticker, "_claim", lambda *a: bool(a[-1].claims), after=True),
    "start, before the code": _in_method(slots.Slots, "begin", after=True),
    "end of the code, before it is handed over": _in_method(outbox.Outbox, "put", after=False),
    "end of the code, handed over": _in_method(outbox.Outbox, "put", after=True),
    "finish, before the write": _around(finishes, "_write", lambda *a: bool(a[2].written), after=False),
    "finish, before the commit": _around(finishes, "_write", lambda *a: bool(a[2].written), after=True),
    "finish, after the commit": _around(recorder, "finish", lambda *a: bool(a[-1].written), after=True),
    "rescue, before the commit": _around(node_store, "finish_within", lambda *a: bool(a[-1].written), after=True),
    "rescue, after the commit": _around(node_store, "rescue", lambda *a: bool(a[-1].written), after=True),
    "declared lost, before the commit": _around(node_store, "declare_lost", lambda *a: a[-1], after=True),
}


LONG_WAY = ("claim, before", "finish")
"""Points of the long way, which nodes go that have no fast path."""


def go_the_long_way() -> None:
    tick.open_fast_path = lambda _db, **_options: None


def take_the_locks_away() -> None:
    """Let every node decide as if it held all locks; for showing that the tests of exclusion can fail."""

    async def lock(_conn: Any, _dialect: Any, wanted: set[str], edges: Any, _node_id: str) -> set[str]:
        return wanted if edges is None else edges.related(wanted) | wanted

    claims._lock = lock


def main() -> None:
    global _notes  # noqa: PLW0603 - the handlers have no other way to it
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--scenario", choices=list(SCENARIOS), default="simple")
    parser.add_argument("--notes", type=Path)
    parser.add_argument("--lease", type=float, default=30.0)
    parser.add_argument("--tick-interval", type=float, default=5.0)
    parser.add_argument("--max-concurrent", type=int, default=10)
    parser.add_argument("--drain-timeout", type=float, default=2.0)
    parser.add_argument("--pooler", choices=["transaction"])
    parser.add_argument("--elsewhere", type=int, default=0)
    parser.add_argument("--until-idle", type=int, default=0)
    parser.add_argument("--without-locks", type=int, default=0)
    parser.add_argument("--version", type=int)
    parser.add_argument("--die-at", choices=list(POINTS))
    options = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    url, scenario, until_idle = options.pop("url"), options.pop("scenario"), options.pop("until_idle")
    _notes = options.pop("notes")
    if options.pop("elsewhere"):
        identities.boot_id = lambda: f"machine-of-{os.getpid()}"
    if options.pop("without_locks"):
        take_the_locks_away()
    if point := options.pop("die_at"):
        POINTS[point]()
        if point.startswith(LONG_WAY):
            go_the_long_way()
    orchestrator = WorkerOrchestrator(url, sqlite_synchronous="NORMAL", **options)
    SCENARIOS[scenario](orchestrator)
    asyncio.run(orchestrator.run(until_idle=bool(until_idle)))


if __name__ == "__main__":
    main()
