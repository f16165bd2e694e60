"""Worker definitions: registering what code says, laying what operators set over it, adding and removing.

A node registers all its workers in one transaction and writes only those whose definition changed, so a restart of
unchanged code writes nothing. `workers.definition` is what code said, `workers.overrides` what operators set; the other
columns are the two merged. Enabled, pause and streak are never touched here. Whoever changes a worker's schedule or
its relations holds its `worker_state` row, as a claim does, so that no claim is decided on half of a change.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.errors import WorkerNotFound
from jobrunner.model.worker import Dependency, Isolation, WorkerConfig
from jobrunner.policy import clocks, definitions
from jobrunner.policy.missed import with_schedule_of
from jobrunner.policy.transitions import rescheduled_time
from jobrunner.storage.records.history import missed_row, write_missed
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.rows import (
    CONFIG_COLUMNS,
    CONFIG_FIELDS,
    STATE_COLUMNS,
    config_or_problem,
    names_json,
    state_of,
    state_values,
    to_json,
    write_state_statement,
)
from jobrunner.storage.workers import named_limits, states
from jobrunner.storage.workers.changed_at import after_starts, hold_states
from jobrunner.storage.workers.relations import check_relations, write_edges

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.model.named_limit import LimitConfig
    from jobrunner.model.worker import WorkerState
    from jobrunner.storage.database.dialect import Dialect


_CHUNK = 2000
"""Rows of one statement: those of 100,000 new workers, all made at once, would take 400 MiB."""
_DOCUMENTS = ("payload", "payload_schema")
_ALL_BUT_NAME = attrgetter(*(f.name for f in fields(WorkerConfig) if f.name not in {"name", *_DOCUMENTS}))


@dataclass(frozen=True, slots=True)
class Registered:
    """What registering changed."""

    added: tuple[str, ...]
    changed: tuple[str, ...]
    kept_newer: tuple[str, ...]  # another version= is higher in the database; its definition stays
    limits: tuple[str, ...] = ()  # named limits that were written
    unused: tuple[str, ...] = ()  # `worker.field`: overrides in the database that cannot be used with this code


@dataclass(frozen=True, slots=True)
class Stored:
    """A worker as the database has it: the effective definition, the two layers, and its state."""

    config: WorkerConfig
    definition: dict[str, Any]
    overrides: dict[str, Any]
    definition_hash: str
    definition_version: int | None
    state: WorkerState


async def register(
    conn: AsyncConnection,
    dialect: Dialect,
    configs: Sequence[WorkerConfig],
    version: int | None,
    now: datetime,
    limits: Sequence[LimitConfig] = (),
    *,
    keeps_limits: bool = False,
) -> Registered:
    """Write the definitions that changed, all in the caller's transaction; the named limits first.

    With `keeps_limits`, or where a newer version of the code is registered, limits that are known stay as they are.

    Raises:
        InvalidWorker: a worker or a limit is named that is known neither in code nor in the database.
        DependencyCycle: workers would wait for each other in a circle.
    """
    hashes = dict(_hashes(configs))
    if await _unchanged(conn, dialect, hashes, version) and await named_limits.are_unchanged(conn, dialect, limits):
        return Registered((), (), ())
    await dialect.lock_for_migration(conn)  # one registering node at a time, and none during an upgrade
    await states.mend(conn, dialect, now)
    await hold_states(conn, dialect, {*hashes, *await named_limits.read_workers(conn, dialect, limits)})
    stored = await read_stored(conn, dialect, hashes)
    kept = {name for name in stored if _is_older(version, stored[name].definition_version)}
    set_limits = await named_limits.register_limits(conn, dialect, limits, now, only_missing=keeps_limits or bool(kept))
    wanted = [
        config
        for config in configs
        if config.name not in kept
        and (config.name not in stored or _differs(stored[config.name], hashes[config.name], version))
    ]
    unused: list[str] = []
    merged = {config.name: _merge(config, stored.get(config.name), unused) for config in wanted}
    await check_relations(conn, dialect, merged, hashes)
    given = {config.name: config for config in wanted}
    added = [name for name in sorted(given) if name not in stored]
    changed = [name for name in sorted(given) if name in stored]

    given_names = dialect.rows("names", name=sa.Text())
    changed_at = await after_starts(conn, sa.select(given_names.c.name), now, {"names": names_json(changed)})

    def row(name: str) -> dict[str, Any]:
        moment = changed_at if name in stored else now
        return _row(merged[name], definitions.to_document(given[name]), hashes[name], version, moment)

    for start in range(0, len(added), _CHUNK):
        names = added[start : start + _CHUNK]
        await _insert(conn, dialect, [row(name) for name in names], [merged[name] for name in names], now)
    for start in range(0, len(changed), _CHUNK):
        await _update(conn, [row(name) for name in changed[start : start + _CHUNK]])
    await _reschedule(conn, [(stored[name], merged[name]) for name in changed], now)
    await write_edges(conn, dialect, list(merged.values()), new=frozenset(added))
    return Registered(tuple(added), tuple(changed), tuple(sorted(kept)), tuple(set_limits), tuple(unused))


def _hashes(configs: Sequence[WorkerConfig]) -> Iterator[tuple[str, str]]:
    """Yield each name with its definition's hash, computed once for workers that differ in nothing but the name."""
    known: dict[Any, str] = {}
    for config in configs:
        # Workers of one function share its schema; a payload of their own few have.
        key = config.name if config.payload else (_ALL_BUT_NAME(config), id(config.payload_schema))
        if key not in known:
            known[key] = definitions.definition_hash(definitions.to_document(config))
        yield config.name, known[key]


def _merge(config: WorkerConfig, known: Stored | None, unused: list[str]) -> WorkerConfig:
    """Lay the stored overrides over what code says; those that cannot be used stay stored, and go to `unused`."""
    if known is None or not known.overrides:
        return config
    document = definitions.to_document(config)
    fitting = definitions.still_fitting(document, known.overrides)
    usable = definitions.usable_overrides(config.name, document, fitting)
    unused += [f"{config.name}.{field}" for field in fitting if field not in usable]
    return definitions.from_document(config.name, document, usable)


async def _unchanged(conn: AsyncConnection, dialect: Dialect, hashes: Mapping[str, str], version: int | None) -> bool:
    """Ask it of the database: with 100,000 workers, reading their rows would take seconds and 200 MiB."""
    w, s = t.workers, t.worker_state
    given = dialect.rows("hashes", name=sa.Text(), hash=sa.Text())
    same = sa.and_(w.c.name == given.c.name, w.c.definition_hash == given.c.hash)
    statement = (
        sa.select(sa.func.count())
        .select_from(given.join(w, same).join(s, s.c.worker == w.c.name))
        .where(w.c.definition_version.is_not_distinct_from(version))
    )
    rows = to_json({"name": name, "hash": digest} for name, digest in hashes.items())
    return bool((await conn.execute(statement, {"hashes": rows})).scalar_one() == len(hashes))


def _is_older(version: int | None, known: int | None) -> bool:
    return version is not None and known is not None and version < known


def _differs(stored: Stored, new_hash: str, version: int | None) -> bool:
    return stored.definition_hash != new_hash or stored.definition_version != version


def _row(
    config: WorkerConfig, document: dict[str, Any], digest: str, version: int | None, now: datetime
) -> dict[str, Any]:
    return {
        **_columns(config),
        "definition": document,
        "definition_hash": digest,
        "definition_version": version,
        "updated_at": now,
    }


def _columns(config: WorkerConfig) -> dict[str, Any]:
    values = {name: getattr(config, name) for name in CONFIG_FIELDS}
    values["execution_mode"] = str(config.execution_mode)
    values["misfire"] = str(config.misfire)
    values["isolation"] = str(config.isolation or Isolation.INLINE)
    values["priority"] = int(config.priority)
    return values


async def _insert(
    conn: AsyncConnection, dialect: Dialect, rows: list[dict[str, Any]], configs: list[WorkerConfig], now: datetime
) -> None:
    if not rows:
        return
    new = [{**row, "overrides": {}, "created_at": now} for row in rows]
    await conn.execute(*dialect.new_rows(t.workers, new))
    await states.make(conn, dialect, configs, now)


async def _update(conn: AsyncConnection, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    w = t.workers
    names = [name for name in rows[0] if name != "name"]
    statement = (
        sa.update(w)
        .where(w.c.name == sa.bindparam("key_name"))
        .values({name: sa.bindparam(f"new_{name}", type_=w.c[name].type) for name in names})
    )
    await conn.execute(
        statement, [{"key_name": row["name"], **{f"new_{name}": row[name] for name in names}} for row in rows]
    )


async def _reschedule(conn: AsyncConnection, pairs: Iterable[tuple[Stored, WorkerConfig]], now: datetime) -> None:
    """Move the next time of workers whose schedule changed, and keep the priority that the due index sorts by.

    Nothing counts as missed but what has passed while the worker was off.
    """
    moved, missed, priorities, reaches = [], [], [], []
    for before, config in pairs:
        if before.config.priority != config.priority:
            priorities.append({"key_worker": config.name, "new_priority": int(config.priority)})
        if clocks.reach_seconds(before.config) != clocks.reach_seconds(config):
            reaches.append({"key_worker": config.name, "new_reach": clocks.reach_seconds(config)})
        if _schedule_key(before.config) != _schedule_key(config):
            state, passed = with_schedule_of(config, before.state, before.config, now)
            if state.is_enabled:
                state = replace(state, next_run_at=rescheduled_time(state, config, now))
            moved.append(state)
            missed += [missed_row(config.name, each, now) for each in passed]
    if moved:
        await conn.execute(write_state_statement(), [state_values(state) for state in moved])
    await write_missed(conn, missed)
    s = t.worker_state
    if reaches:
        statement = sa.update(s).where(s.c.worker == sa.bindparam("key_worker"))
        await conn.execute(statement.values(reach_seconds=sa.bindparam("new_reach")), reaches)
    if priorities:
        statement = (
            sa.update(s).where(s.c.worker == sa.bindparam("key_worker")).values(priority=sa.bindparam("new_priority"))
        )
        await conn.execute(statement, priorities)


def _schedule_key(config: WorkerConfig) -> tuple[object, ...]:
    return (config.execution_mode, config.interval_seconds, config.cron, config.timezone, config.jitter_seconds)


async def read_stored(
    conn: AsyncConnection, dialect: Dialect, names: Collection[str], *, lock: bool = False
) -> dict[str, Stored]:
    """Read workers with both layers and their state; with `lock`, hold their `worker_state` rows, in name order."""
    w, s = t.workers, t.worker_state
    given = dialect.rows("names", name=sa.Text())
    extra = [w.c.definition, w.c.overrides, w.c.definition_hash, w.c.definition_version]
    statement = (
        sa.select(*CONFIG_COLUMNS, *STATE_COLUMNS, *extra)
        .select_from(w.join(s, s.c.worker == w.c.name))
        .where(w.c.name.in_(sa.select(given.c.name)))
        .order_by(s.c.worker)
    )
    if lock:
        # A statement of its own: one that waits for the lock reads `workers` as it was before the wait.
        await hold_states(conn, dialect, names)
    found = {}
    first, second = len(CONFIG_COLUMNS), len(CONFIG_COLUMNS) + len(STATE_COLUMNS)
    for row in (await conn.execute(statement, {"names": names_json(names)})).all():
        config, state = config_or_problem(row[:first])[0], state_of(row[first:second])
        definition, overrides, digest, version = row[second:]
        config = _with_edges(config, definition)
        found[config.name] = Stored(config, definition, overrides, digest, version, state)
    return found


def _with_edges(config: WorkerConfig, definition: Mapping[str, Any]) -> WorkerConfig:
    try:
        depends_on = tuple(Dependency(**edge) for edge in definition.get("depends_on", ()))
        blocks, limits = tuple(definition.get("blocks", ())), tuple(definition.get("limits", ()))
        return replace(config, depends_on=depends_on, blocks=blocks, limits=limits)
    except TypeError:  # somebody wrote something else there; the edges that hold are in their own tables
        return config


async def read_one(conn: AsyncConnection, dialect: Dialect, name: str, *, lock: bool = False) -> Stored:
    """Read one worker, or raise `WorkerNotFound`."""
    found = await read_stored(conn, dialect, [name], lock=lock)
    if name not in found:
        raise WorkerNotFound(name)
    return found[name]


async def write_overrides(
    conn: AsyncConnection, stored: Stored, overrides: Mapping[str, Any], now: datetime
) -> WorkerConfig:
    """Replace a worker's overrides and write the merged columns; the caller holds its state row.

    Raises:
        InvalidWorker: the merged definition does not hold together; nothing is written.
    """
    name = stored.config.name
    document = stored.definition or definitions.to_document(stored.config)
    merged = definitions.from_document(name, document, overrides)
    mine = sa.select(t.workers.c.name).where(t.workers.c.name == name)
    changed_at = await after_starts(conn, mine, now, {})
    row = _row(merged, document, stored.definition_hash, stored.definition_version, changed_at)
    await _update(conn, [{**row, "overrides": dict(overrides)}])
    await _reschedule(conn, [(stored, merged)], now)
    return merged


async def has_loop_run(conn: AsyncConnection, name: str) -> bool:
    """Say whether a run that came from the worker's schedule or loop is live."""
    r = t.runs
    statement = sa.select(r.c.id).where(
        r.c.worker == name, sa.literal_column("runs.trigger IN ('schedule', 'continuous')")
    )
    return (await conn.execute(statement)).first() is not None
