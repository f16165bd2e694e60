"""The application asked without a server: a database with a few workers, a console, and clients of every level."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from jobrunner import WorkerOrchestrator
from jobrunner.runtime.clock import SystemClock
from jobrunner.web.app import Console
from jobrunner.web.desk import Desk
from jobrunner.web.rules import Address, served_rule
from tests.support.stage import Stage, scheduled, triggered

TOKENS = {"read": "the-read-token", "operate": "the-operate-token", "admin": "the-admin-token"}
SETTINGS: dict[str, Any] = {
    "http_read_token": TOKENS["read"],
    "http_operate_token": TOKENS["operate"],
    "http_token": TOKENS["admin"],
}
HERE, ELSEWHERE = ("127.0.0.1", 4711), ("10.1.2.3", 4711)


@dataclass
class Web:
    """A stage and the orchestrator over it; `console` and `client` make what asks."""

    stage: Stage
    orchestrator: WorkerOrchestrator
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    consoles: list[Console] = field(default_factory=list)  # else their connections would be lost before the loop ends

    def console(self, listens_at: str = "127.0.0.1:8484", **settings: Any) -> Console:
        if settings:
            self.orchestrator.configure(**settings)
        rule = served_rule(self.orchestrator.settings, Address.parse(listens_at))
        self.consoles.append(Console(Desk(self.orchestrator), rule))
        return self.consoles[-1]

    def client(
        self,
        app: Any = None,
        *,
        level: str | None = "admin",
        token: str | None = None,
        at: tuple[str, int] = HERE,
        base_url: str = "http://127.0.0.1:8484",
        **headers: str,
    ) -> httpx.AsyncClient:
        """A client with the token of a level, or with `token`; with both None without."""
        given = token if token is not None else None if level is None else TOKENS[level]
        sent = {} if given is None else {"Authorization": f"Bearer {given}"}
        transport = httpx.ASGITransport(self.console() if app is None else app, client=at)
        return httpx.AsyncClient(transport=transport, base_url=base_url, headers={**sent, **headers})


@pytest.fixture
async def web(database_url: str) -> AsyncIterator[Web]:
    """On each database, with workers `fetch` (scheduled) and `mail` (triggered, which hides `card.number`)."""
    stage = Stage(database_url)
    stage.now = SystemClock().now()
    await stage.register(
        scheduled("fetch", interval_seconds=3600),
        triggered("mail", payload={"card": {"number": "4711", "name": "ann"}}, hidden_fields=("card.number",)),
    )
    await stage.join("n1")
    made = Web(stage, WorkerOrchestrator(database_url, **SETTINGS))
    yield made
    await made.orchestrator.stop()
    await stage.db.close()


@pytest.fixture
def sqlite_web_of(sqlite_url: str) -> Callable[..., WorkerOrchestrator]:
    """Make an orchestrator of settings, on SQLite, for what does not reach the database."""
    return lambda **settings: WorkerOrchestrator(sqlite_url, **settings)


class Pages:
    """A browser without scripts, of every level, before one console."""

    def __init__(self, web: Web) -> None:
        self.web = web
        self.app = web.console()

    async def get(self, path: str, level: str | None = "admin", status: int = 200) -> str:
        """Return the page at a path, which must have that status."""
        async with self.web.client(self.app, level=level) as client:
            response = await client.get(path)
        assert response.status_code == status, response.text
        return response.text

    async def send(self, path: str, level: str = "operate", **fields: str) -> httpx.Response:
        """Send a form."""
        async with self.web.client(self.app, level=level) as client:
            return await client.post(path, data=fields)


@pytest.fixture
def pages(web: Web) -> Pages:
    """One console, asked for its pages."""
    return Pages(web)
