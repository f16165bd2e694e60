"""URLs as psql takes them: libpq's parameters, several hosts, and what the driver cannot do."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa

from jobrunner.errors import DatabaseError, DatabaseUnavailable, InvalidDatabaseUrl
from jobrunner.storage.database import postgres_url
from jobrunner.storage.database.database import Database
from jobrunner.storage.database.engine import parse_url
from tests.support.proxy import stalling


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """What was told, as if nothing had been before."""
    monkeypatch.setattr(postgres_url, "_told", set())
    with caplog.at_level(logging.WARNING, "jobrunner"):
        yield lambda: caplog.messages


async def value(db: Database, sql: str) -> object:
    async with db.peek() as conn:
        return (await conn.exec_driver_sql(sql)).scalar()


@pytest.mark.parametrize(
    ("raw", "hosts", "shown"),
    [
        ("postgresql://u:secret@h1:5432,h2:5433/d", ["h1:5432", "h2:5433"], "postgresql://u:***@h1:5432,h2:5433/d"),
        ("postgres://h1,h2/d", ["h1", "h2"], "postgresql://h1,h2/d"),
        ("postgresql://h1,h2/d?port=1,2", ["h1:1", "h2:2"], "postgresql://h1:1,h2:2/d"),
        ("postgresql:///d?host=h1,h2&port=7", ["h1:7", "h2:7"], "postgresql://h1:7,h2:7/d"),
        ("postgresql:///d?host=h1:1&host=h2:2", ["h1:1", "h2:2"], "postgresql://h1:1,h2:2/d"),
        ("postgresql://[::1]:1,h2/d?sslmode=require", ["[::1]:1", "h2"], "postgresql://[::1]:1,h2/d?ssl=require"),
        ("postgresql://u@h/d", [], "postgresql://u@h/d"),
    ],
)
def test_several_hosts_are_read_however_they_are_written(raw: str, hosts: list[str], shown: str):
    db = Database.open(raw)
    assert postgres_url.hosts_of(db.url) == hosts
    assert db.shown_url == shown


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ("postgresql://u:secret@h1,h2,h3/d?port=1,2", "3 hosts and 2 ports"),
        ("postgresql://u:secret@h1,h2", "names no database"),
        (
            "postgresql://u:secret@h/d?connect_timeout=soon",
            "connect_timeout in the database URL must be a whole number",
        ),
        ("postgresql://u:secret@h/d?keepalives_idle=1.5", "keepalives_idle in the database URL must be a whole number"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(raw: str, said: str):
    with pytest.raises(InvalidDatabaseUrl, match=said) as caught:
        parse_url(raw)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_the_driver_cannot_do_is_told_once_without_values(told: Callable[[], list[str]]):
    url = "postgresql://h/d?channel_binding=require&oauth_client_secret=secret"
    for _ in range(2):
        Database.open(url)
    said = "channel_binding, oauth_client_secret in the database URL are ignored: the driver has no such option"
    assert told() == [said]


def test_what_asks_for_nothing_special_is_not_told(told: Callable[[], list[str]]):
    Database.open("postgresql://h/d?channel_binding=prefer&gssencmode=disable&sslcompression=0&client_encoding=UTF8")
    assert told() == []


async def test_a_url_full_of_parameters_opens_the_database(postgres_url: str, told: Callable[[], list[str]]):
    more = (
        "channel_binding=require&gssencmode=prefer&keepalives=1&keepalives_idle=7&keepalives_interval=3"
        "&keepalives_count=4&tcp_user_timeout=9000&connect_timeout=20&target_session_attrs=read-write&sslmode=prefer"
        "&application_name=reports&options=-c%20lock_timeout%3D7s&statement_timeout=8s&load_balance_hosts=disable"
    )
    db = Database.open(f"{postgres_url}?{more}")
    assert await value(db, "SHOW application_name") == "reports"
    assert await value(db, "SHOW lock_timeout") == "7s"
    assert await value(db, "SHOW statement_timeout") == "8s"
    (connection,) = db._engines.opened
    sock = connection._transport.get_extra_info("socket")
    options = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
    numbers = [getattr(socket, name) for name in options if hasattr(socket, name)]
    assert [sock.getsockopt(socket.IPPROTO_TCP, number) for number in numbers] == [7, 3, 4, 9000][: len(numbers)]
    assert told() == ["channel_binding in the database URL is ignored: the driver has no such option"]
    await db.close()


async def test_keepalives_can_be_left_out(postgres_url: str):
    db = Database.open(f"{postgres_url}?keepalives=0")
    assert await value(db, "SELECT 1") == 1
    (connection,) = db._engines.opened
    sock = connection._transport.get_extra_info("socket")
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
    await db.close()


@pytest.mark.parametrize("first", ["a dead one", "one that says nothing"])
async def test_of_several_hosts_the_first_that_answers_is_taken(postgres_url: str, first: str):
    url = sa.make_url(postgres_url)
    with stalling(postgres_url) as proxy:
        proxy.stall()
        port = 1 if first == "a dead one" else sa.make_url(proxy.url).port
        both = f"postgresql://{url.username}@127.0.0.1:{port},127.0.0.1:{url.port}/{url.database}?connect_timeout=1"
        db = Database.open(both)
        async with asyncio.timeout(60):
            assert await value(db, "SELECT 1") == 1
        await db.close()


async def test_of_several_hosts_one_that_takes_writes_is_found(postgres_url: str):
    url = sa.make_url(postgres_url)
    host = f"127.0.0.1:{url.port}"
    db = Database.open(f"postgresql://{url.username}@{host},{host}/{url.database}?target_session_attrs=standby")
    with pytest.raises(DatabaseUnavailable, match="target attribute"):
        await value(db, "SELECT 1")
    await db.close()


@pytest.mark.parametrize("name", ["sslrootcert", "sslcert", "sslkey"])
async def test_a_file_that_is_missing_is_named(postgres_url: str, name: str):
    db = Database.open(f"{postgres_url}?sslmode=require&{name}=/no/such/file")
    with pytest.raises(DatabaseError, match=f"there is no file /no/such/file, which {name} names") as caught:
        await value(db, "SELECT 1")
    assert not isinstance(caught.value, DatabaseUnavailable)
    await db.close()
