"""An independent check of README.md's promises 1 to 5 and 7, on a database at rest.

It reads the tables with plain SQL and shares no code with jobrunner, so that the two cannot be wrong together.
`check(url)` returns one line for each violation. It takes for granted that nothing was pruned, that blocks,
dependencies, `max_running` and limits (`limit_checker`) are what they were when the runs started, and that all nodes'
clocks agree.

    read_tables(url) -> Tables      plain SQL
    violations(tables) -> lines     plain Python; what the checker's own tests call with rows made by hand
"""

from __future__ import annotations

import asyncio
import heapq
import sqlite3
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

import asyncpg

from tests.support.limit_checker import limits_kept

Row = dict[str, Any]
USES_UP = {"failed", "timed_out", "lost"}
WITH_LETTER = {"exhausted", "discarded"}
FOREVER = datetime.max.replace(tzinfo=UTC)
QUERIES = {
    "runs": "SELECT * FROM {p}runs ORDER BY id",
    "history": "SELECT * FROM {p}run_history ORDER BY id",
    "letters": "SELECT id, run_id, worker, attempts, status, replay_run_id FROM {p}dead_letters ORDER BY id",
    "workers": "SELECT name, max_running, limit_key, max_running_per_key, ordered, rate, rate_per_key, smooth"
    " FROM {p}workers ORDER BY name",
    "states": "SELECT worker, consecutive_failures, streak_since_id, last_fence FROM {p}worker_state ORDER BY worker",
    "dependencies": "SELECT worker, depends_on FROM {p}worker_dependencies ORDER BY worker, depends_on",
    "blocks": "SELECT worker, blocks FROM {p}worker_blocks ORDER BY worker, blocks",
    "limits": "SELECT name, max_running, rate FROM {p}limits ORDER BY name",
    "worker_limits": "SELECT worker, limit_name FROM {p}worker_limits ORDER BY worker, limit_name",
}
TIMES = ("scheduled_for", "due_at", "started_at", "finished_at", "created_at")


@dataclass
class Tables:
    """The rows of one moment. Times are aware."""

    runs: list[Row] = field(default_factory=list)
    history: list[Row] = field(default_factory=list)
    letters: list[Row] = field(default_factory=list)
    workers: list[Row] = field(default_factory=list)
    states: list[Row] = field(default_factory=list)
    dependencies: list[Row] = field(default_factory=list)
    blocks: list[Row] = field(default_factory=list)
    limits: list[Row] = field(default_factory=list)
    worker_limits: list[Row] = field(default_factory=list)

    @property
    def attempts(self) -> list[Row]:
        """Rows of history that were claims."""
        return [row for row in self.history if row["fence"] is not None]

    @property
    def active(self) -> list[Row]:
        """Live runs that are claimed."""
        return [run for run in self.runs if run["state"] != "pending"]


@dataclass(frozen=True, order=True)
class Span:
    """The time in which an attempt was active: from `start` to before `end`."""

    start: datetime
    end: datetime
    run_id: int

    def overlaps(self, other: Span) -> bool:
        """Say whether both were active at one time; one that took no time counts if it lies inside the other."""
        return self.start < other.end and other.start < self.end

    def __str__(self) -> str:
        end = "now" if self.end == FOREVER else f"{self.end:%H:%M:%S.%f}"
        return f"run {self.run_id} ({self.start:%H:%M:%S.%f} to {end})"


def check(url: str, *, schema: str = "jobrunner", accepted: Iterable[int] = ()) -> list[str]:
    """Check a database at rest; return the violations.

    Args:
        url: of SQLite or PostgreSQL, with any driver.
        schema: PostgreSQL's schema of the tables.
        accepted: ids of runs that were accepted, and so must be somewhere.
    """
    return violations(read_tables(url, schema=schema), accepted)


def violations(tables: Tables, accepted: Iterable[int] = ()) -> list[str]:
    """Return a line for each broken promise."""
    found: list[str] = []
    for number, promise in PROMISES.items():
        found += [f"promise {number}: {line}" for line in promise(tables)]
    known = {run["id"] for run in tables.runs} | {row["run_id"] for row in tables.history}
    found += [f"promise 1: run {run_id} was accepted and is nowhere" for run_id in accepted if run_id not in known]
    return found


# --- 1: nothing accepted is lost ----------------------------------------------------------------------------------


def _nothing_lost(tables: Tables) -> Iterator[str]:
    live = {run["id"] for run in tables.runs}
    ends: defaultdict[int, list[str]] = defaultdict(list)
    for row in tables.history:
        if row["ends_run"] is not None:
            ends[row["run_id"]].append(row["ends_run"])
    letters = Counter(letter["run_id"] for letter in tables.letters)
    everywhere = live | {row["run_id"] for row in tables.history if row["run_id"] is not None} | set(letters)
    for run_id in sorted(everywhere):
        places = len(ends[run_id]) + (run_id in live)
        if places != 1:
            where = f"{', '.join(ends[run_id]) or 'no end'} in history, {'live' if run_id in live else 'not live'}"
            yield f"run {run_id} is in {places} places instead of one: {where}"
        wanted = sum(end in WITH_LETTER for end in ends[run_id])
        if letters[run_id] != wanted:
            yield f"run {run_id} has {letters[run_id]} dead letters instead of {wanted}"
    for letter in tables.letters:
        replayed = letter["status"] == "replayed"
        if replayed and letter["replay_run_id"] not in everywhere:
            yield f"the replay of letter {letter['id']}, run {letter['replay_run_id']}, is nowhere"


# --- 2: one owner -------------------------------------------------------------------------------------------------


def _one_owner(tables: Tables) -> Iterator[str]:
    claims = Counter((row["worker"], row["fence"]) for row in [*tables.attempts, *tables.active])
    yield from (f"fence {fence} of {name} is on {n} claims" for (name, fence), n in claims.items() if n > 1)
    last = {state["worker"]: state["last_fence"] for state in tables.states}
    for name, fence in claims:
        if name in last and fence > last[name]:
            yield f"fence {fence} of {name} was never drawn: the last is {last[name]}"
    slots = Counter((run["worker"], run["slot"]) for run in tables.active)
    yield from (f"slot {slot} of {name} holds {n} runs" for (name, slot), n in slots.items() if n > 1)
    for run in tables.active:
        if None in (run["slot"], run["fence"], run["node_id"], run["started_at"]):
            yield f"run {run['id']} is {run['state']} without a whole claim"
    yield from _numbered(tables)


def _numbered(tables: Tables) -> Iterator[str]:
    """Attempts that use up a try are 1, 2, 3…; every other attempt, and the live one, bears the next number."""
    used: Counter[int] = Counter()
    fences: dict[int, int] = {}
    for row in tables.history:
        run_id = row["run_id"]
        if run_id is None:
            continue
        if row["attempt"] != used[run_id] + 1:
            yield f"run {run_id}: a {row['outcome']} attempt is number {row['attempt']}, after {used[run_id]} used up"
        used[run_id] += row["outcome"] in USES_UP
        if row["fence"] is not None:
            if row["fence"] <= fences.get(run_id, 0):
                yield f"run {run_id}: fence {row['fence']} came after {fences[run_id]}"
            fences[run_id] = row["fence"]
    for run in tables.runs:
        if run["attempt"] != used[run["id"]] + 1:
            yield f"live run {run['id']} is at attempt {run['attempt']}, after {used[run['id']]} used up"
        if run["fence"] is not None and run["fence"] <= fences.get(run["id"], 0):
            yield f"live run {run['id']}: fence {run['fence']} came after {fences[run['id']]}"


# --- 3: never together --------------------------------------------------------------------------------------------


def _spans(tables: Tables) -> dict[str, list[Span]]:
    """When each worker's attempts were active, in the order of their starts."""
    spans: defaultdict[str, list[Span]] = defaultdict(list)
    for row in tables.attempts:
        spans[row["worker"]].append(Span(row["started_at"], row["finished_at"], row["run_id"]))
    for run in tables.active:
        spans[run["worker"]].append(Span(run["started_at"], FOREVER, run["id"]))
    return {name: sorted(each) for name, each in spans.items()}


def _never_together(tables: Tables) -> Iterator[str]:
    spans = _spans(tables)
    for pair in sorted({tuple(sorted((row["worker"], row["blocks"]))) for row in tables.blocks}):
        first, second = pair
        for one, other in _overlaps(spans.get(first, []), spans.get(second, [])):
            yield f"{first} and {second} overlap: {one} and {other}"
    for worker in tables.workers:
        yield from _too_many(worker["name"], worker["max_running"], spans.get(worker["name"], []))
    yield from limits_kept(tables)


def _overlaps(ones: list[Span], others: list[Span]) -> Iterator[tuple[Span, Span]]:
    """Pairs that overlap: each span with the one of the other side that began before it and lasts longest."""
    longest: dict[int, Span] = {}
    for span, side in sorted([(span, 0) for span in ones] + [(span, 1) for span in others]):
        other = longest.get(1 - side)
        if other is not None and span.overlaps(other):
            yield (span, other) if side == 0 else (other, span)
        if side not in longest or span.end > longest[side].end:
            longest[side] = span


def _too_many(name: str, limit: int, spans: list[Span]) -> Iterator[str]:
    ends: list[datetime] = []
    for span in spans:
        while ends and ends[0] <= span.start:
            heapq.heappop(ends)
        if len(ends) + 1 > limit:
            yield f"{name}: {len(ends) + 1} of at most {limit} ran when {span} started"
        if span.end > span.start:
            heapq.heappush(ends, span.end)


# --- 4: order -----------------------------------------------------------------------------------------------------


def _order(tables: Tables) -> Iterator[str]:
    spans = _spans(tables)
    ended = _ended(tables)
    retries = _waiting_for_retry(tables)
    starts: defaultdict[str, list[Span]] = defaultdict(list)
    for row in [*tables.attempts, *tables.active]:
        if not row["is_forced"]:
            starts[row["worker"]].append(Span(row["started_at"], FOREVER, row.get("run_id") or row["id"]))
    for edge in tables.dependencies:
        name, other = edge["worker"], edge["depends_on"]
        for start in sorted(starts[name]):
            yield from (
                f"{name} started run {start.run_id} at {start.start:%H:%M:%S.%f}, though {other} {reason}"
                for reason in _not_met(start.start, spans.get(other, []), ended[other], retries[other])
            )


def _not_met(at: datetime, spans: list[Span], ended: list[tuple[datetime, str]], retries: list[Span]) -> Iterator[str]:
    for span in spans:
        if span.start < at < span.end:
            yield f"was active: {span}"
    for span in retries:
        if span.start < at < span.end:
            yield f"had a retry waiting: {span}"
    before = [end for when, end in ended if when < at]
    until = [end for when, end in ended if when <= at]
    # What ended at that very moment may have been written before the start or after it.
    if (not before or before[-1] != "succeeded") and (not until or until[-1] != "succeeded"):
        yield f"had last {until[-1]}" if until else "had never succeeded"


def _ended(tables: Tables) -> defaultdict[str, list[tuple[datetime, str]]]:
    """When each worker's runs ended that decide whether it succeeded last, in order."""
    ended: defaultdict[str, list[tuple[datetime, str]]] = defaultdict(list)
    for row in sorted(tables.history, key=lambda row: (row["finished_at"], row["id"])):
        if row["ends_run"] in {"succeeded", "exhausted"}:
            ended[row["worker"]].append((row["finished_at"], row["ends_run"]))
    return ended


def _waiting_for_retry(tables: Tables) -> defaultdict[str, list[Span]]:
    """From the end of each attempt that used up a try, but did not end its run, to that run's next start or end."""
    waiting: defaultdict[str, list[Span]] = defaultdict(list)
    failed: dict[int, Row] = {}
    for row in tables.history:
        before = failed.pop(row["run_id"], None)
        if before is not None:
            until = row["started_at"] or row["finished_at"]
            waiting[row["worker"]].append(Span(before["finished_at"], until, row["run_id"]))
        if row["outcome"] in USES_UP and row["ends_run"] is None:
            failed[row["run_id"]] = row
    for run in tables.runs:
        before = failed.pop(run["id"], None)
        if before is not None:
            waiting[run["worker"]].append(Span(before["finished_at"], run["started_at"] or FOREVER, run["id"]))
    return waiting


# --- 5: the streak is true ----------------------------------------------------------------------------------------


def _streaks(tables: Tables) -> Iterator[str]:
    since = {state["worker"]: state["streak_since_id"] for state in tables.states}
    streaks: Counter[str] = Counter()
    for row in tables.history:
        if row["id"] <= since.get(row["worker"], 0):
            continue
        if row["ends_run"] == "succeeded":
            streaks[row["worker"]] = 0
        elif row["ends_run"] == "exhausted":
            streaks[row["worker"]] += 1
    for state in tables.states:
        name, kept = state["worker"], state["consecutive_failures"]
        if kept != streaks[name]:
            yield f"{name} has consecutive_failures {kept}, history says {streaks[name]}"


# --- 7: a firing happens once -------------------------------------------------------------------------------------


def _once(tables: Tables) -> Iterator[str]:
    firings: defaultdict[tuple[str, datetime], set[int]] = defaultdict(set)
    for row in [*tables.history, *tables.runs]:
        if row["trigger"] == "schedule" and row.get("outcome") != "missed":
            firings[row["worker"], row["scheduled_for"]].add(row["run_id"] if "run_id" in row else row["id"])
    for (name, when), run_ids in sorted(firings.items()):
        if len(run_ids) > 1:
            yield f"{name} fired for {when} as {', '.join(f'run {run_id}' for run_id in sorted(run_ids))}"
    served: defaultdict[str, list[datetime]] = defaultdict(list)
    for name, when in firings:
        served[name].append(when)
    for row in tables.history:
        if row["outcome"] == "missed":
            for when in served[row["worker"]]:
                if row["scheduled_for"] <= when <= row["due_at"]:
                    yield f"{row['worker']} ran for {when}, which history row {row['id']} calls missed"


PROMISES: dict[int, Callable[[Tables], Iterator[str]]] = {
    1: _nothing_lost,
    2: _one_owner,
    3: _never_together,
    4: _order,
    5: _streaks,
    7: _once,
}


# --- reading ------------------------------------------------------------------------------------------------------


def read_tables(url: str, *, schema: str = "jobrunner", queries: Mapping[str, str] = QUERIES) -> Tables:
    """Read all tables in one transaction; `queries` may leave out what is not to be judged."""
    if url.startswith("sqlite"):
        return _read_sqlite(unquote(url.split(":///", 1)[1]), queries)
    return _read_postgres("postgresql://" + url.split("://", 1)[1], f'"{schema}".', queries)


def _read_sqlite(path: str, queries: Mapping[str, str]) -> Tables:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.row_factory = sqlite3.Row
        connection.execute("BEGIN")
        rows = {
            table: [_with_times(dict(row)) for row in connection.execute(query.format(p=""))]
            for table, query in queries.items()
        }
    return Tables(**rows)


def _with_times(row: Row) -> Row:
    for name in TIMES:
        if row.get(name) is not None:
            row[name] = datetime.fromisoformat(row[name]).replace(tzinfo=UTC)
    return row


def _read_postgres(url: str, prefix: str, queries: Mapping[str, str]) -> Tables:
    """Read in a thread of its own, since the caller may have a running event loop."""

    async def read() -> Tables:
        connection = await asyncpg.connect(url)
        try:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                rows = {
                    table: [dict(row) for row in await connection.fetch(query.format(p=prefix))]
                    for table, query in queries.items()
                }
        finally:
            await connection.close()
        return Tables(**rows)

    answer: list[Tables | BaseException] = []

    def body() -> None:
        try:
            answer.append(asyncio.run(read()))
        except BaseException as error:
            answer.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    (found,) = answer
    if isinstance(found, BaseException):
        raise found
    return found
