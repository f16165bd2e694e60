"""Limits on real nodes that are killed and stopped at random: from history none was ever passed, and nothing is lost.

The large one, 20,000 runs of 1,000 keys on eight nodes, is `scripts/chaos --limits`.
"""

from __future__ import annotations

import random

import pytest

from tests.cluster.conftest import Start
from tests.support.limited_load import OPTIONS, SHARED, harass, trigger, verdict

NODES, RUNS, KEYS = 4, 1000, 300


@pytest.mark.slow
def test_no_limit_is_passed_while_nodes_are_killed_and_stopped(make: Start, database_url: str):
    draw = random.Random(database_url)
    c = make(database_url, **OPTIONS)
    c.rows(SHARED)
    c.start(1)  # registers the workers
    c.start(NODES - 1)
    accepted = trigger(c, RUNS, KEYS, draw)
    kills, _, left = harass(c, 90, NODES, draw)
    assert left == 0
    assert kills > 0
    outcomes = {row["outcome"] for row in c.rows("SELECT DISTINCT outcome FROM {p}run_history")}
    assert "lost" in outcomes
    assert verdict(c, accepted) == []
