"""The schema: its four states, upgrades, and what the database itself promises to a bare SQL shell."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory

from jobrunner.errors import DatabaseError, SchemaAhead, SchemaBehind, SchemaMissing, UsageError
from jobrunner.storage.database.database import Database
from jobrunner.storage.schema import migrate as schema
from jobrunner.storage.schema import revisions
from jobrunner.storage.schema.revisions import SchemaState
from jobrunner.storage.tables import define as t
from tests.support.shell import Shell, ShellError

A_WORKER = (
    "INSERT INTO {p}workers (name, handler, execution_mode, definition_hash) VALUES ('w', 'm:f', 'triggered', 'x')"
)
NAME_WORKERS = (
    "runs_refuse_unknown_worker",
    "runs_fill_priority",
    "runs_fill_limit_key",
    "runs_keep_priority",
    "worker_dependencies_refuse_unknown",
    "worker_blocks_refuse_unknown",
    *(
        f"{table}_raise_revision_{event}"
        for table in ("worker_dependencies", "worker_blocks", "worker_limits")
        for event in ("insert", "update", "delete")
    ),
)
NOT_UNIQUE = r"(?i)unique"
TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}"


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    db = Database.open(database_url)
    yield db
    await db.close()


@pytest.fixture
async def empty(empty_database_url: str) -> AsyncIterator[Database]:
    db = Database.open(empty_database_url)
    yield db
    await db.close()


HEAD = revisions.known()[0]
NEXT = f"{int(HEAD) + 1:04}"
"""The newest revision, and that of a migration that a test adds."""


@pytest.fixture
def shell(database_url: str, request: pytest.FixtureRequest) -> Shell:
    """A bare shell on a migrated database with one worker, `w`."""
    server = None if database_url.startswith("sqlite") else request.getfixturevalue("postgres")
    shell = Shell(database_url, server)
    shell.run(A_WORKER)
    return shell


@pytest.fixture
def more_revisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of migrations to which a test may add; the program takes it for its own."""
    folder = Path(shutil.copytree(revisions.migrations_dir(), tmp_path / "migrations"))
    monkeypatch.setattr(revisions, "migrations_dir", lambda: folder)
    revisions.known.cache_clear()
    monkeypatch.setattr(revisions, "known", revisions.known.__wrapped__)
    return folder / "versions"


def add_revision(folder: Path, number: str, down: str, *lines: str) -> None:
    text = f"""
        import sqlalchemy as sa
        from alembic import op

        revision, down_revision, branch_labels, depends_on = "{number}", "{down}", None, None


        def downgrade():
            pass


        def upgrade():
    """
    body = "".join(f"    {line}\n" for line in lines)
    (folder / f"{number}_more.py").write_text(textwrap.dedent(text).rstrip(" ") + body)


# --- states -------------------------------------------------------------------------------------------------------


async def test_an_empty_database_is_missing_and_stays_empty(empty, tmp_path):
    found = await revisions.status(empty)
    assert (found.state, found.current, found.head) == (SchemaState.MISSING, None, HEAD)
    with pytest.raises(SchemaMissing, match="jobrunner db upgrade"):
        await revisions.require_current(empty)
    assert list(tmp_path.iterdir()) == []


def test_the_revisions_read_from_their_texts_are_those_that_alembic_knows(more_revisions):
    add_revision(more_revisions, NEXT, HEAD, "pass")
    scripts = ScriptDirectory(str(revisions.migrations_dir()))
    head, known = revisions.known()
    assert (head, set(known)) == (scripts.get_current_head(), {script.revision for script in scripts.walk_revisions()})


async def test_an_empty_file_is_missing(tmp_path):
    (tmp_path / "x.db").touch()
    db = Database.open(f"sqlite:///{tmp_path}/x.db")
    assert (await revisions.status(db)).state is SchemaState.MISSING
    await db.close()


async def test_an_upgraded_database_is_current(empty):
    before, after = await schema.upgrade(empty, actor="tester")
    assert (before.state, after.state) == (SchemaState.MISSING, SchemaState.CURRENT)
    await revisions.require_current(empty)
    async with empty.peek() as conn:
        audit = (await conn.execute(sa.select(t.audit_log.c.actor, t.audit_log.c.action, t.audit_log.c.detail))).all()
    assert audit == [("tester", "upgrade", {"from": None, "to": HEAD})]
    assert await schema.upgrade(empty) == (after, after)


async def test_a_database_below_the_newest_revision_is_behind(db, more_revisions):
    add_revision(more_revisions, NEXT, HEAD, "pass")
    found = await revisions.status(db)
    assert (found.state, found.current, found.head) == (SchemaState.BEHIND, HEAD, NEXT)
    with pytest.raises(SchemaBehind, match="jobrunner db upgrade"):
        await revisions.require_current(db)
    await schema.upgrade(db)
    assert (await revisions.status(db)).state is SchemaState.CURRENT


async def test_a_database_of_a_newer_jobrunner_is_ahead_and_left_alone(db):
    async with db.write() as conn:
        await conn.exec_driver_sql(f"UPDATE {db.schema_prefix}{revisions.VERSION_TABLE} SET version_num = '9999'")
    assert (await revisions.status(db)).state is SchemaState.AHEAD
    with pytest.raises(SchemaAhead, match="9999"):
        await revisions.require_current(db)
    for change in (schema.upgrade(db), schema.downgrade(db, "base")):
        with pytest.raises(SchemaAhead):
            await change
    async with db.peek() as conn:
        assert (await conn.execute(sa.select(sa.func.count()).select_from(t.workers))).scalar() == 0


# --- upgrading ----------------------------------------------------------------------------------------------------


async def test_migrations_and_tables_agree(db):
    assert await schema.check(db) == []


async def test_check_tells_what_differs(db):
    async with db.write() as conn:
        await conn.exec_driver_sql(f"DROP INDEX {db.schema_prefix}ix_runs_due_at")
        await conn.exec_driver_sql(f"ALTER TABLE {db.schema_prefix}nodes ADD COLUMN extra text")
    differences = await schema.check(db)
    assert len(differences) == 2
    assert "add_index runs ix_runs_due_at" in differences
    assert any(difference.startswith("remove_column") and "extra" in difference for difference in differences)


async def all_parts(db):
    """What a new schema has that can be dropped, read without the list that the program has."""
    if db.is_sqlite:
        select = "SELECT type, name, tbl_name FROM sqlite_master WHERE type IN ('view', 'trigger')"
    else:
        select = """
            SELECT 'view', viewname, '' FROM pg_views WHERE schemaname = 'jobrunner'
            UNION ALL SELECT 'function', proname, '' FROM pg_proc WHERE pronamespace = 'jobrunner'::regnamespace
            UNION ALL SELECT 'sequence', sequencename, '' FROM pg_sequences
                WHERE schemaname = 'jobrunner' AND sequencename NOT LIKE '%_id_seq'
            UNION ALL SELECT 'trigger', tgname, tgrelid::regclass::text FROM pg_trigger WHERE NOT tgisinternal
        """
    async with db.read() as conn:
        return [tuple(row) for row in await conn.exec_driver_sql(select)]


async def test_check_names_every_part_that_is_missing(db):
    parts = await all_parts(db)
    assert len(parts) >= 7
    async with db.write() as conn:
        for kind, name, table in sorted(parts, key=lambda part: part[0] == "function"):  # triggers first: they use them
            place = f" ON {table}" if kind == "trigger" and not db.is_sqlite else ""
            whole = name if place else f"{db.schema_prefix}{name}"
            await conn.exec_driver_sql(f"DROP {kind} {whole}{place}")
    assert sorted(await schema.check(db)) == sorted(f"missing {kind} {name}" for kind, name, _ in parts)


async def test_a_damaged_schema_can_be_taken_away_and_made_anew(db):
    parts = await all_parts(db)
    async with db.write() as conn:
        for kind, name, _ in parts:
            if kind in {"view", "function"}:
                await conn.exec_driver_sql(
                    f"DROP {kind} {db.schema_prefix}{name} CASCADE"[: None if not db.is_sqlite else -8]
                )
        await conn.exec_driver_sql(f"DROP TABLE {db.schema_prefix}node_handlers")
    await schema.downgrade(db, "base")
    await schema.upgrade(db)
    assert await schema.check(db) == []


async def test_tables_whose_revision_is_lost_are_left_alone(db, shell):
    shell.run("DELETE FROM {p}jobrunner_schema_version")
    with pytest.raises(DatabaseError, match="has lost its row: insert the version_num again"):
        await schema.upgrade(db)
    assert shell.one("SELECT count(*) FROM {p}workers") == "1"


async def test_another_schema_name_holds_everything(empty_postgres_url, postgres):
    db = Database.open(empty_postgres_url, schema="other_name")
    await schema.upgrade(db)
    assert await schema.check(db) == []
    found = postgres.execute(
        "SELECT DISTINCT schemaname FROM pg_tables WHERE schemaname !~ '^(pg_|information_schema)'",
        sa.make_url(empty_postgres_url).database,
    )
    assert found == "other_name"
    async with db.write() as conn:
        await conn.execute(
            sa.insert(t.workers), {"name": "w", "handler": "h", "execution_mode": "triggered", "definition_hash": "x"}
        )
        await conn.execute(sa.insert(t.runs), {"worker": "w"})
        assert (await conn.execute(sa.select(t.runs.c.priority))).scalar_one() == 1
    await schema.downgrade(db, "base")
    await db.close()


def test_there_is_one_head_and_files_sort_in_their_order():
    scripts = ScriptDirectory.from_config(schema._config())
    assert len(scripts.get_heads()) == 1
    in_order = [Path(script.path).name for script in reversed(list(scripts.walk_revisions()))]
    assert in_order == sorted(in_order)
    assert all(re.fullmatch(r"\d{4}_[a-z0-9_]+\.py", name) for name in in_order)


def test_revisions_import_nothing_of_the_program():
    for path in (revisions.migrations_dir() / "versions").glob("*.py"):
        assert "jobrunner" not in [
            line.split()[1].split(".")[0] for line in re.findall(r"^(?:import|from) .*", path.read_text(), re.MULTILINE)
        ]


async def test_several_processes_upgrade_at_once_and_one_does_it(empty):
    program = """
        import sys
        from jobrunner.storage.schema.migrate import upgrade_database

        sys.stdin.readline()
        upgrade_database(sys.argv[1])
    """
    url = empty.url.render_as_string(hide_password=False)
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(program), url]
    pipe = asyncio.subprocess.PIPE
    processes = [await asyncio.create_subprocess_exec(*command, stdin=pipe, stderr=pipe) for _ in range(6)]
    errors = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
    assert [error for _, error in errors] == [b""] * 6
    assert [process.returncode for process in processes] == [0] * 6
    async with empty.peek() as conn:
        assert (await conn.execute(sa.select(sa.func.count()).select_from(t.audit_log))).scalar() == 1


async def test_tasks_of_one_process_may_upgrade_different_databases_at_once(tmp_path):
    databases = [Database.open(f"sqlite:///{tmp_path}/{n}.db") for n in range(3)]
    done = await asyncio.gather(*(schema.upgrade(db) for db in databases for _ in range(2)))
    assert sorted(before.state for before, _ in done) == ["current"] * 3 + ["missing"] * 3


async def test_down_and_up_again_with_data(db, shell):
    fill(shell)
    shell.run("UPDATE {p}nodes SET state = 'stopped'")
    _, after = await schema.downgrade(db, "base")
    assert after.state is SchemaState.MISSING
    tables = (
        "sqlite_master WHERE type IN ('table', 'view')"
        if db.is_sqlite
        else "pg_class WHERE relkind IN ('r', 'v', 'S') AND relnamespace = 'jobrunner'::regnamespace"
    )
    left = {name for (name,) in shell.run(f"SELECT {'name' if db.is_sqlite else 'relname'} FROM {tables}")}
    assert left - {"sqlite_sequence"} == {revisions.VERSION_TABLE}
    await schema.upgrade(db)
    assert await schema.check(db) == []
    shell.run(A_WORKER)
    fill(shell)


async def test_a_revision_that_does_not_exist_is_bad_input(db):
    with pytest.raises(UsageError, match="no schema revision '0099'"):
        await schema.downgrade(db, "0099")
    assert (await revisions.status(db)).state is SchemaState.CURRENT


async def test_an_empty_database_cannot_be_downgraded(empty, tmp_path):
    with pytest.raises(SchemaMissing):
        await schema.downgrade(empty, "base")
    assert (await revisions.status(empty)).state is SchemaState.MISSING
    assert list(tmp_path.iterdir()) == []


async def test_an_upgrade_that_fails_changes_nothing(db, shell, more_revisions):
    drop = f"op.execute('DROP TABLE {shell.prefix}audit_log')"
    add_revision(more_revisions, NEXT, HEAD, drop, "raise LookupError('half way')")
    with pytest.raises(LookupError):
        await schema.upgrade(db)
    assert (await revisions.status(db)).current == HEAD
    shell.run("SELECT * FROM {p}audit_log")


async def test_rebuilding_a_table_on_sqlite_keeps_what_points_to_it(sqlite_url, more_revisions):
    shell = Shell(sqlite_url)
    shell.run(A_WORKER)
    fill(shell)
    counts = "SELECT count(*) FROM runs UNION ALL SELECT count(*) FROM worker_state"
    before = shell.run(counts)
    add_revision(
        more_revisions,
        NEXT,
        HEAD,
        *(f"op.execute('DROP VIEW {name}')" for name in ("run_stats", "run_failures", "worker_status")),
        *(f"op.execute('DROP TRIGGER {name}')" for name in NAME_WORKERS),
        "with op.batch_alter_table('workers', recreate='always') as batch:",
        "    batch.add_column(sa.Column('extra', sa.Text))",
    )
    db = Database.open(sqlite_url)
    await schema.upgrade(db)
    assert shell.run(counts) == before
    async with db.write() as conn:
        assert (await conn.exec_driver_sql("PRAGMA foreign_keys")).scalar() == 1
    await db.close()


async def test_a_migration_that_would_leave_orphans_on_sqlite_is_undone(sqlite_url, more_revisions):
    shell = Shell(sqlite_url)
    shell.run(A_WORKER)
    fill(shell)
    add_revision(more_revisions, NEXT, HEAD, "op.execute('DELETE FROM workers')")
    db = Database.open(sqlite_url)
    with pytest.raises(DatabaseError, match="is undone"):
        await schema.upgrade(db)
    assert shell.one("SELECT count(*) FROM workers") == "2"
    await db.close()


async def test_a_file_with_tables_of_somebody_else_is_refused(tmp_path):
    shell = Shell(f"sqlite:///{tmp_path}/x.db")
    shell.run("CREATE TABLE workers (id INTEGER)")
    db = Database.open(f"sqlite:///{tmp_path}/x.db")
    with pytest.raises(DatabaseError, match="already has tables named workers"):
        await schema.upgrade(db)
    assert shell.one("SELECT count(*) FROM sqlite_master") == "1"
    await db.close()


async def test_a_missing_folder_is_not_created(tmp_path):
    db = Database.open(f"sqlite:///{tmp_path}/no/x.db")
    with pytest.raises(DatabaseError, match="there is no folder"):
        await schema.upgrade(db)
    assert list(tmp_path.iterdir()) == []


async def test_upgrading_leaves_the_callers_logging_alone(empty):
    root = logging.getLogger()
    before = (root.level, list(root.handlers), logging.getLogger("alembic").level)
    await schema.upgrade(empty)
    assert (root.level, list(root.handlers), logging.getLogger("alembic").level) == before


def test_the_developers_alembic_command_works(tmp_path):
    root = revisions.migrations_dir().parent
    environment = {"JOBRUNNER_DATABASE_URL": f"sqlite:///{tmp_path}/x.db", "PATH": ""}
    (tmp_path / "x.db").touch()
    for command in (["upgrade", "head"], ["check"], ["downgrade", "base"]):
        done = subprocess.run(
            [sys.executable, "-m", "alembic", *command],
            cwd=root,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


# --- a bare SQL shell ---------------------------------------------------------------------------------------------


def fill(shell: Shell) -> None:
    """A row or more in every table, written by hand."""
    now = "strftime('%Y-%m-%d %H:%M:%f', 'now') || '000'" if shell.is_sqlite else "now()"
    shell.run(
        f"""
        INSERT INTO {{p}}worker_state (worker) VALUES ('w');
        INSERT INTO {{p}}workers (name, handler, execution_mode, definition_hash, interval_seconds, priority)
            VALUES ('other', 'm:g', 'scheduled', 'y', 60, 3);
        INSERT INTO {{p}}worker_dependencies (worker, depends_on) VALUES ('other', 'w');
        INSERT INTO {{p}}worker_blocks (worker, blocks) VALUES ('other', 'w');
        INSERT INTO {{p}}runs (worker, payload) VALUES ('w', '{{"to": "a@example.org"}}');
        INSERT INTO {{p}}run_history (run_id, fence, worker, trigger, outcome, finished_at)
            VALUES (1, 1, 'w', 'manual', 'failed', {now});
        INSERT INTO {{p}}dead_letters
            (run_id, worker, trigger, priority, scheduled_for, payload, attempts, errors, died_at)
            VALUES (1, 'w', 'manual', 1, {now}, '{{}}', 1, '[]', {now});
        INSERT INTO {{p}}nodes
            (id, hostname, pid, boot_id, process_started_at, started_at, heartbeat_at, max_concurrent, version)
            VALUES ('n', 'h', 1, 'b', {now}, {now}, {now}, 5, '1');
        INSERT INTO {{p}}node_handlers (worker, node_id) VALUES ('w', 'n');
        INSERT INTO {{p}}audit_log (actor, action) VALUES ('me', 'pause');
        """
    )


def claim(worker: str, slot: int) -> str:
    now = "{now}"
    return (
        "INSERT INTO {p}runs (worker, state, slot, fence, node_id, started_at, first_started_at, is_ours)"
        f" VALUES ('{worker}', 'running', {slot}, 1, 'n', {now}, {now}, true)"
    )


def at_now(shell: Shell, sql: str) -> str:
    return sql.replace("{now}", "'2024-01-01 00:00:00.000000'" if shell.is_sqlite else "now()")


async def test_the_shortest_trigger_by_hand_is_a_whole_run(shell, db):
    shell.run("""INSERT INTO {p}runs (worker, payload) VALUES ('w', '{"to": "a@example.org"}')""")
    async with db.peek() as conn:
        (run,) = (await conn.execute(sa.select(t.runs))).mappings()
    defaults = {"trigger": "manual", "state": "pending", "priority": 1, "attempt": 1, "is_forced": False}
    assert {name: run[name] for name in defaults} == defaults
    assert run["payload"] == {"to": "a@example.org"}
    assert run["due_at"] == run["scheduled_for"]
    assert run["due_at"].utcoffset().total_seconds() == 0
    assert all(run[name] is None for name in ("slot", "fence", "node_id", "started_at", "key", "cancel_requested_at"))


def test_times_read_well_on_sqlite(sqlite_url):
    shell = Shell(sqlite_url)
    shell.run(A_WORKER)
    shell.run("INSERT INTO runs (worker) VALUES ('w')")
    assert re.fullmatch(TIME, shell.one("SELECT due_at FROM runs"))


def test_a_run_takes_the_workers_priority_unless_it_names_one(shell):
    shell.run("UPDATE {p}workers SET priority = 3")
    shell.run("INSERT INTO {p}runs (worker, priority) VALUES ('w', NULL), ('w', 0), ('w', 2)")
    assert shell.run("SELECT priority FROM {p}runs ORDER BY id") == [["3"], ["0"], ["2"]]


def test_ids_are_never_used_again(shell):
    shell.run("INSERT INTO {p}runs (worker) VALUES ('w'), ('w')")
    shell.run("DELETE FROM {p}runs")
    shell.run("INSERT INTO {p}runs (worker) VALUES ('w')")
    assert shell.one("SELECT id FROM {p}runs") == "3"


def test_an_unknown_worker_is_refused(shell):
    with pytest.raises(ShellError, match=r"unknown worker: register it|violates foreign key"):
        shell.run("INSERT INTO {p}runs (worker) VALUES ('nobody')")


REFUSED = {
    "a payload that is no object": "INSERT INTO {p}runs (worker, payload) VALUES ('w', '[1]')",
    "a payload that is no JSON": "INSERT INTO {p}runs (worker, payload) VALUES ('w', '{')",
    "a priority out of range": "INSERT INTO {p}runs (worker, priority) VALUES ('w', 4)",
    "an unknown state": "INSERT INTO {p}runs (worker, state) VALUES ('w', 'done')",
    "an unknown trigger": "INSERT INTO {p}runs (worker, trigger) VALUES ('w', 'magic')",
    "half a claim": "INSERT INTO {p}runs (worker, state, slot) VALUES ('w', 'running', 0)",
    "a claim on a waiting run": "INSERT INTO {p}runs (worker, fence) VALUES ('w', 1)",
    "a name with a space": A_WORKER.replace("'w'", "'a b'"),
    "an empty name": A_WORKER.replace("'w'", "''"),
    "a name too long": A_WORKER.replace("'w'", f"'{'a' * 201}'"),
    "a name with a newline": A_WORKER.replace("'w'", "'a\n'"),
    "a schedule without a time": A_WORKER.replace("'w'", "'x'").replace("triggered", "scheduled"),
    "a worker that blocks itself": "INSERT INTO {p}worker_blocks (worker, blocks) VALUES ('w', 'w')",
    "disabled by nobody": "INSERT INTO {p}worker_state (worker, is_enabled) VALUES ('w', false)",
    "an action we do not know": "INSERT INTO {p}audit_log (actor, action) VALUES ('me', 'guess')",
}


@pytest.mark.parametrize("sql", REFUSED.values(), ids=REFUSED)
def test_the_database_refuses(shell, sql):
    with pytest.raises(ShellError):
        shell.run(sql)


@pytest.mark.parametrize(
    "text",
    ["2024-01-01", "2024-01-01T00:00:00.000000", "2024-01-01 00:00:00", "2024-01-01 00:00:00.000", "now", "", "1"],
)
def test_a_malformed_time_is_refused_on_sqlite(sqlite_url, text):
    shell = Shell(sqlite_url)
    shell.run(A_WORKER)
    with pytest.raises(ShellError, match="ck_runs_due_at_time"):
        shell.run(f"INSERT INTO runs (worker, due_at) VALUES ('w', '{text}')")


def test_a_slot_is_held_once(shell):
    shell.run(at_now(shell, claim("w", 0)))
    shell.run(at_now(shell, claim("w", 1)))
    with pytest.raises(ShellError, match=NOT_UNIQUE):
        shell.run(at_now(shell, claim("w", 1)))


def test_a_worker_has_one_live_run_from_its_schedule(shell):
    shell.run("INSERT INTO {p}runs (worker, trigger, is_ours) VALUES ('w', 'schedule', true)")
    with pytest.raises(ShellError, match=NOT_UNIQUE):
        shell.run("INSERT INTO {p}runs (worker, trigger, is_ours) VALUES ('w', 'continuous', true)")
    shell.run("INSERT INTO {p}runs (worker) VALUES ('w')")


def test_a_key_is_unique_while_its_run_waits_or_while_it_lives(shell):
    shell.run("INSERT INTO {p}runs (worker, key) VALUES ('w', 'k')")
    with pytest.raises(ShellError, match=NOT_UNIQUE):
        shell.run("INSERT INTO {p}runs (worker, key) VALUES ('w', 'k')")
    shell.run(at_now(shell, "UPDATE {p}runs SET first_started_at = {now}"))
    shell.run("INSERT INTO {p}runs (worker, key, key_scope) VALUES ('w', 'k', 'live')")
    shell.run(at_now(shell, "UPDATE {p}runs SET first_started_at = {now}"))
    with pytest.raises(ShellError, match=NOT_UNIQUE):
        shell.run("INSERT INTO {p}runs (worker, key, key_scope) VALUES ('w', 'k', 'live')")


def test_history_is_insert_only_but_may_be_pruned(shell):
    fill(shell)
    with pytest.raises(ShellError, match="insert-only"):
        shell.run("UPDATE {p}run_history SET outcome = 'succeeded'")
    shell.run("DELETE FROM {p}run_history")
    assert shell.one("SELECT count(*) FROM {p}run_history") == "0"


@pytest.mark.parametrize(
    "more",
    [
        "INSERT INTO {p}worker_state (worker) VALUES ('w')",
        "INSERT INTO {p}runs (worker) VALUES ('w')",
        "INSERT INTO {p}worker_blocks (worker, blocks) VALUES ('w', 'v')",
        "INSERT INTO {p}worker_blocks (worker, blocks) VALUES ('v', 'w')",
        "INSERT INTO {p}worker_dependencies (worker, depends_on) VALUES ('w', 'v')",
        "INSERT INTO {p}worker_dependencies (worker, depends_on) VALUES ('v', 'w')",
    ],
)
def test_a_worker_that_other_rows_name_cannot_be_deleted(shell, more):
    shell.run(A_WORKER.replace("'w'", "'v'"))
    shell.run(more)
    with pytest.raises(ShellError, match=r"jobrunner admin remove|foreign key"):
        shell.run("DELETE FROM {p}workers WHERE name = 'w'")
    assert shell.one("SELECT count(*) FROM {p}workers") == "2"


def test_history_and_letters_outlive_their_worker(shell):
    fill(shell)
    for table in ("worker_dependencies", "worker_blocks", "worker_state", "runs", "workers"):
        shell.run(f"DELETE FROM {{p}}{table}")
    assert shell.one("SELECT (SELECT count(*) FROM {p}run_history) + (SELECT count(*) FROM {p}dead_letters)") == "2"


def test_a_payload_may_have_a_mebibyte_and_not_much_more(shell):
    shell.run(f"INSERT INTO {{p}}runs (worker, payload) VALUES ('w', '{json.dumps({'x': 'a' * (1024 * 1024 - 20)})}')")
    with pytest.raises(ShellError, match="ck_runs_payload_size"):
        shell.run(f"INSERT INTO {{p}}runs (worker, payload) VALUES ('w', '{json.dumps({'x': 'a' * 1_200_000})}')")


# --- views --------------------------------------------------------------------------------------------------------


async def view(db: Database, name: str) -> list[dict[str, object]]:
    async with db.peek() as conn:
        return [dict(row) for row in (await conn.exec_driver_sql(f"SELECT * FROM {db.schema_prefix}{name}")).mappings()]


async def test_worker_status_has_a_row_for_each_worker(db, shell):
    fill(shell)
    shell.run(at_now(shell, claim("w", 0)))
    w, other = sorted(await view(db, "worker_status"), key=lambda row: str(row["name"]), reverse=True)
    assert (w["name"], bool(w["is_running"]), w["running_runs"], w["pending_runs"]) == ("w", True, 1, 1)
    assert (other["name"], bool(other["is_running"]), other["pending_runs"]) == ("other", False, 0)
    assert (bool(w["is_enabled"]), w["consecutive_failures"], w["total_runs"]) == (True, 0, 0)
    columns = {column.name for column in (*t.workers.c, *t.worker_state.c)}
    raw = {"payload", "payload_schema", "hidden_fields", "definition", "overrides", "definition_hash", "revision"}
    raw |= {"worker", "streak_since_id", "last_ended_at", "paused_at", "reach_seconds", "revision", "missed_from"}
    assert set(w) == columns - raw | {"is_running", "running_runs", "pending_runs", "health"}


async def test_worker_status_counts_waiting_runs_only_so_far(db, shell):
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10500) SELECT 'w', 1 FROM n"
    shell.run(f"INSERT INTO {{p}}runs (worker, priority) {numbers}")
    (row,) = await view(db, "worker_status")
    assert row["pending_runs"] == 10_001


async def test_run_failures_shows_what_failed(db, shell):
    now = "strftime('%Y-%m-%d %H:%M:%f', 'now') || '000'" if db.is_sqlite else "now()"
    for fence, outcome in enumerate(
        ["succeeded", "failed", "timed_out", "lost", "cancelled", "interrupted", "snoozed"]
    ):
        shell.run(
            "INSERT INTO {p}run_history (run_id, fence, worker, trigger, outcome, finished_at)"
            f" VALUES (1, {fence}, 'w', 'manual', '{outcome}', {now})"
        )
    assert {row["outcome"] for row in await view(db, "run_failures")} == {"failed", "timed_out", "lost"}


async def test_run_stats_counts_runs_and_ranks_durations_per_day(db, shell):
    today, old = (
        "strftime('%Y-%m-%d 12:00:00.000000', 'now')",
        "strftime('%Y-%m-%d 12:00:00.000000', 'now', '-30 days')",
    )
    if not db.is_sqlite:
        today = "date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' + interval '23 hours 30 minutes'"
        old = f"({today}) - interval '30 days'"
    columns = "run_id, fence, worker, trigger, outcome, ends_run, started_at, finished_at, duration_ms, occurrences"
    insert = f"INSERT INTO {{p}}run_history ({columns})"
    for n in range(1, 21):
        shell.run(
            f"{insert} VALUES ({n}, 1, 'w', 'manual', 'succeeded', 'succeeded', {today}, {today}, {n * 10}, NULL)"
        )
    shell.run(f"{insert} VALUES (30, 1, 'w', 'manual', 'failed', NULL, {today}, {today}, 5, NULL)")
    shell.run(f"{insert} VALUES (30, 2, 'w', 'manual', 'failed', 'exhausted', {today}, {today}, 1000, NULL)")
    shell.run(f"{insert} VALUES (31, 1, 'w', 'manual', 'cancelled', 'cancelled', NULL, {today}, NULL, NULL)")
    shell.run(f"{insert} VALUES (NULL, NULL, 'w', 'schedule', 'missed', NULL, NULL, {today}, NULL, 7)")
    shell.run(f"{insert} VALUES (40, 1, 'w', 'manual', 'succeeded', 'succeeded', {old}, {old}, 9999, NULL)")
    (row,) = await view(db, "run_stats")
    day = shell.one(
        "SELECT strftime('%Y-%m-%d', 'now')"
        if db.is_sqlite
        else "SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD')"
    )
    durations = sorted([*range(10, 201, 10), 5, 1000])
    p50, p95 = durations[-(-len(durations) * 50 // 100) - 1], durations[-(-len(durations) * 95 // 100) - 1]
    assert row == {
        "worker": "w",
        "day": day,
        "runs": 22,
        "failures": 1,
        "attempts": 22,
        "p50_duration_ms": p50,
        "p95_duration_ms": p95,
    }
