"""Servers of our own: in a node's process, on a thread and loop of its own, and one that is all a process does.

The address is listened on before anything else is done, so that one which is taken is told at once, in one line.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from typing import TYPE_CHECKING

import uvicorn

from jobrunner.errors import CannotListen
from jobrunner.runtime import forks
from jobrunner.runtime.process import first_of, stop_signals, wait_for
from jobrunner.storage.database.forks import keep_private
from jobrunner.web.app import Console
from jobrunner.web.connections import Connection
from jobrunner.web.desk import Desk
from jobrunner.web.rules import Address, served_rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jobrunner.runtime.orchestrator import WorkerOrchestrator

_BACKLOG = 128
_LAST_SECONDS = 2
_JOIN_SECONDS = 5.0


class Server:
    """A console that listens. `link` opens it: with the token that was made for it, where none was set."""

    def __init__(self, orchestrator: WorkerOrchestrator, address: Address, *, expects_node: bool = False) -> None:
        """Listen on the address; nothing is answered yet.

        Raises:
            InvalidSetting: it would be open to other machines, or a setting cannot be used.
            CannotListen: the address is in use, or not this machine's.
        """
        rule = served_rule(orchestrator.settings, address)
        self._socket = _listen(address)
        self._console = Console(Desk(orchestrator, expects_node=expects_node), rule)
        self._server = _Uvicorn(
            uvicorn.Config(
                self._console,
                loop="asyncio",
                http=Connection,
                ws="none",
                lifespan="off",
                log_config=None,  # the program's logging is its own
                log_level="warning",
                access_log=False,
                proxy_headers=False,  # who asks is who is connected; which proxies to believe is a setting of ours
                server_header=False,
                timeout_graceful_shutdown=_LAST_SECONDS,
            )
        )
        self._thread = threading.Thread(target=self._body, name="jobrunner:http", daemon=True)
        self.url = address.url(self._socket.getsockname()[1])
        self.has_made_token = rule.link_token is not None
        self.site = self._console.site
        self.link = f"{self.url}login?token={rule.link_token}" if self.has_made_token else self.url

    async def serve(self) -> None:
        """Answer until SIGTERM or SIGINT."""
        stop_asked, stop_now = asyncio.Event(), asyncio.Event()
        with stop_signals(stop_asked, stop_now):
            serving = asyncio.ensure_future(self._server.serve(sockets=[self._socket]))
            await first_of(serving, wait_for(stop_asked))
            self._end()
            await first_of(serving, wait_for(stop_now))
            self._server.force_exit = True
            await serving

    @contextlib.contextmanager
    def in_thread(self) -> Iterator[None]:
        """Answer from a thread of its own, inside the block."""
        self._thread.start()
        try:
            yield
        finally:
            self._end()
            self._thread.join(_JOIN_SECONDS)
            self._socket.close()

    def _end(self) -> None:
        """Have the server end: its streams first, which would not by themselves."""
        self.site.stream.end()
        self._server.should_exit = True

    def _body(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        loop = asyncio.get_running_loop()
        forks.protect(loop)
        try:
            await self._server.serve(sockets=[self._socket])
        finally:
            forks.unprotect(loop)


class _Uvicorn(uvicorn.Server):
    """A server that leaves signals to the process: a node's own are for its drain."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def _listen(address: Address) -> socket.socket:
    """Return a socket that listens on the address. Raises `CannotListen`."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, place = found[0]
        opened = socket.create_server(place[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        is_of_system = error.errno is not None and error.errno > 0  # that of an unknown name is not
        reason = (os.strerror(error.errno or 0) if is_of_system else error.strerror or str(error)).lower()
        raise CannotListen(
            f"cannot listen on {address.host}:{address.port}: {reason}; give another HOST:PORT, or end what has it"
        ) from None
    keep_private(opened, socket.socket.fileno)
    return opened
