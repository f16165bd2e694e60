"""A console on a real server of ours, beside the stage that fills its database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from jobrunner import WorkerOrchestrator
from jobrunner.runtime.clock import SystemClock
from jobrunner.web.pages.site import Site
from jobrunner.web.rules import Address
from jobrunner.web.server import Server
from tests.support.stage import Stage


@dataclass(frozen=True)
class Served:
    """A console that answers.

    Attributes:
        url: where, with a slash at its end.
        link: logs in as admin; where a token was set it does not, and is `url`.
        orchestrator: the one that it serves.
        stage: what fills and reads the same database, its clock at the time of the start.
        site: the pages that it serves.
    """

    url: str
    link: str
    orchestrator: WorkerOrchestrator
    stage: Stage
    site: Site

    @property
    def token(self) -> str:
        """The token of the link, which the login form takes, too."""
        return self.link.partition("token=")[2]


@asynccontextmanager
async def serve_console(database: str | WorkerOrchestrator, **settings: Any) -> AsyncIterator[Served]:
    """Serve a console for a database's URL, or for an orchestrator, at a free port of this machine."""
    orchestrator = WorkerOrchestrator(database) if isinstance(database, str) else database
    if settings:
        orchestrator.configure(**settings)
    server = Server(orchestrator, Address("127.0.0.1", 0))
    stage = Stage(str(orchestrator.settings.database_url))
    stage.now = SystemClock().now()
    with server.in_thread():
        yield Served(server.url, server.link, orchestrator, stage, server.site)
    await stage.db.close()
    await orchestrator.stop()
