"""Probes with a real server beside a real node: what blocks the node, or takes its database away, and what they say."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from jobrunner import WorkerOrchestrator
from jobrunner.web.rules import Address
from jobrunner.web.server import Server
from tests.support.postgres import LocalPostgres
from tests.web.conftest import SETTINGS, Web

ADDRESS = Address("127.0.0.1", 0)


@asynccontextmanager
async def served(orchestrator: WorkerOrchestrator) -> AsyncIterator[httpx.Client]:
    """The orchestrator's node, and a server in its process; a client that is not of the node's loop."""
    server = Server(orchestrator, ADDRESS, expects_node=True)
    with server.in_thread(), httpx.Client(base_url=server.url, timeout=30, trust_env=False) as client:
        await orchestrator.start()
        try:
            yield client
        finally:
            await orchestrator.stop()


def status(client: httpx.Client, path: str) -> int:
    return client.get(path).status_code


async def until_status(client: httpx.Client, path: str, wanted: int, seconds: float = 30.0) -> httpx.Response:
    """Ask until the answer has that status."""
    async with asyncio.timeout(seconds):
        while (response := await asyncio.to_thread(client.get, path)).status_code != wanted:
            await asyncio.sleep(0.02)
    return response


async def test_livez_says_no_within_three_intervals_while_a_handler_blocks_the_loop(database_url):
    interval = 0.5
    orchestrator = WorkerOrchestrator(database_url, tick_interval=interval, drain_timeout=0, **SETTINGS)
    seen: list[tuple[float, int]] = []
    blocked = threading.Event()

    @orchestrator.worker("rude", execution_mode="triggered", timeout_seconds=60)
    async def rude() -> None:
        blocked.set()
        time.sleep(4)

    def watch(client: httpx.Client) -> None:
        blocked.wait(20)
        began = time.monotonic()
        while time.monotonic() - began < 3.5:
            seen.append((time.monotonic() - began, status(client, "/livez")))
            time.sleep(0.1)

    async with served(orchestrator) as client:
        assert status(client, "/livez") == 200
        watching = asyncio.ensure_future(asyncio.to_thread(watch, client))
        await orchestrator.trigger_worker("rude")
        await watching
        first = next(at for at, code in seen if code == 503)
        assert first <= 3 * interval + 0.5 + 0.6  # half a second for the loop's answer, and the watch's own pace
        assert {code for at, code in seen if at > first} == {503}
        response = await until_status(client, "/livez", 200)
        assert response.json() == {"status": "ok"}


@pytest.mark.slow
async def test_an_outage_of_the_database_leaves_livez_at_200_while_readyz_says_why(
    restartable_postgres: LocalPostgres, restartable_postgres_url: str
):
    orchestrator = WorkerOrchestrator(restartable_postgres_url, tick_interval=0.5, drain_timeout=0, **SETTINGS)
    async with served(orchestrator) as client:
        await until_status(client, "/readyz", 200)
        restartable_postgres.stop()
        response = await until_status(client, "/readyz", 503)
        assert "error" in response.json()
        ends_at = time.monotonic() + 4
        while time.monotonic() < ends_at:
            assert await asyncio.to_thread(status, client, "/livez") == 200
        restartable_postgres.ensure_running()
        await until_status(client, "/readyz", 200)


async def test_a_node_that_drains_is_not_ready_but_lives(sqlite_url):
    orchestrator = WorkerOrchestrator(sqlite_url, tick_interval=60, drain_timeout=20, **SETTINGS)
    goes_on, runs = asyncio.Event(), asyncio.Event()

    @orchestrator.worker("slow", execution_mode="triggered")
    async def slow() -> None:
        runs.set()
        await goes_on.wait()

    async with served(orchestrator) as client:
        await until_status(client, "/readyz", 200)
        await orchestrator.trigger_worker("slow")
        await runs.wait()
        stopping = asyncio.ensure_future(orchestrator.stop())
        response = await until_status(client, "/readyz", 503)
        assert response.json() == {"error": "the node drains"}
        assert await asyncio.to_thread(status, client, "/livez") == 200
        goes_on.set()
        await stopping
        assert (await until_status(client, "/readyz", 503)).json() == {"error": "the node is not running"}


async def test_without_a_node_livez_is_enough_and_readyz_asks_the_database(web: Web):
    async with web.client() as client:
        assert (await client.get("/livez")).json() == {"status": "ok"}
        assert (await client.get("/readyz")).json() == {"status": "ok"}
        await web.stage.sql("UPDATE {p}jobrunner_schema_version SET version_num = '9999'")
        ahead = await client.get("/readyz")
        assert (ahead.status_code, (await client.get("/livez")).status_code) == (503, 200)
        assert "was upgraded by a newer jobrunner" in ahead.json()["error"]
        assert (await client.post("/api/workers/mail/enable")).status_code == 503


async def test_a_missing_schema_is_not_made_by_who_looks(empty_database_url):
    orchestrator = WorkerOrchestrator(empty_database_url, **SETTINGS)
    web = Web(None, orchestrator)  # type: ignore[arg-type]  # nothing is staged
    async with web.client() as client:
        for method, path in (("GET", "/readyz"), ("GET", "/api/workers"), ("POST", "/api/workers/x/enable")):
            response = await client.request(method, path)
            assert response.status_code == 503
            assert "has no jobrunner schema" in response.json()["error"]
    await orchestrator.stop()


async def test_a_worker_is_healthy_or_not(web: Web):
    async with web.client() as client:
        assert (await client.get("/healthz")).status_code == 400
        assert (await client.get("/healthz", params={"worker": "no-such"})).status_code == 404
        unknown = await client.get("/healthz", params={"worker": "mail"})
        assert (unknown.status_code, unknown.json()["worker"]) == (200, "mail")
        await client.post("/api/workers/mail/disable")
        disabled = await client.get("/healthz", params={"worker": "mail"})
    assert (disabled.status_code, disabled.json()) == (503, {"worker": "mail", "health": "disabled"})
