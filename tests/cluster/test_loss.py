"""Nodes that die, and nodes that only seem to."""

from __future__ import annotations

import signal
import time

import pytest

from tests.cluster.conftest import Start
from tests.support.checker import check
from tests.support.cluster import Cluster, NodeProcess, until

LEASE = 2.0


def running(c: Cluster, node: NodeProcess | None = None) -> int:
    where = "" if node is None else f" AND node_id = '{c.node_id(node)}'"
    return int(c.value(f"SELECT count(*) FROM {{p}}runs WHERE state = 'running'{where}"))


def test_the_runs_of_a_killed_node_run_elsewhere_within_the_lease(make: Start, postgres_url: str):
    c = make(postgres_url, lease=LEASE, elsewhere=True, tick_interval=60)
    nodes = c.start(3)
    c.trigger("work", '{"seconds": 30}', count=9)
    until(lambda: running(c) == 9, what="all runs run")
    victim = max(nodes, key=lambda node: running(c, node))
    held = {row["id"] for row in c.rows(f"SELECT id FROM {{p}}runs WHERE node_id = '{c.node_id(victim)}'")}
    gone = c.node_id(victim)
    victim.kill()
    ids = ", ".join(str(run_id) for run_id in held)
    elsewhere = f"SELECT count(*) FROM {{p}}runs WHERE id IN ({ids}) AND state = 'running' AND node_id <> '{gone}'"
    took = until(lambda: c.value(elsewhere) == len(held), what="its runs run elsewhere")
    assert took < LEASE + 2
    assert took > LEASE * 0.7, "nobody was declared lost on a guess"
    assert [row["outcome"] for row in c.history()] == ["lost"] * len(held)
    assert c.value(f"SELECT state FROM {{p}}nodes WHERE id = '{gone}'") == "lost"
    assert check(postgres_url) == []


def test_after_a_restart_on_the_same_host_its_runs_run_at_once(make: Start, database_url: str):
    c = make(database_url, tick_interval=60)
    (node,) = c.start()
    c.trigger("work", '{"seconds": 30}', count=3)
    until(lambda: running(c) == 3, what="all runs run")
    took: list[float] = []
    while len(took) < 2 and min(took, default=9) >= 1.0:  # on a busy machine one start may be slow
        node.kill()
        (node,) = c.start()
        took.append(until(lambda new=node: running(c, new) == 3, what="its runs run again"))
    assert min(took) < 1.0
    assert check(database_url) == []


def test_neighbours_on_the_same_host_need_no_lease(make: Start, database_url: str):
    c = make(database_url, lease=4.0, tick_interval=60)
    one, two = c.start(2)
    c.trigger("work", '{"seconds": 30}', count=4)
    until(lambda: running(c) == 4, what="all runs run")
    victim, other = (one, two) if running(c, one) else (two, one)
    victim.kill()
    assert until(lambda: running(c, other) == 4, what="all run on the one that is left") < 2.0
    assert check(database_url) == []


def test_a_node_stopped_past_its_lease_writes_nothing_when_it_goes_on(make: Start, postgres_url: str):
    c = make(postgres_url, lease=LEASE, elsewhere=True, tick_interval=1)
    one, two = c.start(2)
    c.trigger("alone", '{"seconds": 1.5}')
    until(lambda: running(c) == 1, what="the run runs")
    stale, other = (one, two) if running(c, one) else (two, one)
    was = c.node_id(stale)
    stale.signal(signal.SIGSTOP)
    until(lambda: running(c, other) == 1, what="the run runs elsewhere")
    stale.signal(signal.SIGCONT)
    until(lambda: "was declared lost" in stale.log, what="the stale node learns of it")
    until(lambda: c.node_id(stale) != was, what="the stale node joins anew")
    until(lambda: not c.value("SELECT count(*) FROM {p}runs"), what="the run ends")
    rows = c.history()
    assert [(row["outcome"], row["attempt"]) for row in rows] == [("lost", 1), ("succeeded", 2)]
    assert [row["node_id"] for row in rows] == [was, c.node_id(other)]
    c.trigger("alone", count=3)
    until(lambda: len(c.history()) == 5, what="both go on")
    assert check(postgres_url) == []


def test_a_thread_that_cannot_be_stopped_is_refused_its_late_outcome(make: Start, postgres_url: str):
    c = make(postgres_url, lease=LEASE, elsewhere=True, tick_interval=1)
    one, two = c.start(2)
    c.trigger("stubborn", '{"seconds": 2.5}')
    until(lambda: running(c) == 1, what="the run runs")
    stale, other = (one, two) if running(c, one) else (two, one)
    stale.signal(signal.SIGSTOP)
    until(lambda: running(c, other) == 1, what="the run runs elsewhere")
    stale.signal(signal.SIGCONT)
    until(lambda: "was taken away" in stale.log, what="the stale outcome is refused")
    until(lambda: not c.value("SELECT count(*) FROM {p}runs"), what="the run ends")
    assert [row["outcome"] for row in c.history()] == ["lost", "succeeded"]
    assert check(postgres_url) == []


def test_a_poison_run_takes_three_nodes_and_no_more(make: Start, database_url: str):
    c = make(database_url, tick_interval=1, lease=3.0)
    nodes = c.start(4)
    c.trigger("poisonous")
    until(lambda: c.value("SELECT count(*) FROM {p}dead_letters") == 1, what="the run is given up")
    assert sum(node.process.poll() == -signal.SIGKILL for node in nodes) == 3
    assert [(row["outcome"], row["ends_run"]) for row in c.history()] == [
        ("lost", None),
        ("lost", None),
        ("lost", "exhausted"),
    ]
    c.trigger("work")
    until(lambda: c.history("worker = 'work'"), what="the fourth goes on")
    assert check(database_url) == []


@pytest.mark.parametrize("pause", [LEASE * 2])
def test_all_nodes_stopped_together_lose_nobody(make: Start, postgres_url: str, pause: float):
    c = make(postgres_url, lease=LEASE, elsewhere=True, tick_interval=1)
    nodes = c.start(3)
    c.trigger("work", '{"seconds": 1}', count=6)
    until(lambda: running(c) == 6, what="all runs run")
    for node in nodes:
        node.signal(signal.SIGSTOP)
    time.sleep(pause)
    for node in nodes:
        node.signal(signal.SIGCONT)
    until(lambda: not c.value("SELECT count(*) FROM {p}runs"), what="all runs end")
    assert {row["outcome"] for row in c.history()} <= {"succeeded", "interrupted"}
    assert c.value("SELECT count(*) FROM {p}nodes WHERE state = 'lost'") == 0
    assert check(postgres_url) == []
