"""Limits on real nodes that are killed and stopped at random: from history none was ever passed, and nothing is lost.

The large one, 20,000 runs of 1,000 keys on eight nodes, is `scripts/chaos --limits`.
"""

from __future__ import annotations

import random

import pytest

from tests.cluster.conftest import Start
from tests.support.cluster import Cluster, until
from tests.support.limited_load import OPTIONS, SHARED, harass, trigger, verdict

NODES, RUNS, KEYS = 4, 1000, 300


def lose_one(c: Cluster) -> int:
    """Trigger a run that takes long, kill the node that runs it, and start another; return the run's id."""
    long = """INSERT INTO {p}runs (worker, payload) VALUES ('keyed', '{"customer": -1, "seconds": 5.0}') RETURNING id"""
    run_id: int = c.value(long)
    holder = f"SELECT n.pid FROM {{p}}runs r JOIN {{p}}nodes n ON n.id = r.node_id WHERE r.id = {run_id}"
    until(lambda: c.rows(holder), what="the long run runs")
    pid = c.value(holder)
    next(node for node in c.nodes if node.pid == pid).kill()
    c.start(1, wait=False)
    return run_id


@pytest.mark.slow
def test_no_limit_is_passed_while_nodes_are_killed_and_stopped(make: Start, database_url: str):
    draw = random.Random(7)
    c = make(database_url, **OPTIONS)
    c.rows(SHARED)
    c.start(1)  # registers the workers
    c.start(NODES - 1)
    accepted = [lose_one(c), *trigger(c, RUNS, KEYS, draw)]
    _, _, left = harass(c, 90, NODES, draw)
    assert left == 0
    outcomes = {row["outcome"] for row in c.rows("SELECT DISTINCT outcome FROM {p}run_history")}
    assert "lost" in outcomes
    assert verdict(c, accepted) == []
