"""Looking for what may start: read what is due, without a lock, and let the gates decide."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from jobrunner.policy.fast_path import find_eligible
from jobrunner.policy.gates import decide_starts
from jobrunner.policy.limit_gates import Limits
from jobrunner.storage.runs import facts as reading

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    from jobrunner.policy.fast_path import Eligible
    from jobrunner.storage.database.database import Database

SMALLEST_PAGE = 16


@dataclass(frozen=True, slots=True)
class Claimer:
    """Who claims: the node, and the workers it can run."""

    node_id: str
    here: reading.Here


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at the database, without a lock, has found: workers whose work may start, and what is tied to them.

    `page`: how many due schedules of each priority were read at most; `has_more`: there are more of them. `has_shared`:
    one of the workers shares a limit.
    """

    wanted: frozenset[str]
    page: int
    edges: reading.Edges = field(default_factory=reading.Edges.none)
    has_more: bool = False
    has_slots: bool = True
    eligible: Eligible | None = None
    next_due_at: datetime | None = None
    is_ahead: bool | None = None
    has_shared: bool = False

    @property
    def is_all_eligible(self) -> bool:
        """Say whether all that may start may take the fast path."""
        return bool(self.wanted) and self.eligible is not None and self.wanted <= self.eligible.configs.keys()


async def look(
    db: Database,
    claimer: Claimer,
    free_slots: int,
    now: datetime,
    *,
    page: int | None = None,
    is_looking: bool = False,
    aside: Collection[str] = (),
    settled: Collection[str] = (),
    only: str | None = None,
) -> Look:
    """Look, without a lock, what may start.

    Args:
        db: the database.
        claimer: the node and its handlers.
        free_slots: how many runs the node can take.
        now: the time, UTC.
        page: how many due schedules of each priority are read at most.
        is_looking: ask also, if nothing is due, whether any wait seems to have begun ahead of now.
        aside: workers of which nothing is claimed.
        settled: workers whose waiting runs a turn has just looked at: there is nothing of them to claim.
        only: look at this worker alone.
    """
    page = page or max(SMALLEST_PAGE, free_slots)
    async with db.peek() as conn:
        due = await reading.read_due(conn, db.dialect, now, page, is_looking=is_looking, settled=settled)
        names = due.names.difference(aside) if only is None else due.names & {only}
        if not names and not due.has_more:
            next_at = due.next_at if not due.names else await reading.next_due_at(conn, db.dialect, now)
            return Look(frozenset(), page, next_due_at=next_at, is_ahead=due.is_ahead)
        if free_slots <= 0:
            return Look(frozenset(), page, has_more=due.has_more, has_slots=False)
        facts, edges = await reading.read_around(conn, db.dialect, now, names, claimer.here, free_slots)
        wanted = frozenset(start.worker for start in decide_starts(facts))
        eligible = None if due.has_more else find_eligible(facts, set(wanted))
        next_due_at = None if wanted else await reading.next_due_at(conn, db.dialect, now)
        opens_at = Limits(facts).opens_at() if facts.rated_at is not None and not wanted else None
        if opens_at is not None:  # a rate
            next_due_at = opens_at if next_due_at is None else min(next_due_at, opens_at)
        seen = Look(wanted, page, edges, due.has_more, eligible=eligible, next_due_at=next_due_at)
        return replace(seen, has_shared=bool(facts.limits))
