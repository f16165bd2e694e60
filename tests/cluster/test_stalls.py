"""Connections that stall without closing, and loops that are blocked, under running nodes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.conftest import Start
from tests.cluster.test_loss import running
from tests.cluster.test_outage import quiet, said
from tests.support.checker import check
from tests.support.cluster import until
from tests.support.proxy import StallingProxy, stalling

LEASE = 12.0  # so that a node and its heartbeat wait some 4 s for an answer
LONG_ENOUGH = 90.0


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[StallingProxy]:
    with stalling(postgres_url) as proxy:
        yield proxy


@pytest.mark.parametrize(
    "words",
    ["take_turn", "worker_state", "UPDATE jobrunner.nodes", "LISTEN", "COMMIT;"],
    ids=["the turn's", "the ticks'", "the heartbeat's", "the listener's", "that of a commit"],
)
def test_a_node_outlives_a_connection_that_stalls(make: Start, proxy: StallingProxy, postgres_url: str, words: str):
    c = make(postgres_url, lease=LEASE, elsewhere=True, tick_interval=1)
    (node,) = c.start(url=proxy.url)
    c.trigger("work", count=20)
    c.trigger("alone", count=3)
    until(lambda: quiet(c), what="the first work is done")
    until(lambda: c.value("SELECT max(beat) FROM {p}nodes") >= 1, LONG_ENOUGH, what="it beats")
    if words == "COMMIT;":
        proxy.stall_at(words, forward=True)
    else:
        assert proxy.stall_those_that_said(words) >= 1
    c.trigger("work", count=20)
    c.trigger("alone", count=3)
    until(lambda: quiet(c), LONG_ENOUGH, what="all work is done")
    beat = c.value("SELECT max(beat) FROM {p}nodes")
    until(lambda: c.value("SELECT max(beat) FROM {p}nodes") >= beat + 2, LONG_ENOUGH, what="it beats on")
    assert node.process.poll() is None
    assert c.value("SELECT count(*) FROM {p}nodes WHERE state <> 'active'") == 0
    ends = c.history("ends_run IS NOT NULL")
    assert len(ends) == 46
    assert {row["attempt"] for row in ends} == {1}
    assert said(node, "the database is away") <= 1, node.log
    assert "Traceback" not in node.log
    assert check(postgres_url) == []


def test_a_node_all_of_whose_connections_stall_is_taken_over_from_and_comes_back(
    make: Start, proxy: StallingProxy, postgres_url: str
):
    c = make(postgres_url, lease=6.0, elsewhere=True, tick_interval=1)
    (stalled,) = c.start(url=proxy.url)
    c.trigger("work", '{"seconds": 60}', count=2)
    until(lambda: running(c, stalled) == 2, what="the runs run")
    (other,) = c.start()
    proxy.stall()
    until(lambda: running(c, other) == 2, LONG_ENOUGH, what="the runs run elsewhere")
    until(lambda: "all running work is stopped" in stalled.log, LONG_ENOUGH, what="the stalled node has stopped them")
    until(lambda: said(stalled, "the database is away"), LONG_ENOUGH, what="it is told")
    proxy.resume()
    until(lambda: "rejoins" in stalled.log, LONG_ENOUGH, what="the stalled node learns of it")
    c.trigger("work", count=30)
    node_id = "SELECT count(*) FROM {p}nodes WHERE state = 'active'"
    until(lambda: c.value(node_id) == 2, LONG_ENOUGH, what="both are there")
    until(lambda: c.value("SELECT count(*) FROM {p}runs") == 2, LONG_ENOUGH, what="new work is done")
    assert stalled.process.poll() is None
    assert said(stalled, "the database is away") == 1, stalled.log
    assert said(stalled, "has not ticked") == 0, stalled.log
    assert [row["outcome"] for row in c.history("run_id <= 2")] == ["lost"] * 2
    assert check(postgres_url) == []


def test_a_node_told_to_stop_leaves_although_its_connections_stall(
    make: Start, proxy: StallingProxy, postgres_url: str
):
    c = make(postgres_url, lease=LEASE, elsewhere=True, tick_interval=1)
    (node,) = c.start(url=proxy.url)
    c.trigger("work", '{"seconds": 60}', count=2)
    until(lambda: running(c, node) == 2, what="the runs run")
    proxy.stall()
    node.terminate()
    assert node.wait(LONG_ENOUGH) == 0
    assert "Traceback" not in node.log, node.log


def test_a_node_whose_loop_is_blocked_is_taken_over_from(make: Start, database_url: str):
    c = make(database_url, lease=3.0, tick_interval=1, elsewhere=True)
    one, two = c.start(2)
    c.trigger("rude", '{"seconds": 40}')
    until(lambda: running(c) == 1, what="the run runs")
    blocked, other = (one, two) if running(c, one) else (two, one)
    until(lambda: c.history("outcome = 'succeeded'"), LONG_ENOUGH, what="the run ends elsewhere")
    assert [(row["outcome"], row["node_id"]) for row in c.history()] == [
        ("lost", c.node_id(blocked)),
        ("succeeded", c.node_id(other)),
    ]
    assert said(blocked, "has not ticked for") == 1, blocked.log
    assert "its loop is blocked, by the code of rude" in blocked.log
    assert "has not ticked for" not in other.log
    assert check(database_url) == []
