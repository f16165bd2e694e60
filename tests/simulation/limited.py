"""Lives of workers that have limits: which they are, and the judge of what the table of runs may show of them.

Some of them take the fast path (a limit of each key, a rate), the others do not. The judge looks after every commit,
and so knows in which order runs were claimed. It holds each claim against those before it, by the times that the
database has: a rate counts what it has recorded, whatever the nodes' clocks say.
"""

from __future__ import annotations

import random
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import sqlalchemy as sa

from jobrunner.storage.tables import define as t
from tests.simulation.table_judge import Violation
from tests.support.stage import T0, triggered

RETRY: dict[str, Any] = {"retry_delay_seconds": 0.5, "retry_max_delay_seconds": 4.0, "max_retries": 6}
KEYED: dict[str, Any] = {"limit_key": "customer", **RETRY}
LIMITED = (
    triggered("alone", max_retries=2, retry_delay_seconds=0.5, retry_max_delay_seconds=4.0),
    triggered("keyed", max_running=4, max_running_per_key=1, **KEYED),
    triggered("rated", max_running=4, rate="3/4s", **RETRY),
    triggered("both", max_running=3, max_running_per_key=2, rate="2/3s", **KEYED),
    triggered("even", max_running=3, rate="4/2s", smooth=True, **RETRY),
    triggered("order", max_running=3, ordered=True, **KEYED),
    triggered("fair", max_running=2, fair=True, rate_per_key="2/5s", **KEYED),
    triggered("paid", max_running=3, limits=["shared"], **RETRY),
    triggered("billed", max_running=3, limits=["shared"], rate="5/3s", **RETRY),
)
SHARED = ("paid", "billed")
SHARED_MOST = 2
PER_KEY = {"keyed": 1, "both": 2, "order": 1}
RATES = {
    ("rated", None): (3, 4.0),
    ("both", None): (2, 3.0),
    ("even", None): (1, 0.5),
    ("billed", None): (5, 3.0),
    ("shared", None): (4, 3.0),
    **{("fair", key): (2, 5.0) for key in "abc"},
}
_ACTIVE = "SELECT id, fence, worker, limit_key, started_at, is_forced FROM runs WHERE state <> 'pending'"
_BEFORE = """
SELECT min(id) FROM runs WHERE worker = ? AND limit_key = ? AND id < ? AND state = 'pending'
    AND (due_at <= ? OR first_started_at IS NOT NULL)
"""


class _Claim(NamedTuple):
    id: int
    fence: int
    worker: str
    key: str | None
    started_at: str
    is_forced: int


def a_trigger(draw: random.Random) -> dict[str, Any]:
    """Draw what a trigger says: a key, mostly, and now and then that it is forced."""
    return {"payload": {"customer": draw.choice(["a", "a", "b", "c"])}, "is_forced": draw.random() < 0.1}


async def add_shared(conn: Any) -> None:
    """Define the limit that is shared."""
    await conn.execute(sa.insert(t.limits).values(name="shared", max_running=SHARED_MOST, rate="4/3s", updated_at=T0))


class LimitJudge:
    """No more active of a key, or under the limit that is shared, than may be; no start that a rate does not allow."""

    def __init__(self, *, is_in_order: bool) -> None:
        self._is_in_order = is_in_order  # the nodes' clocks agree, so that what is due is due for all
        self._seen: set[_Claim] = set()
        self._starts: defaultdict[tuple[str, str | None], list[datetime]] = defaultdict(list)
        self.claims: Counter[str] = Counter()

    def look(self, driver: sqlite3.Connection, when: float) -> None:
        """Judge the table as it is now, against what it was."""
        found = {_Claim(*row) for row in driver.execute(_ACTIVE).fetchall()}
        if found == self._seen:
            return
        keys = Counter((claim.worker, claim.key) for claim in found if claim.key is not None)
        for (name, key), count in keys.items():
            if count > PER_KEY.get(name, count):
                raise Violation(f"{count} runs of {name} with the key {key} at {when:.3f}")
        shared = sum(claim.worker in SHARED for claim in found)
        if shared > SHARED_MOST:
            raise Violation(f"{shared} runs under the limit that is shared at {when:.3f}")
        for claim in sorted(found - self._seen, key=lambda claim: (claim.started_at, claim.is_forced)):
            self.claims[claim.worker] += 1
            self._look_at_start(claim)
            if claim.worker == "order" and self._is_in_order:
                self._look_at_order(driver, claim)
        self._seen = found

    def _look_at_start(self, claim: _Claim) -> None:
        at = datetime.fromisoformat(claim.started_at)
        for group in _groups(claim):
            if group not in RATES:
                continue
            most, seconds = RATES[group]
            before = sum(start > at - timedelta(seconds=seconds) for start in self._starts[group])
            if before >= most and not claim.is_forced:
                raise Violation(f"run {claim.id} of {claim.worker} started at {at}, after {before} that count: {group}")
            self._starts[group].append(at)

    def _look_at_order(self, driver: sqlite3.Connection, claim: _Claim) -> None:
        asked = (claim.worker, claim.key, claim.id, claim.started_at)
        (older,) = driver.execute(_BEFORE, asked).fetchone()
        if older is not None:
            raise Violation(f"run {claim.id} of {claim.worker} started before run {older}, which is older")


def _groups(claim: _Claim) -> Iterable[tuple[str, str | None]]:
    yield claim.worker, None
    if claim.key is not None:
        yield claim.worker, claim.key
    if claim.worker in SHARED:
        yield "shared", None


def together(worker: str, key: str | None) -> Iterable[tuple[str, int]]:
    """Name what an execution counts in, and how many may run at once in that."""
    if key is not None and worker in PER_KEY:
        yield f"{worker}, key {key}", PER_KEY[worker]
    if worker in SHARED:
        yield "what is shared", SHARED_MOST
