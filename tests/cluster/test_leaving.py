"""Nodes that leave in good order: one of several is told to stop, a deploy rolls over them, the schema outgrows one."""

from __future__ import annotations

from tests.cluster.conftest import Start
from tests.support.checker import check
from tests.support.cluster import executions, until


def test_the_work_of_a_node_told_to_stop_goes_on_elsewhere_at_once(make: Start, database_url: str):
    c = make(database_url, tick_interval=60, drain_timeout=0.2, max_concurrent=4)
    one, two = c.start(2)
    c.trigger("work", '{"seconds": 3}', count=4)
    until(lambda: c.value("SELECT count(*) FROM {p}runs WHERE state = 'running'") == 4, what="all runs run")
    busy = max((one, two), key=lambda n: c.value(f"SELECT count(*) FROM {{p}}runs WHERE node_id = '{c.node_id(n)}'"))
    other = two if busy is one else one
    c.trigger("work", '{"seconds": 3}', count=4)
    busy.terminate()
    here = f"SELECT count(*) FROM {{p}}runs WHERE node_id = '{c.node_id(other)}'"
    assert until(lambda: c.value(here) == 4, what="its runs run elsewhere") < 2.0
    assert busy.wait() == 0
    assert c.value(f"SELECT state FROM {{p}}nodes WHERE id = '{c.node_id(busy)}'") == "stopped"
    until(lambda: not c.value("SELECT count(*) FROM {p}runs"), what="all runs end")
    assert {row["attempt"] for row in c.history()} == {1}
    assert {row["outcome"] for row in c.history()} == {"succeeded", "interrupted"}
    assert check(database_url) == []


def test_a_rolling_deploy_loses_and_doubles_nothing(make: Start, postgres_url: str, tmp_path):
    c = make(postgres_url, tick_interval=1, drain_timeout=5)
    old = c.start(3)
    for node in old:
        c.trigger("work", '{"seconds": 0.5}', count=20)
        node.terminate()
        c.start(1)
        assert node.wait() == 0
    until(lambda: not c.value("SELECT count(*) FROM {p}runs"), what="all runs end")
    assert [row["outcome"] for row in c.history()] == ["succeeded"] * 60
    assert len(executions(tmp_path / "notes")) == 60
    assert check(postgres_url) == []


def test_nodes_of_two_deploys_share_the_work_each_knows(make: Start, database_url: str):
    c = make(database_url, tick_interval=0.5, max_concurrent=4)
    (before,) = c.start(1, scenario="old")
    c.trigger("dropped", count=5)
    until(lambda: len(c.history()) == 5, what="the old node works alone")
    (after,) = c.start(1, scenario="new")
    c.trigger("dropped", count=5)
    c.trigger("added", count=10)
    c.trigger("shared", count=40)
    until(lambda: not c.value("SELECT count(*) FROM {p}runs"), what="all runs end")
    doers = {
        name: {row["node_id"] for row in c.history(f"worker = '{name}'")} for name in ("dropped", "added", "shared")
    }
    assert doers["dropped"] == {c.node_id(before)}
    assert doers["added"] == {c.node_id(after)}
    assert doers["shared"] <= {c.node_id(before), c.node_id(after)}
    before.terminate()
    assert before.wait() == 0
    c.trigger("dropped", count=2)
    c.trigger("added")
    until(lambda: len(c.history("worker = 'added'")) == 11, what="the new node goes on")
    assert c.value("SELECT count(*) FROM {p}runs WHERE worker = 'dropped' AND state = 'pending' AND attempt = 1") == 2
    assert {row["outcome"] for row in c.history()} == {"succeeded"}
    assert check(database_url) == []


def test_an_older_node_that_restarts_does_not_write_its_definitions_back(make: Start, database_url: str):
    c = make(database_url, tick_interval=0.5)

    def shared() -> tuple[str, float, int]:
        (row,) = c.rows("SELECT * FROM {p}workers WHERE name = 'shared'")
        return row["description"], row["timeout_seconds"], row["definition_version"]

    (before,) = c.start(1, scenario="old", version=1)
    assert shared() == ("old", 60, 1)
    c.start(1, scenario="new", version=2)
    assert shared() == ("new", 99, 2)
    before.kill()
    c.start(1, scenario="old", version=1)
    assert shared() == ("new", 99, 2)
    c.trigger("shared", count=10)
    until(lambda: len(c.history()) == 10, what="both work on")
    assert check(database_url) == []


def test_a_node_whose_schema_was_upgraded_drains_and_says_why(make: Start, database_url: str):
    c = make(database_url, lease=1.2, tick_interval=60, drain_timeout=10)
    (node,) = c.start(1)
    c.trigger("work", '{"seconds": 2}')
    until(lambda: c.value("SELECT count(*) FROM {p}runs WHERE state = 'running'") == 1, what="the run runs")
    c.rows("UPDATE {p}jobrunner_schema_version SET version_num = '9999'")
    until(lambda: "drains and leaves" in node.log, what="the node notices")
    c.trigger("work")
    assert node.wait() != 0
    assert "the database was upgraded by a newer jobrunner" in node.log
    assert [(row["outcome"], row["attempt"]) for row in c.history()] == [("succeeded", 1)]
    assert c.value("SELECT count(*) FROM {p}runs WHERE state = 'pending'") == 1
    assert c.value("SELECT state FROM {p}nodes") == "stopped"
