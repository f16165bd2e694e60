"""What an attempt has said, whole, as plain text: a page shows its end only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import Response
from starlette.routing import Route as Path

from jobrunner.policy.arguments import read_id
from jobrunner.storage.reading.one_output import read_output
from jobrunner.web.access import Level

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request

    from jobrunner.web.desk import Desk

    Endpoint = Callable[[Request], Awaitable[Response]]


def output_paths(desk: Desk, behind: Callable[[Level, Endpoint], Endpoint]) -> list[Path]:
    """Return the route."""

    async def show(request: Request) -> Response:
        run_id = read_id("id", request.path_params["id"])
        said = request.query_params.get("attempt")
        async with desk.reading() as conn:
            text = await read_output(conn, run_id, None if said is None else read_id("attempt", said))
        headers = {"Content-Disposition": f'inline; filename="run-{run_id}.txt"'}
        return Response(text.encode("utf-8", "backslashreplace"), headers=headers, media_type="text/plain")

    return [Path("/runs/{id}/output", behind(Level.READ, show), methods=["GET"])]
