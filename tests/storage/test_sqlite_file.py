"""SQLite's file: who may read a new one, which one a relative name means, and what counts as another."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from jobrunner import WorkerOrchestrator
from jobrunner.demo.file import make_fresh
from jobrunner.errors import DatabaseGone
from jobrunner.storage.database.database import Database
from jobrunner.storage.database.engine import anchored
from jobrunner.storage.database.sqlite_file import WatchedFile
from jobrunner.storage.schema.migrate import upgrade_database


async def ask(db: Database) -> None:
    async with db.peek() as conn:
        await conn.execute(sa.text("SELECT count(*) FROM runs"))


@pytest.fixture
def watched(sqlite_url: str) -> WatchedFile:
    file = WatchedFile(Path(sqlite_url.removeprefix("sqlite+aiosqlite:///")))
    file.opened()
    return file


def test_the_file_that_was_opened_is_no_other(watched: WatchedFile):
    watched.check()
    watched._path.write_bytes(watched._path.read_bytes() + bytes(4096))
    watched.check()


def test_a_file_that_was_gone_once_stays_gone(watched: WatchedFile):
    elsewhere = watched._path.rename(watched._path.with_name("elsewhere"))
    with pytest.raises(DatabaseGone, match="was removed or moved"):
        watched.check()
    elsewhere.rename(watched._path)
    with pytest.raises(DatabaseGone, match="was removed or moved"):
        watched.check_if_due()


def test_what_is_beside_a_file_may_go_when_no_connection_is_open(watched: WatchedFile):
    wal = watched._path.with_name("jobrunner.db-wal")
    wal.touch()
    watched.check()
    wal.unlink()
    watched.closing()
    watched.check()


def test_a_file_that_was_not_opened_yet_may_be_any(tmp_path: Path):
    WatchedFile(tmp_path / "none.db").check()


async def test_a_database_does_not_open_a_second_connection_to_another_file(sqlite_url: str, tmp_path: Path):
    db = Database.open(sqlite_url)
    await ask(db)
    (tmp_path / "jobrunner.db").rename(tmp_path / "old.db")
    upgrade_database(sqlite_url)
    with pytest.raises(DatabaseGone, match="was replaced by another file"):
        async with db.write():
            pass
    await db.close()


async def test_a_program_that_only_triggers_goes_on_with_the_file_of_that_name(sqlite_url: str, tmp_path: Path):
    orchestrator = WorkerOrchestrator(sqlite_url)
    orchestrator.register_worker("it", lambda: None, execution_mode="triggered")
    await orchestrator.start()
    await orchestrator.stop()
    await orchestrator.trigger_worker("it")
    for name in ("jobrunner.db", "jobrunner.db-wal", "jobrunner.db-shm"):
        (tmp_path / name).rename(tmp_path / f"old-{name}")
    upgrade_database(sqlite_url)
    with closing(sqlite3.connect(tmp_path / "jobrunner.db")) as new:
        async with asyncio.timeout(30):
            while not new.execute("SELECT 1 FROM runs").fetchall():  # it registers its worker there, too
                await orchestrator.trigger_worker("it")
    await orchestrator.stop()


async def test_a_handler_that_changes_the_folder_does_not_move_the_database(tmp_path: Path, monkeypatch):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    monkeypatch.chdir(first)
    orchestrator = WorkerOrchestrator("sqlite:///mine.db", tick_interval=0.1, lease=1.0)
    orchestrator.register_worker("it", lambda: os.chdir(second), execution_mode="triggered", isolation="thread")
    await orchestrator.start()
    await orchestrator.trigger_worker("it")
    await orchestrator.wait_idle()
    assert Path.cwd() == second
    async with asyncio.timeout(30):  # a database that is opened now: the old one's name no longer leads there
        await asyncio.to_thread(orchestrator.trigger_sync, "it")
    await orchestrator.wait_idle()
    await orchestrator.stop()
    assert list(second.iterdir()) == []
    with closing(sqlite3.connect(first / "mine.db")) as connection:
        assert connection.execute("SELECT count(*) FROM run_history").fetchone() == (2,)


def test_a_relative_file_is_made_absolute_when_it_is_named_and_nothing_else_is_changed(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert anchored("sqlite:///a.db") == f"sqlite:///{tmp_path}/a.db"
    for url in (f"sqlite:///{tmp_path}/b.db", "postgresql://ann:secret@host/db", "nonsense", "sqlite://"):
        assert anchored(url) == url


@pytest.mark.parametrize("make", [lambda path: upgrade_database(f"sqlite:///{path}"), make_fresh], ids=["ours", "demo"])
def test_a_new_file_is_its_owners_alone(tmp_path: Path, make):
    old = os.umask(0)
    try:
        make(tmp_path / "new.db")
    finally:
        os.umask(old)
    assert (tmp_path / "new.db").stat().st_mode & 0o777 == 0o600
