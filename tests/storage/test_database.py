"""`Database`: URLs, transactions, cancellation, and what it says when the database is at fault."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from jobrunner.errors import DatabaseError, DatabaseUnavailable, InvalidDatabaseUrl, InvalidSetting, SchemaMissing
from jobrunner.storage.database import sqlite_driver
from jobrunner.storage.database.database import Database
from jobrunner.storage.database.engine import parse_url
from jobrunner.storage.tables import define as t
from tests.support.postgres import PASSWORD, PASSWORD_ROLE, LocalPostgres, PostgresServer

WORKER = {"name": "w", "handler": "h", "execution_mode": "triggered", "definition_hash": "x"}
SLOW = {
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
    "postgresql": "SELECT pg_sleep(600)",
}


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    db = Database.open(database_url)
    yield db
    await db.close()


async def names(db: Database) -> list[str]:
    async with db.peek() as conn:
        return list((await conn.execute(sa.select(t.workers.c.name).order_by(t.workers.c.name))).scalars())


async def add_worker(db: Database, name: str) -> None:
    async with db.write() as conn:
        await conn.execute(sa.insert(t.workers), {**WORKER, "name": name})


# --- URLs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "driver", "shown"),
    [
        ("sqlite:///x.db", "sqlite+aiosqlite", "sqlite:///x.db"),
        ("sqlite+aiosqlite:///x.db", "sqlite+aiosqlite", "sqlite:///x.db"),
        ("sqlite:////var/lib/x.db", "sqlite+aiosqlite", "sqlite:////var/lib/x.db"),
        (" sqlite:///x.db\n", "sqlite+aiosqlite", "sqlite:///x.db"),
        ("postgresql://u:secret@h:1/d", "postgresql+asyncpg", "postgresql://u:***@h:1/d"),
        ("postgres://u:secret@h/d", "postgresql+asyncpg", "postgresql://u:***@h/d"),
        ("postgresql+asyncpg://u@h/d", "postgresql+asyncpg", "postgresql://u@h/d"),
        ("postgresql://h/d?password=secret", "postgresql+asyncpg", "postgresql://h/d"),
        ("postgresql://u@h/d?password=secret", "postgresql+asyncpg", "postgresql://u:***@h/d"),
        ("postgresql://u@h/d?sslmode=require", "postgresql+asyncpg", "postgresql://u@h/d?ssl=require"),
        ("postgresql://u@h/d?sslpassword=secret", "postgresql+asyncpg", "postgresql://u@h/d?sslpassword=***"),
        ("postgresql:///d?host=/run/postgresql", "postgresql+asyncpg", "postgresql:///d?host=%2Frun%2Fpostgresql"),
    ],
)
def test_a_url_picks_its_async_driver_and_hides_its_password(raw, driver, shown):
    db = Database.open(raw)
    assert db.url.drivername == driver
    assert db.shown_url == shown


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "x",
        "jobrunner.db",
        "mysql://u:secret@h/d",
        "postgresql+psycopg2://u:secret@h/d",
        "sqlite+pysqlite:///x.db",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:///file:x?mode=memory",
        "sqlite:///file:x.db",
        "sqlite:///x.db?timeout=5",
        "sqlite://x.db",
        "postgresql://u:secret@h",
        "postgresql://u:secret/x@h:port/d",
        "postgresql://u:secret@h:notaport/d",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_in_one_line_without_its_password(raw):
    with pytest.raises(InvalidDatabaseUrl) as caught:
        parse_url(raw)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "write" in str(caught.value) or "takes no parameters" in str(caught.value)


@pytest.mark.parametrize("schema", ["", "Jobs", "a b", 'x"; DROP', "1st", "pg_jobs", "a" * 41])
def test_a_schema_name_that_would_need_quotes_is_refused(schema):
    with pytest.raises(InvalidSetting, match="schema"):
        Database.open("sqlite:///x.db", schema=schema)


def test_unknown_settings_are_refused():
    with pytest.raises(InvalidSetting, match="FULL or NORMAL"):
        Database.open("sqlite:///x.db", sqlite_synchronous="OFF")
    with pytest.raises(InvalidSetting, match="transaction"):
        Database.open("sqlite:///x.db", pooler="session")


# --- transactions -------------------------------------------------------------------------------------------------


async def test_a_write_commits_at_the_end_and_rolls_back_after_an_error(db):
    await add_worker(db, "kept")
    with pytest.raises(LookupError):
        async with db.write() as conn:
            await conn.execute(sa.insert(t.workers), {**WORKER, "name": "lost"})
            raise LookupError
    assert await names(db) == ["kept"]


async def test_a_read_sees_one_snapshot(db):
    await add_worker(db, "a")
    count = sa.select(sa.func.count()).select_from(t.workers)
    async with db.read() as conn:
        assert (await conn.execute(count)).scalar_one() == 1
        await add_worker(db, "b")
        assert (await conn.execute(count)).scalar_one() == 1
    assert await names(db) == ["a", "b"]


async def test_a_read_cannot_write(db):
    with pytest.raises((DatabaseError, sa.exc.DBAPIError)):
        async with db.read() as conn:
            await conn.execute(sa.insert(t.workers), WORKER)
    assert await names(db) == []


async def test_writers_of_one_process_wait_for_each_other(db):
    await add_worker(db, "w")

    async def raise_by_one() -> None:
        async with db.write() as conn:
            locked = sa.select(t.workers.c.max_retries).with_for_update()
            found = (await conn.execute(locked)).scalar_one()
            await asyncio.sleep(0)
            await conn.execute(sa.update(t.workers).values(max_retries=found + 1))

    await asyncio.gather(*(raise_by_one() for _ in range(30)))
    async with db.peek() as conn:
        assert (await conn.execute(sa.select(t.workers.c.max_retries))).scalar_one() == 33


async def test_a_caught_error_without_a_savepoint_does_not_commit_half_a_transaction(db):
    await add_worker(db, "w")
    with pytest.raises(RuntimeError, match="nothing was written"):
        async with db.write() as conn:
            await conn.execute(sa.insert(t.workers), {**WORKER, "name": "half"})
            with pytest.raises(sa.exc.IntegrityError):
                await conn.execute(sa.insert(t.workers), WORKER)
    assert await names(db) == ["w"]


async def test_a_caught_error_inside_a_savepoint_commits_the_rest(db):
    await add_worker(db, "w")
    async with db.write() as conn:
        await conn.execute(sa.insert(t.workers), {**WORKER, "name": "other"})
        with pytest.raises(sa.exc.IntegrityError) as caught:
            async with conn.begin_nested():
                await conn.execute(sa.insert(t.workers), WORKER)
        assert db.dialect.is_unique_violation(caught.value)
    assert await names(db) == ["other", "w"]


async def test_a_commit_that_is_refused_leaves_no_transaction_open(sqlite_url):
    db = Database.open(sqlite_url)
    for _ in range(2):
        with pytest.raises(sa.exc.IntegrityError):
            async with db.write() as conn:
                await conn.exec_driver_sql("PRAGMA defer_foreign_keys=ON")
                await conn.execute(sa.insert(t.worker_state), {"worker": "nobody"})
    await add_worker(db, "next")
    assert await names(db) == ["next"]
    await db.close()


async def test_the_error_of_the_block_is_told_even_if_rolling_back_fails(postgres: PostgresServer, postgres_url: str):
    db = Database.open(postgres_url)
    with pytest.raises(LookupError):
        async with db.write() as conn:
            await conn.execute(sa.insert(t.workers), WORKER)
            postgres.terminate_connections(postgres_url)
            raise LookupError
    assert await names(db) == []
    await db.close()


async def test_a_run_of_an_unknown_worker_is_told_from_other_errors(db):
    with pytest.raises(sa.exc.IntegrityError) as caught:
        async with db.write() as conn:
            await conn.execute(sa.insert(t.runs), {"worker": "nobody"})
    assert not db.dialect.is_unique_violation(caught.value)
    assert db.dialect.failure(caught.value, "") is None


async def test_times_keep_their_microseconds_and_must_have_a_zone(db):
    moment = datetime(2024, 2, 29, 23, 59, 59, 999999, tzinfo=UTC)
    await add_worker(db, "w")
    async with db.write() as conn:
        await conn.execute(sa.update(t.workers).values(created_at=moment))
    async with db.peek() as conn:
        created, updated = (await conn.execute(sa.select(t.workers.c.created_at, t.workers.c.updated_at))).one()
    assert created == moment
    assert abs(updated - datetime.now(UTC)).total_seconds() < 60
    with pytest.raises(sa.exc.StatementError, match="no time zone"):
        async with db.write() as conn:
            await conn.execute(sa.update(t.workers).values(created_at=datetime(2024, 1, 1)))  # noqa: DTZ001


async def test_json_keeps_long_numbers_and_letters(db):
    value = {"n": 2**80, "x": [1.5, None, True, "ü\u2028"]}
    async with db.write() as conn:
        await conn.execute(sa.insert(t.workers), {**WORKER, "payload": value})
        found = (await conn.execute(sa.select(t.workers.c.payload))).scalar_one()
    assert found == value


# --- cancellation -------------------------------------------------------------------------------------------------


async def cancel_while(db: Database, in_statement: asyncio.Event, work: asyncio.Task[None]) -> None:
    await in_statement.wait()
    await asyncio.sleep(0.05)  # the statement is on its way
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(10):
            await work


async def test_a_write_cancelled_inside_a_statement_rolls_back_and_leaves_the_database_usable(db):
    in_statement = asyncio.Event()

    async def write_slowly() -> None:
        async with db.write() as conn:
            await conn.execute(sa.insert(t.workers), {**WORKER, "name": "cancelled"})
            in_statement.set()
            await conn.execute(sa.text(SLOW[db.dialect.name]))

    await cancel_while(db, in_statement, asyncio.create_task(write_slowly()))
    async with asyncio.timeout(10):
        await add_worker(db, "next")
    assert await names(db) == ["next"]


async def test_a_peek_cancelled_inside_a_statement_leaves_the_database_usable(db):
    for _ in range(12):  # more often than there are connections
        in_statement = asyncio.Event()

        async def peek_slowly(begun: asyncio.Event = in_statement) -> None:
            async with db.peek() as conn:
                begun.set()
                await conn.execute(sa.text(SLOW[db.dialect.name]))

        await cancel_while(db, in_statement, asyncio.create_task(peek_slowly()))
    assert await names(db) == []


async def test_a_write_cancelled_while_it_waits_for_its_turn_disturbs_nobody(db):
    async with db.write() as conn:
        await conn.execute(sa.insert(t.workers), {**WORKER, "name": "first"})
        waiting = [asyncio.create_task(add_worker(db, f"waiting-{n}")) for n in range(3)]
        await asyncio.sleep(0.05)
        if db.is_sqlite:
            waiting[0].cancel()
    done = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(error) for error in done if error] == [asyncio.CancelledError] * db.is_sqlite
    assert len(await names(db)) == 4 - db.is_sqlite


async def test_a_commit_is_not_cut_short_by_a_cancellation(db):
    async def write() -> None:
        async with db.write() as conn:
            sa.event.listen(conn.sync_connection, "commit", lambda _: task.cancel())
            await conn.execute(sa.insert(t.workers), {**WORKER, "name": "committed"})

    task = asyncio.create_task(write())
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await names(db) == ["committed"]
    await add_worker(db, "next")


async def test_tasks_cancelled_while_connections_open_leak_none(database_url):
    for delay in (0, 0, 0.0005, 0.001, 0.002, 0.004):
        db = Database.open(database_url)
        tasks = [asyncio.create_task(names(db)) for _ in range(4)]
        await asyncio.sleep(delay)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert await names(db) == []
        await db.close()
    gc.collect()  # a leaked connection would warn, and warnings are errors


# --- opening and closing ------------------------------------------------------------------------------------------


async def test_closing_ends_every_thread(sqlite_url):
    before = threading.active_count()
    db = Database.open(sqlite_url)
    await add_worker(db, "w")
    assert await names(db) == ["w"]
    assert threading.active_count() > before
    await db.close()
    for thread in threading.enumerate():
        if "_connection_worker_thread" in thread.name:
            thread.join(5)
    assert not [thread for thread in threading.enumerate() if "_connection_worker_thread" in thread.name]


async def test_a_database_left_open_does_not_keep_the_interpreter(database_url):
    program = """
        import asyncio, sys, sqlalchemy as sa
        from jobrunner.storage.database.database import Database

        db = Database.open(sys.argv[1])

        async def use():
            async with db.write() as conn:
                await conn.execute(sa.text("SELECT 1"))
            print("used", flush=True)

        asyncio.run(use())
    """
    command = [sys.executable, "-c", textwrap.dedent(program), database_url]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (0, "used\n")


async def test_a_cancelled_main_task_closes_quietly(database_url):
    program = """
        import asyncio, sys, sqlalchemy as sa
        from jobrunner.storage.database.database import Database

        async def use():
            db = Database.open(sys.argv[1])
            try:
                async with db.read() as conn:
                    await conn.execute(sa.text("SELECT 1"))
                    await asyncio.sleep(600)
            finally:
                await db.close()

        async def main():
            task = asyncio.create_task(use())
            await asyncio.sleep(0.2)

        asyncio.run(main())
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(program), database_url]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")


async def test_sqlite_is_opened_with_the_pragmas_that_make_it_safe(sqlite_url):
    expected = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    for setting, level in (("FULL", 2), ("NORMAL", 1)):
        db = Database.open(sqlite_url, sqlite_synchronous=setting)
        async with db.write() as writer, db.peek() as reader:
            for conn in (writer, reader):
                found = {p: (await conn.exec_driver_sql(f"PRAGMA {p}")).scalar() for p in expected}
                assert found == {**expected, "synchronous": level}
        await db.close()


async def test_sqlite_does_not_create_a_file_or_a_folder(tmp_path):
    db = Database.open(f"sqlite:///{tmp_path}/missing.db")
    with pytest.raises(SchemaMissing):
        await names(db)
    nowhere = Database.open(f"sqlite:///{tmp_path}/no/folder/x.db")
    with pytest.raises(DatabaseError, match="there is no folder"):
        await names(nowhere)
    assert list(tmp_path.iterdir()) == []
    await db.close()
    await nowhere.close()


async def test_postgres_takes_a_snapshot_and_short_statements_uncompiled(postgres_url):
    db = Database.open(postgres_url)
    async with db.read() as conn:
        setting = (await conn.exec_driver_sql("SHOW transaction_isolation")).scalar()
        read_only = (await conn.exec_driver_sql("SHOW transaction_read_only")).scalar()
        jit = (await conn.exec_driver_sql("SHOW jit")).scalar()
        name = (await conn.exec_driver_sql("SHOW application_name")).scalar()
    assert (setting, read_only, jit, name) == ("repeatable read", "on", "off", "jobrunner")
    await db.close()


async def test_the_url_may_name_the_application(postgres_url):
    db = Database.open(f"{postgres_url}?application_name=reports&sslmode=disable")
    async with db.peek() as conn:
        assert (await conn.exec_driver_sql("SHOW application_name")).scalar() == "reports"
    await db.close()


async def test_behind_a_transaction_pooler_nothing_is_kept_in_the_session(postgres_url):
    """One session, as one server connection of the proxy, must be as it was after each use."""
    db = Database.open(postgres_url, pooler="transaction", pool_size=1)
    await add_worker(db, "w")
    for _ in range(3):
        assert await names(db) == ["w"]
    async with db.read() as conn:
        assert (await conn.execute(sa.select(t.workers.c.name))).scalar_one() == "w"
        assert (await conn.exec_driver_sql("SELECT count(*) FROM pg_prepared_statements")).scalar() == 0
    async with db.peek() as conn:
        in_transaction = "SELECT now() < clock_timestamp() AND xact_start IS NOT NULL FROM pg_stat_activity"
        assert (await conn.exec_driver_sql(f"{in_transaction} WHERE pid = pg_backend_pid()")).scalar()
    await db.close()


# --- when the database is at fault --------------------------------------------------------------------------------


async def failure_of(url: str) -> DatabaseError:
    db = Database.open(url)
    with pytest.raises(DatabaseError) as caught:
        await names(db)
    await db.close()
    assert "\n" not in str(caught.value)
    assert "wrong-password" not in str(caught.value)
    return caught.value


async def test_a_file_that_is_no_database_is_said_so(tmp_path):
    (tmp_path / "x.db").write_text("this is a text file, not a database" * 100)
    error = await failure_of(f"sqlite:///{tmp_path}/x.db")
    assert "is no SQLite database" in str(error)
    assert not isinstance(error, DatabaseUnavailable)


async def test_a_folder_is_no_database(tmp_path):
    assert "is a folder" in str(await failure_of(f"sqlite:///{tmp_path}"))


async def test_a_locked_file_is_unavailable(sqlite_url, monkeypatch):
    monkeypatch.setattr(sqlite_driver, "BUSY_TIMEOUT_SECONDS", 0.1)
    db = Database.open(sqlite_url)
    with closing(sqlite3.connect(str(db.url.database), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseUnavailable, match="is locked by another process"):
            await add_worker(db, "w")
        assert await names(db) == []  # readers do not wait
        other.execute("COMMIT")
    await add_worker(db, "w")
    await db.close()


async def test_a_full_disk_is_unavailable_and_loses_nothing(sqlite_url):
    db = Database.open(sqlite_url)
    await add_worker(db, "kept")
    async with db.write() as conn:
        await conn.exec_driver_sql("PRAGMA max_page_count=1")  # SQLite takes the present size, and no page more
    with pytest.raises(DatabaseUnavailable, match="disk is full"):
        async with db.write() as conn:
            await conn.execute(sa.insert(t.workers), {**WORKER, "name": "big", "description": "x" * 5_000_000})
    async with db.write() as conn:
        await conn.exec_driver_sql("PRAGMA max_page_count=1000000")
    await add_worker(db, "next")
    assert await names(db) == ["kept", "next"]
    await db.close()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"database": "nothing_here"}, "create the database"),
        ({"username": PASSWORD_ROLE, "password": "wrong-password"}, "correct the password"),
        ({"username": "nobody_we_know"}, "check user and database"),
    ],
)
async def test_a_server_that_refuses_is_not_worth_trying_again(postgres, change, said):
    error = await failure_of(sa.make_url(postgres.url()).set(**change).render_as_string(hide_password=False))
    assert not isinstance(error, DatabaseUnavailable)
    assert said in str(error)


async def test_the_right_password_opens_the_database(postgres):
    db = Database.open(postgres.url(user=PASSWORD_ROLE, password=PASSWORD))
    async with db.peek() as conn:
        assert (await conn.exec_driver_sql("SELECT current_user")).scalar() == PASSWORD_ROLE
    await db.close()


@pytest.mark.parametrize("where", ["127.0.0.1:1", "no-such-host.invalid"])
async def test_a_server_that_is_not_there_is_unavailable(where):
    error = await failure_of(f"postgresql://u:wrong-password@{where}/d")
    assert isinstance(error, DatabaseUnavailable)
    assert f"u:***@{where}" in str(error)
    assert "check that the server runs" in str(error)


async def test_a_lost_connection_is_unavailable_and_the_next_use_opens_another(
    postgres: PostgresServer, postgres_url: str
):
    db = Database.open(postgres_url)
    with pytest.raises(DatabaseUnavailable) as caught:
        async with db.write() as conn:
            await conn.execute(sa.insert(t.workers), {**WORKER, "name": "lost"})
            postgres.terminate_connections(postgres_url)
            await conn.execute(sa.select(1))
    assert db.dialect.is_disconnect(caught.value)
    await add_worker(db, "next")
    assert await names(db) == ["next"]
    await db.close()


async def test_connections_closed_by_the_server_while_idle_are_replaced_without_an_error(
    postgres: PostgresServer, postgres_url: str
):
    db = Database.open(postgres_url)
    await asyncio.gather(*(names(db) for _ in range(5)))
    postgres.terminate_connections(postgres_url)
    await asyncio.sleep(0.2)  # let the loop hear of it
    assert await asyncio.gather(*(names(db) for _ in range(5))) == [[]] * 5
    await db.close()


async def test_a_server_that_stops_is_unavailable_until_it_is_back(
    restartable_postgres: LocalPostgres, restartable_postgres_url: str
):
    db = Database.open(restartable_postgres_url)
    await add_worker(db, "w")
    restartable_postgres.stop()
    for _ in range(3):
        with pytest.raises(DatabaseUnavailable):
            await names(db)
    restartable_postgres.start()
    assert await names(db) == ["w"]
    await db.close()


async def test_a_lock_not_had_in_time_and_a_deadlock_are_transient(postgres_url):
    db = Database.open(postgres_url)
    await add_worker(db, "a")
    await add_worker(db, "b")

    async def lock(conn, name: str) -> None:
        await conn.execute(sa.select(t.workers.c.name).where(t.workers.c.name == name).with_for_update())

    async def lock_both(first: str, second: str, barrier: asyncio.Barrier) -> None:
        async with db.write() as conn:
            await lock(conn, first)
            await barrier.wait()
            await lock(conn, second)

    barrier = asyncio.Barrier(2)
    done = await asyncio.gather(lock_both("a", "b", barrier), lock_both("b", "a", barrier), return_exceptions=True)
    (error,) = [outcome for outcome in done if outcome is not None]
    assert isinstance(error, DatabaseUnavailable)
    assert not db.dialect.is_disconnect(error)

    async with db.write() as holder:
        await lock(holder, "a")
        with pytest.raises(DatabaseUnavailable, match="nothing was written"):
            async with db.write() as conn:
                await conn.exec_driver_sql("SET LOCAL lock_timeout = '50ms'")
                await lock(conn, "a")
    await db.close()


async def test_a_pool_used_up_is_unavailable(postgres_url, monkeypatch):
    monkeypatch.setattr("jobrunner.storage.database.engine.CONNECT_TIMEOUT_SECONDS", 0.1)
    db = Database.open(postgres_url, pool_size=1)
    async with db.peek(), db.peek():
        with pytest.raises(DatabaseUnavailable, match="connections are busy"):
            await names(db)
    await db.close()


def test_the_driver_reads_rows_to_the_end_and_names_its_file(tmp_path):
    path = Path(tmp_path) / "odd %20 ?#name.db"
    path.touch()
    with closing(sqlite_driver.connect_plain(path)) as connection:
        connection.execute("CREATE TABLE x (y)")
    assert path.stat().st_size > 0
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
