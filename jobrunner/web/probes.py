"""Probes, for whoever restarts and routes: is the process alive, can it be used, how is a worker.

`/livez` never asks the database: else an outage of it would restart every node. It says no when the node of this
process has not ticked for three intervals, whatever keeps its loop. While a tick waits for the database, the loop still
answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobrunner.errors import JobrunnerError
from jobrunner.policy.arguments import check_text
from jobrunner.policy.filters import HEALTH
from jobrunner.runtime.vitals import ticks
from jobrunner.storage.reading.status import read_status
from jobrunner.web.answers import answer, error, failure

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from jobrunner.web.desk import Desk

_WELL = frozenset({"healthy", "unknown", "paused"})
"""How a worker may be without anything being wrong: a pause ends, and was somebody's wish."""


class Probes:
    """The three routes."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def livez(self, _request: Request) -> Response:
        """Say whether this process's node ticks; without a node, answering is enough."""
        vitals = self._desk.vitals()
        if vitals is None or await ticks(self._desk.orchestrator, vitals):
            return answer({"status": "ok"})
        return error(503, f"the node has not ticked for {vitals.silence:.0f} s")

    async def readyz(self, _request: Request) -> Response:
        """Say whether the database can be used with this schema, and the node takes work."""
        vitals = self._desk.vitals()
        if vitals is not None and vitals.is_draining:
            return error(503, "the node drains")
        if vitals is None and self._desk.expects_node:
            return error(503, "the node is not running")
        try:
            await self._desk.require_ready()
        except JobrunnerError as raised:
            return failure(raised)
        return answer({"status": "ok"})

    async def healthz(self, request: Request) -> Response:
        """Say how a worker is: 200 where nothing is wrong, else 503."""
        name = request.query_params.get("worker")
        if not name:
            return error(400, "worker is missing: /healthz?worker=NAME")
        check_text("worker", name)
        async with self._desk.reading() as conn:
            (row,) = await read_status(conn, name)
        health = row["health"] if row["health"] in HEALTH else "unknown"
        return answer({"worker": name, "health": health}, 200 if health in _WELL else 503)
