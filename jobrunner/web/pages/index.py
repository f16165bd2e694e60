"""What is shown at the root: the addresses there are."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from starlette.responses import HTMLResponse

from jobrunner.web.login import root_of

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

_LINKS = (
    ("/api/workers", "the workers, and how they stand"),
    ("/api/runs", "the live runs"),
    ("/api/history", "what ended"),
    ("/api/dead-letters", "the dead letters"),
    ("/api/upcoming", "what will fire"),
    ("/api/nodes", "the nodes"),
    ("/api/audit", "who decided what"),
    ("/api/alerts", "what is wrong, and who was told"),
    ("/api/bulk", "what is done to many at once"),
    ("/api/openapi.json", "all of the API, described"),
    ("/metrics", "for Prometheus"),
    ("/livez", "does the node tick"),
    ("/readyz", "can the database be used"),
)
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>jobrunner</title>
<main>
<h1>jobrunner</h1>
<ul>
{links}
</ul>
</main>
</html>
"""


async def show(request: Request) -> Response:
    """Show the page."""
    root = root_of(request)
    links = "\n".join(
        f'<li><a href="{html.escape(root + path)}">{html.escape(path)}</a>: {html.escape(said)}</li>'
        for path, said in _LINKS
    )
    return HTMLResponse(_PAGE.replace("{links}", links))
