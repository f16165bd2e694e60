"""Reading what limits hold, for the gates: windows of rates, the runs of each key, limits that workers share.

Only workers that have a limit cost anything here. Of a worker that goes by key, the first waiting runs are read as of
any other, some more of them. Where those do not say who starts next (they are of keys that are full, or the worker is
fair), the keys themselves are gone through, by one step of an index each, at most `MOST_KEYS` of them.

Under the locks of a claim all of it is exact: whoever starts a run of the worker holds its state, and whoever starts
one under a shared limit holds that limit's row.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.model.facts import NO_STARTS, ActiveRun, Candidate, KeyFacts, LimitFacts, WorkerFacts
from jobrunner.model.run import Trigger
from jobrunner.policy.gates import candidates_of
from jobrunner.policy.limit_gates import goes_by_key, most_per_key
from jobrunner.policy.rates import Rate, rate_of, rates_of, window_of
from jobrunner.storage.runs.limit_statements import statements
from jobrunner.storage.tables.rows import names_json, to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.storage.database.dialect import Dialect

_PAGES = 4
_NO_RATE = Rate(1, 0.001)


def page_of(limit: int) -> int:
    """Return how many waiting runs of a worker that goes by key are read, where `limit` may start."""
    return _PAGES * limit


@dataclass(slots=True)
class Reading:
    """A reading under way: of which workers, and by which time. `limit` runs may start at most."""

    conn: AsyncConnection
    dialect: Dialect
    now: datetime
    rated_at: datetime
    limit: int
    candidate: Callable[[Any], Candidate]

    def window(self, rate: Rate) -> dict[str, Any]:
        """Return what the statements need of a rate: what it counts, and between which times."""
        return {"most": rate.count, "since": self.rated_at - rate.window, "until": self.rated_at + rate.window}


async def database_time(conn: AsyncConnection) -> datetime:
    """Return PostgreSQL's time now, whenever the transaction began."""
    moment: datetime = (await conn.execute(sa.select(sa.func.clock_timestamp()))).scalar_one()
    return moment


async def lock(conn: AsyncConnection, dialect: Dialect, names: Collection[str]) -> None:
    """Hold the limits that these workers share, in the order of their names, after the workers' states."""
    await conn.execute(statements(dialect).lock, {"names": names_json(names)})


def is_limited(worker: WorkerFacts) -> bool:
    """Say whether a worker has a limit that is read here, but for those it shares."""
    return worker.config.rate is not None or goes_by_key(worker.config)


async def add_limits(
    reading: Reading, known: dict[str, WorkerFacts], sharing: Collection[str]
) -> dict[str, LimitFacts]:
    """Add to `known` what its workers' limits hold; return the limits that `sharing`, some of them, share."""
    shared = await _read_shared(reading, known, sharing) if sharing else {}
    rates = {name: rate for name, worker in known.items() if (rate := rates_of(worker.config)[0]) is not None}
    for name, used in (await _windows(reading, rates, statements(reading.dialect).worker_windows)).items():
        known[name] = replace(known[name], window=used)
    keyed = [name for name, worker in known.items() if goes_by_key(worker.config)]
    if keyed:
        await _add_keys(reading, known, keyed)
    return shared


async def _windows(reading: Reading, rates: Mapping[str, Rate], statement: sa.Select[Any]) -> dict[str, Any]:
    if not rates:
        return {}
    given = to_json({"name": name, **reading.window(rate)} for name, rate in rates.items())
    rows = (await reading.conn.execute(statement, {"windows": given})).all()
    return {name: window_of(rates[name], count, oldest) for name, count, oldest in rows}


async def _read_shared(
    reading: Reading, known: dict[str, WorkerFacts], sharing: Collection[str]
) -> dict[str, LimitFacts]:
    prepared = statements(reading.dialect)
    rows = (await reading.conn.execute(prepared.shared, {"names": names_json(sharing)})).all()
    named: defaultdict[str, list[str]] = defaultdict(list)
    found: dict[str, LimitFacts] = {}
    for worker, name, max_running, rate in rows:
        named[worker].append(name)
        found[name] = LimitFacts(name, max_running, rate)
    for worker, names in named.items():
        known[worker] = replace(known[worker], config=replace(known[worker].config, limits=tuple(names)))
    active: defaultdict[str, list[ActiveRun]] = defaultdict(list)
    for row in (await reading.conn.execute(prepared.holders, {"limits": names_json(found)})).all():
        run = ActiveRun(row.id, row.worker, row.slot, row.node_id, row.started_at, Trigger(row.trigger))
        active[row.limit_name].append(run)
    # After the holders: so it is no earlier than the end of any run that is not among them any more.
    last = (await reading.conn.execute(prepared.last_ends, {"limits": names_json(found)})).all()
    ends = {row[0]: row[1] for row in last}
    rates = {name: rate for name, limit in found.items() if (rate := rate_of(limit.rate)) is not None}
    windows = await _windows(reading, rates, prepared.limit_windows)
    return {
        name: replace(
            limit, active=tuple(active[name]), window=windows.get(name, limit.window), last_ended_at=ends.get(name)
        )
        for name, limit in found.items()
    }


async def _add_keys(reading: Reading, known: dict[str, WorkerFacts], keyed: Collection[str]) -> None:
    await _add_key_facts(reading, known, {name: _keys_in(known[name]) for name in keyed})
    inconclusive = [name for name in keyed if not _is_conclusive(known[name], reading.limit)]
    if not inconclusive:
        return
    rows = (
        await reading.conn.execute(
            statements(reading.dialect).heads, {"names": names_json(inconclusive), "now": reading.now}
        )
    ).all()
    wanted = {run_id for name in inconclusive for run_id in _first_of_keys(known[name], rows, reading.limit)}
    given = to_json({"id": run_id} for run_id in wanted)
    found: defaultdict[str, dict[int, Candidate]] = defaultdict(dict)
    statement = statements(reading.dialect).waiting
    for row in (await reading.conn.execute(statement, {"ids": given})).all():
        if row.node_id is None and row.due_at <= reading.now:
            found[row.worker][row.id] = reading.candidate(row)
    for name, more in found.items():
        merged = {candidate.id: candidate for candidate in known[name].waiting} | more
        known[name] = replace(known[name], waiting=tuple(merged.values()))
    new = {name: _keys_in(known[name]) - known[name].keys.keys() for name in inconclusive}
    await _add_key_facts(reading, known, new)


async def add_key(reading: Reading, known: dict[str, WorkerFacts], run: Candidate) -> None:
    """Add to `known` what the key of a run holds, unless that was read."""
    worker = known[run.worker]
    if run.limit_key is not None and goes_by_key(worker.config) and run.limit_key not in worker.keys:
        await _add_key_facts(reading, known, {run.worker: [run.limit_key]})


def _keys_in(worker: WorkerFacts) -> set[str]:
    return {candidate.limit_key for candidate in candidates_of(worker) if candidate.limit_key is not None}


async def _add_key_facts(
    reading: Reading, known: dict[str, WorkerFacts], wanted: Mapping[str, Collection[str]]
) -> None:
    rates = {name: rates_of(known[name].config)[1] or _NO_RATE for name in wanted}
    given = [
        {"name": name, "key": key, **reading.window(rates[name])}
        for name, keys in wanted.items()
        for key in sorted(keys)
    ]
    if not given:
        return
    parameters = {"keys": to_json(given), "now": reading.now}
    facts: defaultdict[str, dict[str, KeyFacts]] = defaultdict(dict)
    for name, key, first, last, count, oldest in (
        await reading.conn.execute(statements(reading.dialect).keys, parameters)
    ).all():
        config = known[name].config
        starts = [run.started_at for run in known[name].active if run.limit_key == key]
        window = window_of(rates[name], count, oldest) if config.rate_per_key is not None else KeyFacts().window
        last_started_at = max([*starts, *([last] if last is not None else [])], default=None)
        facts[name][key] = KeyFacts(window, first if config.ordered else None, last_started_at)
    for name, keys in facts.items():
        known[name] = replace(known[name], keys={**known[name].keys, **keys})


def _is_conclusive(worker: WorkerFacts, limit: int) -> bool:
    """Say whether the runs that were read say who starts next: they are all, or as many of them may start as can."""
    levels = Counter(candidate.priority for candidate in worker.waiting)
    if all(count < page_of(limit) for count in levels.values()):
        return True
    return not worker.config.fair and _may_start(worker) >= limit


def _may_start(worker: WorkerFacts) -> int:
    room = _room(worker)
    started: Counter[str | None] = Counter()
    for candidate in worker.waiting:
        key = candidate.limit_key
        started[key] += key is None or started[key] < room(key)
    return started.total()


def _room(worker: WorkerFacts) -> Callable[[str], int]:
    """Return how many more runs of a key may start, as far as is known."""
    most = most_per_key(worker.config)
    per_key = rates_of(worker.config)[1]
    active = Counter(run.limit_key for run in worker.active)

    def room(key: str) -> int:
        left = [] if most is None else [most - active[key]]
        if per_key is not None and key in worker.keys:
            left.append(per_key.count - worker.keys[key].window.used)
        return max(0, min(left, default=len(worker.waiting)))

    return room


def _first_of_keys(worker: WorkerFacts, rows: Iterable[Any], limit: int) -> list[int]:
    """Choose, of the keys' first runs, those that may start next: of a fair worker by who has waited for a turn."""
    room = _room(worker)
    running = {run.limit_key: run.started_at for run in sorted(worker.active, key=lambda run: run.started_at)}
    found: list[tuple[tuple[Any, ...], int]] = []
    for name, key, first, last, run_id, priority, due_at in rows:
        if name != worker.config.name or room(key) <= 0:
            continue
        if worker.config.ordered:
            found += [] if first is None else [((first,), first)]
            continue
        turn = running.get(key) or last
        waited = (turn is not None, turn or NO_STARTS) if worker.config.fair else ()
        found += [] if run_id is None else [((-priority, *waited, due_at, run_id), run_id)]
    return [run_id for _, run_id in sorted(found)[: page_of(limit)]]
