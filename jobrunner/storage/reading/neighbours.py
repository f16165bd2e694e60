"""Whom a worker depends on, who depends on it, and whom it never runs beside; each with how it is.

Bounded: of each relation the first by name, `MOST_OF_EACH` of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.storage.reading.status import read_status
from jobrunner.storage.tables import define as t

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.ext.asyncio import AsyncConnection

MOST_OF_EACH = 12
_RELATIONS = ("depends_on", "needed_by", "blocks", "blocked_by")


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another worker, how it is, and what a dependency asks: its condition, and how old that may be."""

    name: str
    health: str
    condition: str | None = None
    max_age_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The neighbours by relation, in the order of names; `more` names the relations that have others, too."""

    depends_on: tuple[Neighbour, ...]
    needed_by: tuple[Neighbour, ...]
    blocks: tuple[Neighbour, ...]
    blocked_by: tuple[Neighbour, ...]
    more: frozenset[str] = frozenset()

    @property
    def names(self) -> frozenset[str]:
        """The names of all of them."""
        return frozenset(each.name for relation in _RELATIONS for each in getattr(self, relation))


async def read_neighbours(conn: AsyncConnection, worker: str) -> Neighbours:
    """Return the neighbours of a worker."""
    d, b = t.worker_dependencies, t.worker_blocks
    nothing = (sa.null().label("condition"), sa.null().label("max_age_seconds"))
    statements = {
        "depends_on": sa.select(d.c.depends_on.label("name"), d.c.condition, d.c.max_age_seconds).where(
            d.c.worker == worker
        ),
        "needed_by": sa.select(d.c.worker.label("name"), d.c.condition, d.c.max_age_seconds).where(
            d.c.depends_on == worker
        ),
        "blocks": sa.select(b.c.blocks.label("name"), *nothing).where(b.c.worker == worker),
        "blocked_by": sa.select(b.c.worker.label("name"), *nothing).where(b.c.blocks == worker),
    }
    found: dict[str, list[Mapping[str, Any]]] = {}
    for relation, statement in statements.items():
        (name, *_) = statement.selected_columns
        rows = await conn.execute(statement.order_by(name).limit(MOST_OF_EACH + 1))
        found[relation] = [dict(row) for row in rows.mappings()]
    names = sorted({row["name"] for rows in found.values() for row in rows[:MOST_OF_EACH]})
    health = {row["name"]: row["health"] for row in await read_status(conn, names=names)} if names else {}
    told = {
        relation: tuple(
            Neighbour(row["name"], health.get(row["name"], "unknown"), row["condition"], row["max_age_seconds"])
            for row in rows[:MOST_OF_EACH]
        )
        for relation, rows in found.items()
    }
    more = frozenset(relation for relation, rows in found.items() if len(rows) > MOST_OF_EACH)
    return Neighbours(**told, more=more)
