"""A full disk: the node keeps its running handlers, holds their outcomes, and writes them when there is space."""

from __future__ import annotations

import resource
import time

from tests.cluster.conftest import Start
from tests.cluster.test_outage import quiet, said
from tests.support.checker import check
from tests.support.cluster import Cluster, NodeProcess, executions, until

RUNS = 4
SPACE = 64 * 1024


def running(c: Cluster) -> int:
    return int(c.value("SELECT count(*) FROM {p}runs WHERE state = 'running'"))


def fill(c: Cluster, node: NodeProcess) -> None:
    """Let the operating system refuse the node's writes beyond the first 64 KB of a file; its log is shorter.

    The write-ahead log is longer already: by a run that is never due.
    """
    payload = "x" * SPACE * 4
    c.rows(
        "INSERT INTO runs (worker, payload, due_at)"
        f" VALUES ('work', '{{\"x\": \"{payload}\"}}', '9998-01-01 00:00:00.000000')"
    )
    resource.prlimit(node.pid, resource.RLIMIT_FSIZE, (SPACE, resource.RLIM_INFINITY))


def free(c: Cluster, node: NodeProcess) -> None:
    resource.prlimit(node.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    c.rows("DELETE FROM runs WHERE due_at > '9998'")


def test_a_full_disk_under_sqlite_is_waited_for(make: Start, sqlite_url: str, tmp_path):
    c = make(sqlite_url, tick_interval=0.5)
    (node,) = c.start(1)
    c.trigger("work", '{"seconds": 1.5}', count=RUNS)
    until(lambda: running(c) == RUNS, what="all runs run")
    fill(c, node)
    until(lambda: said(node, "the database is away") == 1, what="the node notices")
    until(lambda: sum(e.end is not None for e in executions(tmp_path / "notes")) == RUNS, what="all handlers end")
    time.sleep(1.0)
    assert c.history() == [], "nothing could be written"
    free(c, node)
    until(lambda: quiet(c), what="the outcomes are written")
    until(lambda: said(node, "the database is back") == 1, what="the node says so")
    assert [(row["outcome"], row["attempt"]) for row in c.history()] == [("succeeded", 1)] * RUNS
    assert len(executions(tmp_path / "notes")) == RUNS
    c.trigger("work", count=3)
    until(lambda: quiet(c), what="new work is done")
    assert said(node, "the database is away") == 1
    assert "Traceback" not in node.log
    assert node.process.poll() is None
    assert check(sqlite_url) == []


def test_a_full_disk_under_postgres_is_waited_for(make: Start, postgres_url: str, tmp_path):
    """The server answers every write with `disk_full`, as it does when a file cannot grow."""
    c = make(postgres_url, tick_interval=0.5)
    (node,) = c.start(1)
    c.trigger("work", '{"seconds": 1.5}', count=RUNS)
    until(lambda: running(c) == RUNS, what="all runs run")
    c.rows("""CREATE FUNCTION {p}no_space() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$""")
    for table, events in (("run_history", "INSERT"), ("nodes", "UPDATE"), ("worker_state", "UPDATE")):
        c.rows(f"CREATE TRIGGER no_space BEFORE {events} ON {{p}}{table} FOR EACH ROW EXECUTE FUNCTION {{p}}no_space()")
    until(lambda: said(node, "the database is away") == 1, what="the node notices")
    until(lambda: sum(e.end is not None for e in executions(tmp_path / "notes")) == RUNS, what="all handlers end")
    time.sleep(1.0)
    assert c.history() == [], "nothing could be written"
    c.rows("DROP FUNCTION {p}no_space CASCADE")
    until(lambda: quiet(c), what="the outcomes are written")
    until(lambda: said(node, "the database is back") == 1, what="the node says so")
    assert [(row["outcome"], row["attempt"]) for row in c.history()] == [("succeeded", 1)] * RUNS
    assert len(executions(tmp_path / "notes")) == RUNS
    c.trigger("work", count=3)
    until(lambda: quiet(c), what="new work is done")
    assert said(node, "the database is away") == 1, node.log
    assert "Traceback" not in node.log
    assert node.process.poll() is None
    assert check(postgres_url) == []
