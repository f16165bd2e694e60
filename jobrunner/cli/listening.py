"""Answering HTTP: where, and what is said of it; for a node's process, and for one that does nothing else."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from jobrunner.cli.output import note

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from jobrunner.runtime.orchestrator import WorkerOrchestrator
    from jobrunner.web.server import Server

DEFAULT_ADDRESS = "127.0.0.1:8484"
HttpAddress = Annotated[
    str | None,
    typer.Option("--http", metavar="HOST:PORT", help="Where to answer HTTP; else JOBRUNNER_HTTP."),
]


def beside_node(orchestrator: WorkerOrchestrator) -> AbstractContextManager[None]:
    """Return a block in which a node's process answers HTTP, if its settings say where.

    Raises:
        MissingExtra: the packages for it are not installed.
        InvalidSetting: the address cannot be used, or would be open to other machines.
        CannotListen: it is in use.
    """
    address = orchestrator.settings.http
    return nullcontext() if address is None else serving_beside_node(orchestrator, address)


@contextmanager
def serving_beside_node(orchestrator: WorkerOrchestrator, address: str) -> Iterator[None]:
    """Answer HTTP inside the block, in a node's process. Raises as `beside_node`."""
    with open_server(orchestrator, address, expects_node=True).in_thread():
        yield


def open_server(orchestrator: WorkerOrchestrator, address: str, *, expects_node: bool) -> Server:
    """Listen, and say where. Raises as `beside_node`."""
    import jobrunner.web.server as servers  # noqa: PLC0415 - the extra may not be installed
    from jobrunner.web.rules import Address  # noqa: PLC0415 - likewise

    server = servers.Server(orchestrator, Address.parse(address), expects_node=expects_node)
    if server.has_made_token:
        note(f"open {server.link} (the token is of this start; JOBRUNNER_HTTP_TOKEN sets one that stays)")
    else:
        note(f"answers HTTP at {server.url}")
    return server
