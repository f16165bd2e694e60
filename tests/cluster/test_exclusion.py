"""Never together, on any number of nodes: judged from `run_history` alone.

The mutation that shows that these tests can fail: with the two locking statements of `runs/claims.py` answering all
names without FOR UPDATE, and the primary key of `claims` dropped, four nodes break limits and blocks within seconds.
It is done by `test_without_the_lock_and_the_constraint_it_goes_wrong`, on PostgreSQL (on SQLite, BEGIN IMMEDIATE is the
lock and cannot be taken away from a statement).
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from datetime import datetime
from itertools import pairwise

from tests.cluster.conftest import Start
from tests.support.checker import check
from tests.support.cluster import Cluster, moment

Interval = tuple[datetime, datetime, str]
CYCLE = [(f"block-{i}", f"block-{i + 1}") for i in (0, 2, 4, 6)] + [("block-1", "block-2"), ("block-5", "block-6")]
LIMITS = {f"limit-{i}": i + 1 for i in range(4)} | {f"block-{i}": 1 for i in range(8)}


def intervals(c: Cluster) -> dict[str, list[Interval]]:
    found = defaultdict(list)
    for row in c.history("started_at IS NOT NULL"):
        found[row["worker"]].append((moment(row["started_at"]), moment(row["finished_at"]), row["node_id"]))
    return {worker: sorted(rows) for worker, rows in found.items()}


def most_at_once(rows: list[Interval]) -> int:
    changes = sorted([(start, 1) for start, _, _ in rows] + [(end, -1) for _, end, _ in rows])
    active = most = 0
    for _, change in changes:
        active += change
        most = max(most, active)
    return most


def overlaps(one: list[Interval], other: list[Interval]) -> int:
    """How many neighbours in time, one of each worker, overlap (each worker alone overlaps nothing)."""
    both = sorted([(*row, 0) for row in one] + [(*row, 1) for row in other])
    return sum(a[3] != b[3] and b[0] < a[1] for a, b in pairwise(both))


def faults(found: dict[str, list[Interval]]) -> list[str]:
    most = {name: most_at_once(found[name]) for name in LIMITS}
    passed = [f"{name}: {most[name]} at once" for name in LIMITS if most[name] > LIMITS[name]]
    return passed + [f"{a} and {b}: {n} overlaps" for a, b in CYCLE if (n := overlaps(found[a], found[b]))]


def crowd(c: Cluster, seconds: float) -> dict[str, list[Interval]]:
    """Let four nodes work on forty workers; return every attempt's interval by worker."""
    stop = threading.Event()

    def feed() -> None:
        while not stop.wait(0.2):
            for name in ("limit-0", "limit-1", "limit-2", "limit-3"):
                c.trigger(name, count=5)

    c.start(1)  # registers the workers
    feeding = threading.Thread(target=feed)
    feeding.start()
    try:
        c.start(3)
        time.sleep(seconds)
    finally:
        stop.set()
        feeding.join()
    for node in c.nodes:
        node.terminate()
    assert [node.wait() for node in c.nodes] == [0, 0, 0, 0]
    return intervals(c)


def test_blocks_and_limits_hold_on_four_nodes(make: Start, database_url: str, seconds: float):
    c = make(database_url, scenario="crowd", tick_interval=0.5, max_concurrent=12)
    found = crowd(c, seconds / 2 if seconds < 60 else seconds)
    assert faults(found) == []
    assert len(found) == 40
    assert all(len({node for *_, node in found[f"block-{i}"]}) > 1 for i in range(8)), "work moved between nodes"
    assert most_at_once(found["limit-3"]) == 4, "the limit was reached"
    assert check(database_url) == []


def test_without_the_lock_and_the_constraint_it_goes_wrong(make: Start, postgres_url: str):
    c = make(postgres_url, scenario="crowd", tick_interval=0.5, max_concurrent=12, without_locks=True)
    c.rows("ALTER TABLE {p}claims DROP CONSTRAINT pk_claims")
    c.rows("DROP INDEX {p}uq_runs_scheduled")
    assert faults(crowd(c, 4)) != []
