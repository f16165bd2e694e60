"""Wake-ups: a node hears of what others commit, at once and not too often."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import pytest
from sqlalchemy.engine import make_url

from jobrunner.storage.database import wakeups, wal_events
from jobrunner.storage.database.database import Database
from jobrunner.storage.database.wakeups import NoWakeups, PostgresWakeups, SqliteWakeups, open_wakeups
from tests.support.shell import Shell

CHANNEL = "jobrunner_wakeup_jobrunner"
A_WORKER = (
    "INSERT INTO {p}workers (name, handler, execution_mode, definition_hash) VALUES ('w', 'm:f', 'triggered', 'x')"
)
A_RUN = "INSERT INTO {p}runs (worker) VALUES ('w')"


class Ear:
    """Hears wake-ups, and lets a test wait for the next."""

    def __init__(self) -> None:
        self.heard = asyncio.Event()

    def __call__(self) -> None:
        self.heard.set()

    async def next(self) -> None:
        async with asyncio.timeout(15):
            await self.heard.wait()
        self.heard.clear()

    async def silence(self, seconds: float = 0.2) -> None:
        """Wait until nothing has been heard for so long."""
        async with asyncio.timeout(15):
            while True:
                self.heard.clear()
                await asyncio.sleep(seconds)
                if not self.heard.is_set():
                    return


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    db = Database.open(database_url)
    yield db
    await db.close()


@pytest.fixture
def shell(database_url: str, request: pytest.FixtureRequest) -> Shell:
    server = None if database_url.startswith("sqlite") else request.getfixturevalue("postgres")
    shell = Shell(database_url, server)
    shell.run(A_WORKER)
    return shell


@pytest.fixture
async def ear(db: Database) -> AsyncIterator[Ear]:
    """Is listening, and has heard the wake-up that every start gives."""
    ear = Ear()
    listening = open_wakeups(db)
    await listening.start(ear)
    await ear.next()
    yield ear
    await listening.stop()


async def test_a_run_inserted_by_hand_wakes(shell, ear):
    await ear.silence()
    for _ in range(3):
        await asyncio.sleep(wakeups.RESCAN_AFTER_SECONDS)  # sooner, the throttle would leave it to the node's next scan
        await asyncio.to_thread(shell.run, A_RUN)
        await ear.next()


async def test_a_change_by_another_node_wakes(db, shell, ear):
    await ear.silence()
    other = db.reopened()
    async with other.write() as conn:
        await conn.exec_driver_sql(f"UPDATE {db.schema_prefix}workers SET priority = 3")
        await wakeups.notify(other, conn)
    await ear.next()
    await other.close()


async def test_nothing_is_heard_while_nothing_is_committed(db, shell, ear):
    await ear.silence()
    with pytest.raises(LookupError):
        async with db.write() as conn:
            await conn.exec_driver_sql(A_RUN.replace("{p}", db.schema_prefix))
            await wakeups.notify(db, conn)
            raise LookupError
    await asyncio.sleep(0.1)
    assert not ear.heard.is_set()


async def test_after_stopping_nothing_is_heard_and_nothing_is_left(db, shell):
    ear = Ear()
    listening = open_wakeups(db)
    await listening.start(ear)
    await ear.next()
    await listening.stop()
    ear.heard.clear()
    await asyncio.to_thread(shell.run, A_RUN)
    await asyncio.sleep(0.1)
    assert not ear.heard.is_set()
    assert not [task for task in asyncio.all_tasks() if "wakeups" in task.get_name()]
    assert not [thread for thread in threading.enumerate() if "wakeups" in thread.name]


async def test_stopping_what_never_started_is_no_error(db):
    await open_wakeups(db).stop()


async def test_sqlite_survives_a_file_that_is_locked_or_missing(sqlite_url, tmp_path):
    shell = Shell(sqlite_url)
    shell.run(A_WORKER)
    path = tmp_path / "jobrunner.db"
    away = path.rename(tmp_path / "away.db")
    ear = Ear()
    listening = SqliteWakeups(path)
    await listening.start(ear)
    await asyncio.sleep(0.05)
    assert not ear.heard.is_set()
    away.rename(path)
    await ear.next()
    await asyncio.to_thread(shell.run, f"BEGIN EXCLUSIVE; {A_RUN}; COMMIT")
    await ear.next()
    await listening.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
async def test_sqlite_hears_of_a_commit_by_the_file_and_not_by_asking(
    sqlite_url, tmp_path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(wal_events, "IDLE_POLL_SECONDS", 60.0)
    shell = Shell(sqlite_url)
    shell.run(A_WORKER)
    (tmp_path / "link.db").symlink_to(tmp_path / "jobrunner.db")
    ear = Ear()
    listening = SqliteWakeups(tmp_path / "link.db")
    await listening.start(ear)
    await ear.next()
    for _ in range(3):
        await ear.silence()
        await asyncio.to_thread(shell.run, A_RUN)
        await ear.next()
    await listening.stop()  # does not wait for the 60 s either


@pytest.mark.parametrize("how", ["none", "no watch", "no events"])
async def test_sqlite_hears_of_a_commit_where_the_kernel_tells_nothing(
    sqlite_url, tmp_path, monkeypatch: pytest.MonkeyPatch, how: str
):
    if how == "none":
        monkeypatch.setattr(wal_events, "_open_inotify", lambda: None)
    else:
        monkeypatch.setattr(wal_events, "_add_watch", lambda *_: how == "no events")
    shell = Shell(sqlite_url)
    shell.run(A_WORKER)
    ear = Ear()
    listening = SqliteWakeups(tmp_path / "jobrunner.db")
    await listening.start(ear)
    await ear.next()
    for _ in range(3):
        await ear.silence()
        await asyncio.to_thread(shell.run, A_RUN)
        await ear.next()
    assert listening._events is not None
    assert not listening._events._can_sleep  # what told nothing once is not waited for again
    await listening.stop()


async def test_sqlite_listeners_outlive_a_closed_loop_quietly(sqlite_url):
    def node() -> None:
        async def start() -> None:
            await open_wakeups(Database.open(sqlite_url)).start(lambda: None)

        asyncio.run(start())

    await asyncio.to_thread(node)
    shell = Shell(sqlite_url)
    shell.run(A_WORKER)
    deadline = time.monotonic() + 10
    while any("wakeups" in thread.name for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        shell.run("UPDATE workers SET priority = priority")
        await asyncio.sleep(0.02)


# --- PostgreSQL ---------------------------------------------------------------------------------------------------


@pytest.fixture
async def raw(postgres_url: str) -> AsyncIterator[Any]:
    """An asyncpg connection with a worker to enqueue for."""
    connection = await asyncpg.connect(make_url(postgres_url).set(drivername="postgresql").render_as_string(False))
    await connection.execute(A_WORKER.replace("{p}", "jobrunner."))
    yield connection
    await connection.close()


async def counted(raw: Any, postgres_url: str, work: Callable[[], Any]) -> int:
    """How many notifications `work` causes."""
    listener = await asyncpg.connect(make_url(postgres_url).set(drivername="postgresql").render_as_string(False))
    heard: list[str] = []
    done = asyncio.Event()

    def hear(_connection: object, _pid: int, _channel: str, payload: str) -> None:
        heard.append(payload)
        if payload == "done":
            done.set()

    await listener.add_listener(CHANNEL, hear)
    await work()
    await raw.execute(f"SELECT pg_notify('{CHANNEL}', 'done')")
    async with asyncio.timeout(15):
        await done.wait()
    await listener.remove_listener(CHANNEL, hear)
    await listener.close()
    return len(heard) - 1


async def test_many_commits_wake_at_most_every_five_milliseconds(raw, postgres_url):
    async def enqueue() -> None:
        await raw.execute(
            """DO $$ BEGIN
                FOR i IN 1..500 LOOP INSERT INTO jobrunner.runs (worker) VALUES ('w'); COMMIT; END LOOP;
            END $$"""
        )

    begun = time.monotonic()
    count = await counted(raw, postgres_url, enqueue)
    assert 1 <= count <= (time.monotonic() - begun) / 0.005 + 1
    assert count < 500


async def test_a_transaction_wakes_once_however_many_runs_it_inserts(raw, postgres_url):
    async def enqueue() -> None:
        await raw.execute("INSERT INTO jobrunner.runs (worker) SELECT 'w' FROM generate_series(1, 50000)")

    assert await counted(raw, postgres_url, enqueue) == 1


async def test_a_run_after_a_savepoint_was_rolled_back_still_wakes(raw, postgres_url):
    async def enqueue() -> None:
        async with raw.transaction():
            with pytest.raises(LookupError):
                async with raw.transaction():
                    await raw.execute(A_RUN.replace("{p}", "jobrunner."))
                    raise LookupError
            await raw.execute(A_RUN.replace("{p}", "jobrunner."))

    assert await counted(raw, postgres_url, enqueue) == 1


async def test_the_next_transaction_of_a_session_wakes_again(raw, postgres_url):
    async def enqueue() -> None:
        for _ in range(3):
            await raw.execute(A_RUN.replace("{p}", "jobrunner."))
            await asyncio.sleep(0.01)

    assert await counted(raw, postgres_url, enqueue) == 3


async def test_a_quiet_transaction_does_not_wake(raw, postgres_url):
    async def enqueue() -> None:
        async with raw.transaction():
            await raw.execute("SET LOCAL jobrunner.quiet = 'on'")
            await raw.execute(A_RUN.replace("{p}", "jobrunner."))

    assert await counted(raw, postgres_url, enqueue) == 0


async def test_a_clock_that_went_back_does_not_silence(raw, postgres_url):
    async def enqueue() -> None:
        await raw.execute("SELECT setval('jobrunner.wakeup_clock', 1000 * extract(epoch FROM now())::bigint + 3600000)")
        await raw.execute(A_RUN.replace("{p}", "jobrunner."))

    assert await counted(raw, postgres_url, enqueue) == 1


async def test_a_user_who_may_only_insert_wakes_too(raw, postgres_url, postgres):
    role = f"enqueuer_{make_url(postgres_url).database}"
    await raw.execute(f"CREATE ROLE {role}")
    await raw.execute(f"GRANT USAGE ON SCHEMA jobrunner TO {role}")
    await raw.execute(f"GRANT SELECT ON jobrunner.workers TO {role}")
    await raw.execute(f"GRANT INSERT ON jobrunner.runs TO {role}")

    async def enqueue() -> None:
        async with raw.transaction():
            await raw.execute(f"SET LOCAL ROLE {role}")
            await raw.execute(A_RUN.replace("{p}", "jobrunner."))

    try:
        assert await counted(raw, postgres_url, enqueue) == 1
    finally:
        await raw.execute(f"DROP OWNED BY {role}")
        await raw.execute(f"DROP ROLE {role}")


async def test_a_listener_that_lost_its_connection_wakes_when_it_is_back(postgres, postgres_url):
    db = Database.open(postgres_url)
    shell = Shell(postgres_url, postgres)
    shell.run(A_WORKER)
    ear = Ear()
    listening = open_wakeups(db)
    await listening.start(ear)
    await ear.next()
    postgres.terminate_connections(postgres_url)
    await ear.next()
    await asyncio.to_thread(shell.run, A_RUN)
    await ear.next()
    await listening.stop()


async def test_a_server_that_is_away_at_the_start_is_no_error(restartable_postgres, restartable_postgres_url):
    db = Database.open(restartable_postgres_url)
    restartable_postgres.stop()
    ear = Ear()
    listening = open_wakeups(db)
    await listening.start(ear)
    await asyncio.sleep(0.05)
    assert not ear.heard.is_set()
    restartable_postgres.start()
    await ear.next()
    await listening.stop()


async def test_behind_a_transaction_pooler_the_node_only_polls(postgres_url):
    assert isinstance(open_wakeups(Database.open(postgres_url, pooler="transaction")), NoWakeups)
    assert isinstance(open_wakeups(Database.open(postgres_url)), PostgresWakeups)
