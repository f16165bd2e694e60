"""What workers are to each other and to named limits, as their definitions say it: checked and written.

Part of registering (`definitions`): all of it is done in the caller's transaction, which holds the state rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from jobrunner.policy.dependencies import named_elsewhere, refuse_cycles, refuse_unknown
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.rows import names_json
from jobrunner.storage.workers.named_limits import refuse_unknown_limits

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.model.worker import WorkerConfig
    from jobrunner.storage.database.dialect import Dialect


async def write_edges(
    conn: AsyncConnection, dialect: Dialect, configs: Sequence[WorkerConfig], new: Collection[str]
) -> None:
    """Write what `configs` depend on, block and are limited by; those of `new` have nothing written yet."""
    d, b, n = t.worker_dependencies, t.worker_blocks, t.worker_limits
    old = [config.name for config in configs if config.name not in new]
    if old:
        for table in (d, b, n):
            given = dialect.rows("names", name=sa.Text())
            await conn.execute(
                sa.delete(table).where(table.c.worker.in_(sa.select(given.c.name))), {"names": names_json(old)}
            )
    dependencies = [
        {
            "worker": config.name,
            "depends_on": edge.depends_on,
            "condition": str(edge.condition),
            "max_age_seconds": edge.max_age_seconds,
        }
        for config in configs
        for edge in config.depends_on
    ]
    blocks = [{"worker": config.name, "blocks": other} for config in configs for other in config.blocks]
    limits = [{"worker": config.name, "limit_name": limit} for config in configs for limit in config.limits]
    if limits:
        await conn.execute(sa.insert(n), limits)
    if dependencies:
        await conn.execute(sa.insert(d), dependencies)
    if blocks:
        await conn.execute(sa.insert(b), blocks)


async def check_relations(
    conn: AsyncConnection, dialect: Dialect, merged: Mapping[str, WorkerConfig], in_code: Iterable[str]
) -> None:
    """Refuse relations to what there is not, and circles.

    Raises:
        InvalidWorker: a worker or a limit is named that is known neither in code nor in the database.
        DependencyCycle: workers would wait for each other in a circle.
    """
    named = named_elsewhere(merged)
    refuse_unknown(named, await existing_names(conn, dialect, named), in_code)
    await refuse_unknown_limits(conn, dialect, merged.values())
    if any(config.depends_on for config in merged.values()):
        d = t.worker_dependencies
        edges: dict[str, list[str]] = {}
        for worker, other in await conn.execute(sa.select(d.c.worker, d.c.depends_on)):
            edges.setdefault(worker, []).append(other)
        edges.update({name: [edge.depends_on for edge in config.depends_on] for name, config in merged.items()})
        refuse_cycles(edges, merged)


async def existing_names(conn: AsyncConnection, dialect: Dialect, names: Collection[str]) -> set[str]:
    """Return those of `names` that the database knows."""
    if not names:
        return set()
    given = dialect.rows("names", name=sa.Text())
    statement = sa.select(t.workers.c.name).join(given, given.c.name == t.workers.c.name)
    return set((await conn.execute(statement, {"names": names_json(names)})).scalars())
