"""Servers that are not as jobrunner needs them: the encoding, a pooling proxy nobody spoke of, rows that are hidden."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Iterator

import pytest
import sqlalchemy as sa

from jobrunner import WorkerOrchestrator
from jobrunner.errors import DatabaseError, DatabaseUnavailable
from jobrunner.storage.database.database import Database
from jobrunner.storage.schema import migrate as schema
from jobrunner.storage.schema import revisions
from tests.support.postgres import PostgresServer


@pytest.fixture(params=["LATIN1", "SQL_ASCII"])
def odd_url(request: pytest.FixtureRequest, postgres: PostgresServer) -> Iterator[str]:
    """A database of another encoding."""
    name = f"jobrunner_odd_{request.param.lower()}"
    postgres.drop_database(name)
    postgres.execute(f"CREATE DATABASE {name} ENCODING '{request.param}' LOCALE 'C' TEMPLATE template0")
    yield postgres.url(name)
    postgres.drop_database(name)


async def test_another_encoding_is_refused_by_an_upgrade_and_by_a_node_in_one_line(odd_url: str):
    db = Database.open(odd_url)
    with pytest.raises(DatabaseError, match="jobrunner needs UTF8: make another one, `createdb -E UTF8") as caught:
        await schema.upgrade(db)
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, DatabaseUnavailable)
    await db.close()
    with pytest.raises(DatabaseError, match="jobrunner needs UTF8"):
        await WorkerOrchestrator(odd_url).start()


# --- a proxy ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statement", ["EXECUTE nothing", "PREPARE twice AS SELECT 1"])
async def test_statements_prepared_elsewhere_mean_a_pooling_proxy(postgres_url: str, statement: str):
    db = Database.open(postgres_url, pool_size=1)
    with pytest.raises(DatabaseError, match=r"transaction-pooling proxy.*; set JOBRUNNER_POOLER=transaction") as caught:
        async with db.peek() as conn:
            for _ in range(2):
                await conn.exec_driver_sql(statement)
    assert "\n" not in str(caught.value)
    await db.close()


async def test_with_the_setting_such_an_error_is_what_it_is(postgres_url: str):
    db = Database.open(postgres_url, pooler="transaction")
    with pytest.raises(sa.exc.DBAPIError):
        async with db.write() as conn:
            await conn.exec_driver_sql("EXECUTE nothing")
    await db.close()


@pytest.fixture
async def bouncer_url() -> AsyncIterator[str]:
    """What answers as PgBouncer does to settings that it does not know."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            (length,) = struct.unpack("!I", await reader.readexactly(4))
            body = await reader.readexactly(length - 4)
            if body != struct.pack("!I", 80877103):
                break
            writer.write(b"N")  # no TLS here
        fields = b"SFATAL\0C08P01\0Munsupported startup parameter: jit\0\0"
        writer.write(b"E" + struct.pack("!I", len(fields) + 4) + fields)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"postgresql://u@127.0.0.1:{server.sockets[0].getsockname()[1]}/d"
    server.close()
    await server.wait_closed()


async def test_a_proxy_that_refuses_our_settings_is_named(bouncer_url: str):
    db = Database.open(bouncer_url)
    with pytest.raises(DatabaseError, match=r"parameter: jit.; set JOBRUNNER_POOLER=transaction") as caught:
        await revisions.status(db)
    assert not isinstance(caught.value, DatabaseUnavailable)
    await db.close()


# --- row-level security -------------------------------------------------------------------------------------------


@pytest.fixture
def guest_url(postgres: PostgresServer, postgres_url: str) -> Iterator[str]:
    """A user who may do everything with our tables, and owns none."""
    database = str(sa.make_url(postgres_url).database)
    guest = f"guest_of_{database}"
    postgres.execute(
        f"CREATE ROLE {guest} LOGIN; GRANT USAGE ON SCHEMA jobrunner TO {guest};"
        f" GRANT ALL ON ALL TABLES IN SCHEMA jobrunner TO {guest};"
        f" GRANT ALL ON ALL SEQUENCES IN SCHEMA jobrunner TO {guest}",
        database,
    )
    yield sa.make_url(postgres_url).set(username=guest).render_as_string(hide_password=False)
    postgres.execute(f"DROP OWNED BY {guest}; DROP ROLE {guest}", database)


async def hidden(url: str) -> list[str]:
    db = Database.open(url)
    try:
        return [line for line in await schema.check(db) if "row-level security" in line]
    finally:
        await db.close()


async def test_a_user_whom_row_level_security_shows_nothing_is_told_so(
    postgres: PostgresServer, postgres_url: str, guest_url: str
):
    database = str(sa.make_url(postgres_url).database)
    assert await hidden(guest_url) == []
    postgres.execute("ALTER TABLE jobrunner.runs ENABLE ROW LEVEL SECURITY", database)
    (line,) = await hidden(guest_url)
    assert "shows guest_of_" in line
    assert "no row of runs: add a policy" in line
    assert await hidden(postgres_url) == []  # its owner sees all
    postgres.execute("CREATE POLICY all_rows ON jobrunner.runs USING (true)", database)
    assert await hidden(guest_url) == []


async def test_a_hidden_version_is_not_taken_for_a_missing_schema(
    postgres: PostgresServer, postgres_url: str, guest_url: str
):
    database = str(sa.make_url(postgres_url).database)
    postgres.execute("ALTER TABLE jobrunner.jobrunner_schema_version ENABLE ROW LEVEL SECURITY", database)
    db = Database.open(guest_url)
    with pytest.raises(
        DatabaseError, match=r"row-level security shows guest_of_.* no row of jobrunner.jobrunner_schema"
    ):
        await revisions.status(db)
    await db.close()
