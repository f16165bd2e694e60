"""Beginning a bulk operation in two steps: what is meant, then how many that are, and the button that says the number.

What was shown is what is done: the number is sent along, and where another fits by then, it is shown again instead.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from starlette.routing import Route as Path

from jobrunner.errors import InvalidSetting, JobrunnerError
from jobrunner.storage.bulk import DEFAULT_RATE
from jobrunner.storage.tables.bulk_table import BULK_ACTIONS
from jobrunner.web.access import Level
from jobrunner.web.answers import Forbidden, told
from jobrunner.web.api import verbs
from jobrunner.web.api.ask import Ask, raw_body
from jobrunner.web.api.fields import read_fields
from jobrunner.web.api.table import ROUTES
from jobrunner.web.pages.bulk import how_many, list_of
from jobrunner.web.pages.responses import back_to, html

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.requests import Request
    from starlette.responses import Response

    from jobrunner.web.desk import Desk

    Endpoint = Callable[[Request], Awaitable[Response]]
    Render = Callable[..., Awaitable[bytes]]

_FIELDS = next(route.fields for route in ROUTES if route.method == "POST" and route.path == "/api/bulk")
_TAKEN = ("action", "filter", "rate", "reason", "expected")


class BulkForm:
    """The form's two routes. `render` fills a template; `wake` tells whoever looks that something was changed."""

    def __init__(self, desk: Desk, render: Render, wake: Callable[[], None]) -> None:
        self._desk = desk
        self._render = render
        self._wake = wake

    def paths(self, behind: Callable[[Level, Endpoint], Endpoint]) -> list[Path]:
        """Return the routes: the form with its preview, and what it sends."""
        return [
            Path("/bulk/new", behind(Level.OPERATE, self._show), methods=["GET"]),
            Path("/bulk/new", behind(Level.OPERATE, self._begin), methods=["POST"]),
        ]

    async def _show(self, request: Request) -> Response:
        return await self._form(request, request.query_params)

    async def _begin(self, request: Request) -> Response:
        given = dict(parse_qsl((await raw_body(request)).decode("utf-8", "replace"), keep_blank_values=True))
        try:
            if not given.get("expected"):
                raise InvalidSetting("look at what it would be done to first")
            row = await verbs.begin_bulk(self._ask(request, given))
        except (JobrunnerError, Forbidden) as raised:
            return await self._form(request, given, told(raised))
        self._wake()
        number = row["id"]
        said = f"Bulk operation {number} has begun: {row['action']} {how_many(row['action'], row['expected'])}."
        return back_to(request, f"bulk/{number}", {"text": said})

    async def _form(
        self, request: Request, given: Mapping[str, str], refused: tuple[int, str] | None = None
    ) -> Response:
        """Answer with the form; with a preview, where action and filter are there."""
        values = {name: given.get(name, "") for name in _TAKEN if name != "expected"}
        status, message = refused or (200, None)
        seen = None
        if values["action"] in BULK_ACTIONS and values["filter"].strip():
            try:
                seen = await verbs.begin_bulk(self._ask(request, {**values, "dry_run": "true"}))
            except (JobrunnerError, Forbidden) as raised:
                if refused is None:
                    status, message = told(raised)
        facts: dict[str, Any] = {
            "title": "Bulk operation",
            "values": values,
            "actions": BULK_ACTIONS,
            "default_rate": f"{DEFAULT_RATE:g}",
            "seen": seen,
            "number": how_many(seen["action"], seen["expected"]) if seen is not None else None,
            "list": list_of(values["action"]) if values["action"] in BULK_ACTIONS else None,
            "refused": message,
            "commands": _commands(values),
            "api": "api/bulk",
        }
        kept = {name: value for name, value in given.items() if name == "tz" and value in {"utc", "worker"}}
        return html(await self._render("bulk_new.html", request, facts, given=kept), status)

    def _ask(self, request: Request, given: Mapping[str, str]) -> Ask:
        now = self._desk.now()
        wanted = {name: value for name, value in given.items() if name in {*_TAKEN, "dry_run"} and value.strip()}
        fields = read_fields(_FIELDS, wanted, now)
        return Ask(self._desk, request.state.level, request.state.actor, {}, fields, now)


def _commands(values: Mapping[str, str]) -> tuple[str, ...]:
    if values["action"] not in BULK_ACTIONS or not values["filter"].strip():
        return ()
    words = ["jobrunner", "bulk", values["action"], values["filter"]]
    return (shlex.join(words),)
