"""The database goes away under running nodes, in each way a database does, and comes back."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import asyncpg
from sqlalchemy.engine import make_url

from tests.cluster.conftest import Start
from tests.support.checker import check
from tests.support.cluster import Cluster, NodeProcess, executions, until
from tests.support.postgres import LocalPostgres, take_all_connections

LEASE = 2.0


def said(node: NodeProcess, words: str) -> int:
    return node.log.count(words)


def quiet(c: Cluster) -> bool:
    return not c.value("SELECT count(*) FROM {p}runs")


def test_a_database_down_for_twice_the_lease_loses_nobody_and_uses_up_no_attempt(
    make: Start, restartable_postgres: LocalPostgres, restartable_postgres_url: str
):
    c = make(restartable_postgres_url, lease=LEASE, elsewhere=True, tick_interval=1)
    nodes = c.start(3)
    c.trigger("work", '{"seconds": 3}', count=6)
    c.trigger("stubborn", '{"seconds": 3}', count=3)
    until(lambda: c.value("SELECT count(*) FROM {p}runs WHERE state = 'running'") == 9, what="all runs run")
    restartable_postgres.stop("immediate")
    time.sleep(LEASE * 2)
    restartable_postgres.start()
    until(lambda: quiet(c), what="all runs end")
    assert c.value("SELECT count(*) FROM {p}nodes WHERE state <> 'active'") == 0
    assert c.value("SELECT count(*) FROM {p}nodes") == 3
    assert {row["attempt"] for row in c.history()} == {1}
    assert {row["outcome"] for row in c.history()} <= {"succeeded", "interrupted"}
    told = [row["outcome"] for row in c.history("worker = 'stubborn'")]  # to stop, and ended after that
    assert set(told) == {"interrupted", "succeeded"}, "their outcomes were held, and they were given back"
    assert told.count("succeeded") == 3
    for node in nodes:
        assert node.process.poll() is None
        assert said(node, "the database is away") == said(node, "the database is back") == 1, node.log
    assert check(restartable_postgres_url) == []


def test_a_short_restart_is_not_felt_by_running_handlers(
    make: Start, restartable_postgres: LocalPostgres, restartable_postgres_url: str, tmp_path: Path
):
    c = make(restartable_postgres_url, lease=30, tick_interval=1)
    c.start(2)
    c.trigger("work", '{"seconds": 2}', count=6)
    until(lambda: c.value("SELECT count(*) FROM {p}runs WHERE state = 'running'") == 6, what="all runs run")
    restartable_postgres.restart("immediate")
    until(lambda: quiet(c), what="all runs end")
    assert [row["outcome"] for row in c.history()] == ["succeeded"] * 6
    assert len(executions(tmp_path / "notes")) == 6
    c.trigger("work", count=4)
    until(lambda: quiet(c), what="new work is done")
    assert check(restartable_postgres_url) == []


def test_killed_connections_lose_nothing_and_fill_no_log(
    make: Start, restartable_postgres: LocalPostgres, restartable_postgres_url: str
):
    c = make(restartable_postgres_url, lease=3.0, elsewhere=True, tick_interval=0.2)
    nodes = c.start(2)
    for _ in range(10):
        c.trigger("work", '{"seconds": 0.3}', count=5)
        restartable_postgres.terminate_connections(restartable_postgres_url)
        time.sleep(0.3)
    until(lambda: quiet(c), what="all runs end")
    ended = c.history("ends_run IS NOT NULL")
    assert [row["ends_run"] for row in ended] == ["succeeded"] * 50
    for node in nodes:
        assert node.process.poll() is None
        assert said(node, "the database is away") <= 2, node.log
        assert "Traceback" not in node.log
    assert check(restartable_postgres_url) == []


async def test_used_up_connections_are_waited_for(
    make: Start, restartable_postgres: LocalPostgres, restartable_postgres_url: str
):
    c = make(restartable_postgres_url, lease=2.0, elsewhere=True, tick_interval=0.2)
    (node,) = c.start(1)
    url = make_url(restartable_postgres_url).set(drivername="postgresql").render_as_string(False)
    hogs: list[asyncpg.Connection] = []
    try:
        await take_all_connections(url, hogs)
        until(lambda: said(node, "the database is away") == 1, what="the node notices")
        await asyncio.sleep(2.5)
    finally:
        for hog in hogs:
            hog.terminate()
    until(lambda: said(node, "the database is back") == 1, what="the node is back")
    c.trigger("work", count=3)
    until(lambda: quiet(c), what="work is done")
    assert node.process.poll() is None
    assert check(restartable_postgres_url) == []


def test_a_locked_sqlite_file_is_waited_for(make: Start, sqlite_url: str):
    c = make(sqlite_url, lease=4.0, tick_interval=0.5)
    nodes = c.start(2)
    c.trigger("work", '{"seconds": 1}', count=4)
    until(lambda: c.value("SELECT count(*) FROM runs WHERE state = 'running'") == 4, what="all runs run")
    with closing(sqlite3.connect(str(make_url(sqlite_url).database), isolation_level=None, timeout=10)) as other:
        other.execute("BEGIN EXCLUSIVE")
        time.sleep(8.0)
        other.execute("ROLLBACK")
    until(lambda: quiet(c), what="all runs end")
    assert {row["outcome"] for row in c.history()} <= {"succeeded", "interrupted"}
    assert {row["attempt"] for row in c.history()} == {1}
    assert [node.process.poll() for node in nodes] == [None, None]
    assert all(said(node, "the database is away") <= 1 for node in nodes)
    assert c.value("SELECT count(*) FROM nodes WHERE state = 'lost'") == 0
    assert check(sqlite_url) == []


def test_behind_a_pooler_nodes_poll(make: Start, postgres_url: str):
    c = make(postgres_url, tick_interval=0.3, pooler="transaction")
    c.start(2)
    c.trigger("work", count=20)
    until(lambda: quiet(c), what="all runs end")
    assert c.value("SELECT count(*) FROM pg_stat_activity WHERE query ILIKE 'LISTEN%'") == 0
    assert check(postgres_url) == []
