"""What the terminal answers at 3 a.m.: what broke first, which letters have one cause, what became slower."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa

from jobrunner.storage.tables import define as t
from tests.cli.conftest import NOW, triggered
from tests.cli.test_reads import ended


@pytest.fixture
def broken(cli):
    """`fetch` fails since 3 h; `mail` was disabled before and `late-one` paused after that; `fine` is well."""
    cli.register(triggered("late-one"), triggered("fine"))
    cli.join("fetch", "mail", "late-one", "fine")
    cli.insert(
        "run_history",
        ended(1, finished_at=NOW - timedelta(hours=4)),
        ended(2, outcome="failed", ends_run=None, finished_at=NOW - timedelta(hours=3)),
        ended(3, outcome="failed", ends_run="exhausted", finished_at=NOW - timedelta(hours=2)),
    )
    failing = {"last_run_outcome": "failed", "consecutive_failures": 1, "last_success_at": NOW - timedelta(hours=4)}
    _put(cli, sa.update(t.worker_state).where(t.worker_state.c.worker == "fetch").values(failing))
    cli.ok("admin", "disable", "mail", "--reason", "it is Sunday")
    cli.ok("admin", "pause", "late-one")
    for worker, hours in (("mail", 5), ("late-one", 1)):
        at = NOW - timedelta(hours=hours)
        _put(cli, sa.update(t.audit_log).where(t.audit_log.c.worker == worker).values(at=at))
    return cli


def _put(cli, statement):
    cli.use(lambda db, conn: conn.execute(statement))


def test_status_says_since_when_a_worker_is_in_trouble(broken):
    since = {row["name"]: row["since"] for row in broken("status", "--json").json}
    assert datetime.fromisoformat(since["fetch"]) == NOW - timedelta(hours=3)
    assert datetime.fromisoformat(since["mail"]) == NOW - timedelta(hours=5)
    assert since["fine"] is None
    assert broken("status", "fetch", "--json").json["since"] == since["fetch"]
    lines = {line.split()[0]: line for line in broken.ok("status").lines if line}
    assert "3 h ago" in lines["fetch"]
    assert "5 h ago" in lines["mail"]


def test_what_broke_first_is_at_the_top_and_who_is_well_is_left_out(broken):
    def names(*words):
        return [row["name"] for row in broken("status", "--oldest-first", *words, "--json").json]

    assert names() == ["mail", "fetch", "late-one"]
    assert names("--limit", "1") == ["mail"]
    assert names("worker:f*") == ["fetch"]
    assert names("health:failing,paused") == ["fetch", "late-one"]
    assert [line.split()[0] for line in broken.ok("status", "--oldest-first").lines[1:4]] == [
        "mail",
        "fetch",
        "late-one",
    ]
    assert "--oldest-first" in broken.refused(2, "status", "fetch", "--oldest-first")


def test_where_nothing_is_broken_nothing_is_first(cli):
    cli.join("fetch", "mail")
    assert cli.ok("status", "--oldest-first").lines[0] == "no worker is in trouble"
