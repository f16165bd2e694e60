from __future__ import annotations

import dataclasses
import io
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from jobrunner.storage.tables import define as t
from tests.cli.conftest import NODE, NOW, Cli
from tests.cli.test_dead_letters import letter
from tests.cli.test_reads import ended
from tests.support.postgres import PostgresServer
from tests.support.proxy import stalling


@pytest.fixture
def empty(empty_database_url, capsys):
    return Cli(empty_database_url, capsys)


@pytest.fixture
def empty_file(empty_sqlite_url, capsys):
    return Cli(empty_sqlite_url, capsys)


def test_upgrading_creates_the_schema_once(empty):
    assert empty.ok("db", "upgrade").out.startswith("upgraded the schema from nothing to ")
    assert "already" in empty.ok("db", "upgrade").out
    assert empty("db", "current", "--json").json["state"] == "current"
    assert empty.ok("db", "check").out == "the database is as expected\n"
    assert empty.row("audit_log")["action"] == "upgrade"


def test_a_missing_schema_is_exit_code_4(empty):
    result = empty("db", "current")
    assert (result.code, result.out.split()[0]) == (4, "none")
    for command in (("status",), ("trigger", "mail"), ("history",), ("db", "check"), ("admin", "enable", "x")):
        assert "run `jobrunner db upgrade`" in empty.refused(4, *command)


def test_reading_does_not_make_a_file(empty_file, tmp_path):
    for command in (("status",), ("db", "current"), ("trigger", "mail"), ("explain", "mail"), ("db", "prune")):
        assert empty_file(*command).code == 4
    assert list(tmp_path.iterdir()) == []


def test_where_there_is_no_file_the_way_to_one_is_told(empty_file, tmp_path):
    line = empty_file.refused(4, "status")
    assert f"`jobrunner run MODULE` makes it in {tmp_path / 'empty.db'}, or run `jobrunner db upgrade`" in line


def test_a_file_that_is_named_for_the_current_folder_is_told_with_its_folder(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JOBRUNNER_DATABASE_URL", raising=False)
    assert f"makes it in {tmp_path / 'jobrunner.db'}, or" in Cli("", capsys).bare("trigger", "mail").err


def test_adding_a_worker_makes_the_file(empty_file):
    empty_file.ok("admin", "add", "x", "--command", "true")
    assert [row["name"] for row in empty_file("status", "--json").json] == ["x"]


def test_a_schema_ahead_is_refused(cli):
    async def go_ahead(db, conn):
        await conn.execute(sa.text(f"UPDATE {db.schema_prefix}jobrunner_schema_version SET version_num = '9999'"))

    cli.use(go_ahead)
    for command in (("status",), ("trigger", "mail"), ("db", "upgrade")):
        assert "newer jobrunner" in cli.refused(4, *command)
    assert cli("db", "current").code == 4


def test_downgrading_to_the_beginning_removes_everything(cli):
    assert "to nothing" in cli.ok("db", "downgrade", "base", "--yes").out
    assert cli("db", "current").code == 4


def test_downgrading_asks_and_where_nobody_is_there_refuses(cli, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert "pass --yes" in cli.refused(2, "db", "downgrade", "base")
    monkeypatch.setattr("sys.stdin", None)
    assert "pass --yes" in cli.refused(2, "db", "downgrade", "base")
    assert cli("db", "current").code == 0


def test_an_empty_schema_is_taken_back_without_a_question(cli, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    cli.ok("db", "downgrade", "base", "--yes")
    cli.ok("db", "upgrade")
    assert "to nothing" in cli.ok("db", "downgrade", "base").out
    assert cli.refused(4, "db", "downgrade", "base")


def test_downgrading_is_refused_while_nodes_are_live(cli):
    cli.join("mail")
    assert "a node (host, pid 4711) is live; stop it" in cli.refused(1, "db", "downgrade", "base", "--yes")
    cli.join("mail", node=dataclasses.replace(NODE, id="node-two"))
    assert "2 nodes are live" in cli.refused(1, "db", "downgrade", "base", "--yes")
    cli.use(lambda _, conn: conn.execute(sa.update(t.nodes).values(state="stopped")))
    cli.ok("db", "downgrade", "base", "--yes")


def test_a_view_that_is_gone_is_named_in_one_line(cli):
    cli.use(lambda db, conn: conn.exec_driver_sql(f"DROP VIEW {db.schema_prefix}worker_status"))
    assert "the schema is damaged: it has no view worker_status" in cli.refused(4, "status")
    result = cli("db", "check")
    assert (result.code, result.out) == (1, "missing view worker_status\n")
    cli.ok("db", "downgrade", "base", "--yes")


def test_an_upgrade_over_tables_without_a_revision_is_refused_in_one_line(cli):
    cli.use(lambda db, conn: conn.exec_driver_sql(f"DELETE FROM {db.schema_prefix}jobrunner_schema_version"))
    cli.refused(4, "status")
    assert "has lost its row" in cli.refused(1, "db", "upgrade")


@pytest.mark.parametrize("command", [("upgrade", "0999"), ("downgrade", "0999", "--yes")])
def test_a_revision_that_does_not_exist_is_refused(sqlite_cli, command):
    assert "no schema revision '0999'" in sqlite_cli.refused(2, "db", *command)
    assert sqlite_cli("db", "current").code == 0


def test_pruning_keeps_failures_longer(cli):
    def days(number):
        return NOW - timedelta(days=number)

    lost = {"outcome": "lost", "ends_run": None}
    cli.ok("trigger", "mail")  # run 1 is live
    cli.insert(
        "run_history",
        ended(2, finished_at=days(29)),
        ended(3, finished_at=days(31)),
        ended(4, finished_at=days(31), outcome="failed", ends_run="exhausted"),
        ended(5, finished_at=days(91), outcome="failed", ends_run="exhausted"),
        ended(6, finished_at=days(89), outcome="succeeded", ends_run="discarded"),
        ended(1, worker="mail", finished_at=days(100), **lost),
        ended(7, finished_at=days(91), **lost),
        ended(None, outcome="missed", ends_run=None, occurrences=1, fence=None, finished_at=days(40)),
    )
    closed = {"status": "discarded", "resolved_by": "ann"}
    cli.insert(
        "dead_letters",
        letter(4, died_at=days(400)),
        letter(5, resolved_at=days(91), **closed),
        letter(6, resolved_at=days(3), **closed),
    )
    cli.insert(
        "audit_log",
        {"at": days(400), "actor": "x", "action": "set"},
        {"at": days(300), "actor": "x", "action": "set"},
    )
    cli.join("mail")
    pruned = cli("db", "prune", "--json").json
    counts = {
        "run_history": 4,
        "dead_letters": 1,
        "nodes": 0,
        "audit_log": 1,
        "alerts": 0,
        "batches": 0,
        "run_after": 0,
    }
    assert pruned == {**counts, "is_complete": True}
    assert [row["run_id"] for row in cli.rows("run_history")] == [2, 4, 6, 1]
    assert [row["run_id"] for row in cli.rows("dead_letters")] == [4, 6]
    assert cli.ok("db", "prune", "--history-days", "1", "--failure-days", "1").out.startswith(
        "deleted 3 of run_history"
    )
    assert [row["run_id"] for row in cli.rows("run_history")] == [1]


def test_pruning_goes_on_behind_what_it_keeps(cli, monkeypatch):
    monkeypatch.setattr("jobrunner.storage.runs.retention.prune.__defaults__", (3,))
    old = NOW - timedelta(days=40)
    rows = [ended(n, finished_at=old, outcome="failed", ends_run=None) for n in range(1, 8)]
    rows += [ended(n, finished_at=old) for n in range(8, 16)]
    cli.insert("run_history", *rows)
    assert cli("db", "prune", "--json").json["run_history"] == 8
    assert [row["run_id"] for row in cli.rows("run_history")] == list(range(1, 8))


def test_a_success_that_is_pruned_moves_the_beginning_of_the_streak(cli):
    cli.insert("run_history", ended(1, finished_at=NOW - timedelta(days=40)))
    success = cli.row("run_history")["id"]
    cli.ok("db", "prune")
    assert cli.row("worker_state", worker="fetch")["streak_since_id"] == success


def test_nodes_that_are_gone_are_pruned_unless_they_hold_runs(cli):
    for name in ("gone", "holds", "alive"):
        cli.join("mail", node=dataclasses.replace(NODE, id=name))
    claim = {"state": "running", "slot": 0, "fence": 1, "node_id": "holds", "started_at": NOW}
    cli.insert("runs", {"worker": "mail", **claim})

    async def age(db, conn):
        long_ago = NOW - timedelta(days=2)
        await conn.execute(sa.update(t.nodes).values(heartbeat_at=long_ago))
        await conn.execute(sa.update(t.nodes).where(t.nodes.c.id != "alive").values(state="lost"))

    cli.use(age)
    assert cli("db", "prune", "--json").json["nodes"] == 1
    assert sorted(row["id"] for row in cli.rows("nodes")) == ["alive", "holds"]


def test_pruning_rests_after_each_transaction_as_long_as_that_took(cli):
    import asyncio

    from jobrunner.storage.database.database import Database
    from jobrunner.storage.runs.retention import prune

    cli.insert("run_history", *(ended(n, finished_at=NOW - timedelta(days=40)) for n in (1, 2, 3)))
    rests = []

    async def rest(seconds):
        rests.append(seconds)

    async def work():
        db = Database.open(cli.url)
        pruned = await prune(db, NOW, 30, 90, rest, batch=1)
        await db.close()
        return pruned

    assert asyncio.run(work()).run_history == 3
    assert len(rests) >= 3
    assert all(0 < seconds < 5 for seconds in rests)


def test_one_process_prunes_at_a_time(postgres_url, capsys):
    import asyncio

    from jobrunner.storage.database.database import Database
    from jobrunner.storage.runs.retention import prune

    async def both():
        db = Database.open(postgres_url)
        async with db.write() as conn:
            assert await db.dialect.try_prune_lock(conn)
            pruned = await prune(db, NOW, 30, 90)
        await db.close()
        return pruned

    assert not asyncio.run(both()).is_complete


@pytest.mark.parametrize(
    ("url", "code", "words"),
    [
        ("mysql://root@localhost/x", 2, "not supported"),
        ("not a url", 2, "cannot be read"),
        ("sqlite:///nowhere/at/all/x.db", 1, "no folder"),
        ("postgresql://ann:secret@localhost:1/x", 1, "cannot be reached"),
        ("", 2, "write sqlite:///jobrunner.db or postgresql://"),
    ],
)
def test_a_database_that_cannot_be_used_is_one_line_without_the_password(
    url, code, words, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    found = Cli(url, capsys)
    line = found.refused(code, "status")
    assert words in line
    assert "secret" not in line


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://postgres:sec@ret@localhost:1/db",
        "postgresql://postgres:sec@ret/pw@localhost:1/db",
        "postgresql://ann@localhost:1/db?password=sec@ret",
        "postgresql://postgres:s?sec@ret@localhost:1/db",
        "postgresql://postgres@sec:1/ret@localhost/db",
        "postgresql://ann:x@sec?ret@localhost/db",
        "mysql://ann:sec@ret@localhost/db",
    ],
)
def test_no_part_of_a_password_that_holds_an_at_sign_is_printed(url, capsys):
    line = Cli(url, capsys).refused(2, "status")
    assert "percent-encoded, @ as %40" in line
    assert "sec" not in line
    assert "ret" not in line


def test_a_file_that_is_no_database_is_told_as_that(tmp_path, capsys):
    file = tmp_path / "x.db"
    file.write_text("this is a diary, not a database, and long enough to have a page of its own. " * 20)
    assert "no SQLite database" in Cli(f"sqlite:///{file}", capsys).refused(1, "status")


def test_a_wrong_password_is_not_printed(postgres, postgres_url, capsys):
    from sqlalchemy.engine import make_url

    url = (
        make_url(postgres_url).set(username="nobody_known", password="hush-hush").render_as_string(hide_password=False)
    )
    line = Cli(url, capsys).refused(1, "status")
    assert "hush-hush" not in line


def test_the_database_is_named_before_or_after_the_command_or_in_the_environment(sqlite_cli, monkeypatch, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert sqlite_cli.bare("--database-url", sqlite_cli.url, "status").code == 0
    assert sqlite_cli.bare("status", "--database-url", sqlite_cli.url).code == 0
    assert sqlite_cli.bare("status").code == 4
    monkeypatch.setenv("JOBRUNNER_DATABASE_URL", sqlite_cli.url)
    assert sqlite_cli.bare("status").code == 0
    assert sqlite_cli.bare("status", "--database-url", f"sqlite:///{tmp_path / 'none.db'}").code == 4
    assert list(Path(elsewhere).iterdir()) == []


def test_a_bad_variable_is_named(sqlite_cli, monkeypatch):
    monkeypatch.setenv("JOBRUNNER_LEASE", "long")
    assert "JOBRUNNER_LEASE: 'long' is no duration" in sqlite_cli.refused(2, "status")


# --- servers that are not as they should be -----------------------------------------------------------------------


@pytest.mark.parametrize("command", [("status",), ("db", "current"), ("db", "verify"), ("db", "upgrade")])
def test_a_server_that_takes_connections_and_says_nothing_ends_a_command_in_one_line(
    postgres_url: str, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
):
    with stalling(postgres_url) as proxy:
        proxy.stall()
        said = Cli(f"{proxy.url}?connect_timeout=1", capsys).refused(1, *command)
    assert "does not answer: no connection within 1 s" in said


def test_another_encoding_is_refused_in_one_line(postgres: PostgresServer, capsys: pytest.CaptureFixture[str]):
    postgres.execute("CREATE DATABASE jobrunner_cli_latin1 ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    try:
        said = Cli(postgres.url("jobrunner_cli_latin1"), capsys).refused(1, "db", "upgrade")
    finally:
        postgres.drop_database("jobrunner_cli_latin1")
    assert "has the encoding LATIN1, and jobrunner needs UTF8" in said
    assert "createdb -E UTF8 -T template0" in said
