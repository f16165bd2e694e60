"""Named limits: registering what code declares, and laying what operators set over it.

As with workers, `limits.definition` is what code said, `limits.overrides` what operators set; the columns are the two
merged. Whoever changes a limit holds the state rows of its workers and its own row, in the order in which a claim takes
them, so that no claim is decided on half of a change; and raises the revision of those workers, by which nodes judge
whether what they know still holds. The lock of registering comes first: both write rows of `workers`, in other orders.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.errors import InvalidSetting, LimitNotFound, Refused
from jobrunner.model.named_limit import LimitConfig
from jobrunner.policy.named_limits import (
    FIELDS,
    check_limit_name,
    checked_values,
    effective,
    named_by,
    refuse_unknown,
    to_document,
)
from jobrunner.policy.near import near_name
from jobrunner.storage.database import wakeups
from jobrunner.storage.records.audit import audit_row, write_audits
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.limit_tables import limits as table
from jobrunner.storage.tables.rows import names_json
from jobrunner.storage.workers.changed_at import after_starts, hold_states

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.model.worker import WorkerConfig
    from jobrunner.storage.database.database import Database
    from jobrunner.storage.database.dialect import Dialect

_NEIGHBOURS = 1000
"""So many names are compared on either side of one that there is not."""


@dataclass(frozen=True, slots=True)
class StoredLimit:
    """A limit as the database has it: what holds, and the two layers."""

    limit: LimitConfig
    definition: dict[str, Any]
    overrides: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RedefinedLimit:
    """A limit before and after an operator has changed it; `is_new`: it was made."""

    before: LimitConfig
    after: LimitConfig
    is_new: bool = False


async def are_unchanged(conn: AsyncConnection, dialect: Dialect, limits: Sequence[LimitConfig]) -> bool:
    """Say whether the database has all of these definitions as they are."""
    if not limits:
        return True
    stored = await _read_stored(conn, dialect, [limit.name for limit in limits])
    return all(limit.name in stored and stored[limit.name].definition == to_document(limit) for limit in limits)


async def read_workers(conn: AsyncConnection, dialect: Dialect, limits: Sequence[LimitConfig]) -> list[str]:
    """Return the workers that name limits whose definition is another in the database."""
    if not limits:
        return []
    stored = await _read_stored(conn, dialect, [limit.name for limit in limits])
    changed = [
        each.name for each in limits if each.name in stored and stored[each.name].definition != to_document(each)
    ]
    n = t.worker_limits
    given = dialect.rows("names", name=sa.Text())
    statement = sa.select(n.c.worker).where(n.c.limit_name.in_(sa.select(given.c.name))).distinct()
    return list((await conn.execute(statement, {"names": names_json(changed)})).scalars()) if changed else []


async def register_limits(
    conn: AsyncConnection, dialect: Dialect, limits: Sequence[LimitConfig], now: datetime, *, only_missing: bool = False
) -> list[str]:
    """Write the definitions that changed, and return their names; with `only_missing`, those that are not there.

    The caller holds the lock of registering, and the state rows of `read_workers`.
    """
    if not limits:
        return []
    written = []
    stored = await _read_stored(conn, dialect, [limit.name for limit in limits], lock=True)
    for limit in sorted(limits, key=lambda each: each.name):
        known, document = stored.get(limit.name), to_document(limit)
        if known is None:
            await _insert(conn, limit, document, {}, now)
        elif known.definition != document and not only_missing:
            await _write(conn, known, document, known.overrides, now)
        else:
            continue
        written.append(limit.name)
    return written


async def refuse_unknown_limits(conn: AsyncConnection, dialect: Dialect, configs: Iterable[WorkerConfig]) -> None:
    """Raise `InvalidWorker` for a worker that names a limit which the database does not have."""
    named = named_by(configs)
    if not named:
        return
    known = set(await _read_stored(conn, dialect, named))
    missing = next((limit for limit in named if limit not in known), None)
    if missing is not None:
        refuse_unknown(named, known, await _names_around(conn, missing))


async def set_limit(
    db: Database,
    name: str,
    values: Mapping[str, Any],
    now: datetime,
    actor: str,
    reason: str | None = None,
    *,
    is_new: bool = False,
) -> RedefinedLimit:
    """Lay `values` over a limit's definition; deploys do not undo them. With `is_new`, make the limit if there is none.

    What runs beyond a limit that was lowered may end.

    Raises:
        LimitNotFound: there is no such limit.
        InvalidSetting: a value cannot be used; nothing was changed.
    """
    checked = checked_values(check_limit_name(name), values)
    if not checked:
        raise InvalidSetting(f"limit {name!r}: nothing is set; give max_running, rate or both")
    async with db.write(is_long=True) as conn:  # 100,000 workers may name it
        known = await _hold(conn, db.dialect, name)
        if known is None and not is_new:
            raise await _not_found(conn, name)
        before = LimitConfig(name) if known is None else known.limit
        if known is None:
            after = await _insert(conn, effective(name, {}, checked), {}, checked, now)
        else:
            after = await _write(conn, known, known.definition, {**known.overrides, **checked}, now)
        old = {field: getattr(before, field) for field in checked}
        new = {field: getattr(after, field) for field in checked}
        detail = {"limit": name, "old": old, "new": new, "reason": reason, "is_new": known is None}
        await write_audits(conn, [audit_row("limit_set", None, detail, now, actor)])
        await wakeups.notify(db, conn)
        return RedefinedLimit(before, after, is_new=known is None)


async def unset_limit(
    db: Database, name: str, fields: Sequence[str], now: datetime, actor: str, reason: str | None = None
) -> RedefinedLimit:
    """Take overrides away, so that what code said holds again. Raises as `set_limit`, and `Refused` if none is set."""
    wanted = list(checked_values(check_limit_name(name), dict.fromkeys(fields)))
    if not wanted:
        raise InvalidSetting(f"limit {name!r}: no field is named; there are {', '.join(FIELDS)}")
    async with db.write(is_long=True) as conn:  # 100,000 workers may name it
        known = await _hold(conn, db.dialect, name)
        if known is None:
            raise await _not_found(conn, name)
        missing = [field for field in wanted if field not in known.overrides]
        if missing:
            raise Refused(f"limit {name!r} has no override of {', '.join(missing)}; `jobrunner admin limit {name}`")
        kept = {field: value for field, value in known.overrides.items() if field not in wanted}
        after = await _write(conn, known, known.definition, kept, now)
        old = {field: known.overrides[field] for field in wanted}
        new = {field: getattr(after, field) for field in wanted}
        detail = {"limit": name, "old": old, "new": new, "reason": reason}
        await write_audits(conn, [audit_row("limit_unset", None, detail, now, actor)])
        await wakeups.notify(db, conn)
        return RedefinedLimit(known.limit, after)


async def _hold(conn: AsyncConnection, dialect: Dialect, name: str) -> StoredLimit | None:
    """Hold all that a change of a limit needs, in the order of claims; return the limit, if there is one."""
    await dialect.lock_for_migration(conn)
    n = t.worker_limits
    workers = (await conn.execute(sa.select(n.c.worker).where(n.c.limit_name == name))).scalars().all()
    await hold_states(conn, dialect, workers)
    return (await _read_stored(conn, dialect, [name], lock=True)).get(name)


async def require_limit(conn: AsyncConnection, name: str) -> None:
    """Raise `LimitNotFound`, with the limit that was probably meant, if there is none of that name."""
    if (await conn.execute(sa.select(table.c.name).where(table.c.name == name))).first() is None:
        raise await _not_found(conn, name)


async def _not_found(conn: AsyncConnection, name: str) -> LimitNotFound:
    return LimitNotFound(name, near_name(name, await _names_around(conn, name)))


async def _names_around(conn: AsyncConnection, name: str) -> list[str]:
    before = sa.select(table.c.name).where(table.c.name < name).order_by(table.c.name.desc()).limit(_NEIGHBOURS)
    after = sa.select(table.c.name).where(table.c.name > name).order_by(table.c.name).limit(_NEIGHBOURS)
    return [*(await conn.execute(before)).scalars(), *(await conn.execute(after)).scalars()]


async def _read_stored(
    conn: AsyncConnection, dialect: Dialect, names: Collection[str], *, lock: bool = False
) -> dict[str, StoredLimit]:
    """Read limits; with `lock`, hold their rows, in the order of names."""
    given = dialect.rows("names", name=sa.Text())
    columns = (table.c.name, table.c.definition, table.c.overrides)
    statement = sa.select(*columns).where(table.c.name.in_(sa.select(given.c.name))).order_by(table.c.name)
    if lock:
        statement = statement.with_for_update(key_share=True, of=table)
    found = {}
    for row in await conn.execute(statement, {"names": names_json(names)}):
        definition, overrides = _object(row.definition), _object(row.overrides)
        found[row.name] = StoredLimit(effective(row.name, definition, overrides), definition, overrides)
    return found


def _object(document: Any) -> dict[str, Any]:
    return document if isinstance(document, dict) else {}


async def _insert(
    conn: AsyncConnection, limit: LimitConfig, document: Mapping[str, Any], overrides: Mapping[str, Any], now: datetime
) -> LimitConfig:
    values = {field: getattr(limit, field) for field in FIELDS}
    layers = {"definition": dict(document), "overrides": dict(overrides)}
    await conn.execute(sa.insert(table), {"name": limit.name, **values, **layers, "created_at": now, "updated_at": now})
    return limit


async def _write(
    conn: AsyncConnection,
    known: StoredLimit,
    document: Mapping[str, Any],
    overrides: Mapping[str, Any],
    now: datetime,
) -> LimitConfig:
    """Replace a limit's layers and write what holds; the caller holds its row."""
    limit = effective(known.limit.name, document, overrides)
    n, w = t.worker_limits, t.workers
    its_workers = sa.select(n.c.worker).where(n.c.limit_name == limit.name)
    changed_at = await after_starts(conn, its_workers, now, {})
    values = {field: getattr(limit, field) for field in FIELDS}
    layers = {"definition": dict(document), "overrides": dict(overrides)}
    await conn.execute(
        sa.update(table).where(table.c.name == limit.name).values(**values, **layers, updated_at=changed_at)
    )
    # An update of `workers` raises its revision, whatever it writes.
    await conn.execute(sa.update(w).where(w.c.name.in_(its_workers)).values(revision=w.c.revision))
    return limit
