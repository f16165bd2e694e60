"""A firing happens once, on however many nodes."""

from __future__ import annotations

import time

from tests.cluster.conftest import Start
from tests.support.checker import check


def test_a_schedule_of_one_second_fires_once_a_second_on_five_nodes(make: Start, database_url: str, seconds: float):
    c = make(database_url, scenario="clock", tick_interval=0.3)
    c.start(5)
    before = c.value("SELECT count(*) FROM {p}run_history")
    time.sleep(seconds)
    fired = c.value("SELECT count(*) FROM {p}run_history") - before
    times = [row["scheduled_for"] for row in c.history("outcome <> 'missed'")]
    assert abs(fired - seconds) <= 1
    assert len(set(times)) == len(times)
    assert c.history("outcome = 'missed'") == []
    assert check(database_url) == []
