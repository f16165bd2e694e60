"""What those who ask too much, or never finish asking, can do to the others."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time

import httpx
import pytest

from jobrunner import WorkerOrchestrator
from jobrunner.errors import DatabaseUnavailable
from jobrunner.runtime.kept import KeptDatabases
from jobrunner.web import app, connections
from jobrunner.web.rules import Address
from jobrunner.web.server import Server
from tests.web.conftest import HERE, SETTINGS, Web

PATHS = ("/livez", "/readyz", "/api/workers")


@contextlib.contextmanager
def served(web: Web):
    server = Server(WorkerOrchestrator(web.stage.url, **SETTINGS), Address("127.0.0.1", 0))
    with server.in_thread():
        yield httpx.URL(server.url)


def ask(url: httpx.URL) -> dict[str, int]:
    with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
        return {path: client.get(path).status_code for path in PATHS}


def silent(url: httpx.URL, said: bytes = b"") -> socket.socket:
    connection = socket.create_connection((url.host, url.port), timeout=20)
    connection.sendall(said)
    return connection


async def test_connections_that_say_nothing_keep_nobody_out(web: Web, monkeypatch):
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 20)
    with served(web) as url, contextlib.ExitStack() as stack:
        for _ in range(250):
            stack.enter_context(await asyncio.to_thread(silent, url))
        assert await asyncio.to_thread(ask, url) == dict.fromkeys(PATHS, 200)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n",
        b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\ntoken=",
    ],
    ids=["nothing", "half a head", "half a body"],
)
async def test_a_request_that_does_not_arrive_in_time_is_given_up(web: Web, monkeypatch, said):
    monkeypatch.setattr(connections, "ARRIVAL_SECONDS", 0.3)

    def trickle(connection: socket.socket) -> None:
        connection.settimeout(0.05)
        ends_at = time.monotonic() + 20
        while time.monotonic() < ends_at:
            try:
                if not connection.recv(1000):
                    return
            except TimeoutError:
                with contextlib.suppress(OSError):
                    connection.sendall(b"x" if said else b"")
            except ConnectionError:
                return
        pytest.fail("the connection is still there")

    with served(web) as url, silent(url, said) as connection:
        await asyncio.to_thread(trickle, connection)
        assert await asyncio.to_thread(ask, url) == dict.fromkeys(PATHS, 200)


async def test_a_request_that_has_arrived_may_take_its_time(web: Web, monkeypatch):
    monkeypatch.setattr(connections, "ARRIVAL_SECONDS", 0.1)
    looked = app.LoginPage.show

    async def slow(self, request):
        await asyncio.sleep(0.5)
        return await looked(self, request)

    monkeypatch.setattr(app.LoginPage, "show", slow)
    with served(web) as url:
        response = await asyncio.to_thread(httpx.get, url.join("/login"), trust_env=False)
        assert response.status_code == 200


async def test_probes_are_answered_beyond_the_most_requests(web: Web, monkeypatch):
    monkeypatch.setattr(app, "_MOST_REQUESTS", 1)
    waits, goes_on = asyncio.Event(), asyncio.Event()

    async def access(_request):
        waits.set()
        await goes_on.wait()
        return "read", "ann"

    console = app.Console(web.console().desk, app_rule(web, access))
    async with web.client(console) as client:
        first = asyncio.ensure_future(client.get("/api/workers"))
        await waits.wait()
        refused = await client.get("/api/workers")
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert [(await client.get(path)).status_code for path in ("/livez", "/readyz")] == [200, 200]
        goes_on.set()
        assert (await first).status_code == 200
        assert (await client.get("/api/workers")).status_code == 200


def app_rule(web: Web, access):
    from jobrunner.web.rules import mounted_rule

    return mounted_rule(web.orchestrator.settings, access)


async def test_slow_questions_do_not_keep_readyz_from_the_database(web: Web):
    console = web.console()
    async with web.client(console, at=HERE) as client, contextlib.AsyncExitStack() as stack:
        for _ in range(2):  # all the connections there are for questions
            await stack.enter_async_context(console.desk.reading())
        async with asyncio.timeout(1.5):
            assert (await client.get("/readyz")).status_code == 200


async def test_whoever_asks_while_the_database_was_just_out_of_reach_does_not_wait_again():
    tries = 0

    async def unreachable(_db):
        nonlocal tries
        tries += 1
        await asyncio.sleep(0.05)
        raise DatabaseUnavailable("it is away")

    class Closed:
        async def close(self) -> None: ...

    kept = KeptDatabases(Closed, unreachable, unreachable, failing_seconds=60)  # type: ignore[arg-type]  # all that is asked
    found = await asyncio.gather(*(kept.get() for _ in range(20)), return_exceptions=True)
    assert {str(each) for each in found} == {"it is away"}
    assert tries == 1
