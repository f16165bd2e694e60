"""The application: every route behind its level, everything behind the guard.

`/api/…` comes from the table of routes, which says what each takes and who may ask. Pages find their place in `_pages`.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route as Path

from jobrunner.policy.arguments import check_text, read_id
from jobrunner.web.access import OPEN_ACTOR, Level, Unauthorized
from jobrunner.web.answers import TRY_AGAIN, answer, encoded, error, rows_json, told
from jobrunner.web.api.ask import MOST_PAGE_BYTES, Ask, Page, TooLarge, body_of, next_link, query_of, trace_of
from jobrunner.web.api.fields import read_fields
from jobrunner.web.api.openapi import document
from jobrunner.web.api.table import ROUTES
from jobrunner.web.guard import Guard
from jobrunner.web.login import LoginPage
from jobrunner.web.metrics import Metrics
from jobrunner.web.pages.links import root_of
from jobrunner.web.pages.responses import back_to
from jobrunner.web.pages.site import Site
from jobrunner.web.probes import Probes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send

    from jobrunner.web.api.table import Route
    from jobrunner.web.desk import Desk
    from jobrunner.web.rules import Rule

    Endpoint = Callable[[Request], Awaitable[Response]]
    Refuse = Callable[[Request, int, str, Mapping[str, str] | None], Awaitable[Response]]

_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="jobrunner"'}
_MOST_REQUESTS = 200
"""So many are answered at a time; the two probes that decide about restarts come on top."""


class Console:
    """The ASGI application of one desk, for one rule."""

    def __init__(self, desk: Desk, rule: Rule) -> None:
        self.desk = desk
        self.rule = rule
        self.metrics = Metrics(desk)
        self._going = 0
        self.site = Site(desk, has_login=rule.tokens is not None)
        probes = Probes(desk)
        self.paths = [
            Path("/livez", _guarded(probes.livez)),
            Path("/readyz", _guarded(probes.readyz)),
            Path("/healthz", self._behind(Level.READ, probes.healthz)),
            Path("/metrics", self._behind(Level.READ, self.metrics.show)),
            Path("/api/openapi.json", self._behind(Level.READ, self._document)),
            Path("/stream", self._behind(Level.READ, self.site.stream.show)),
            *(self._path(route) for route in ROUTES),
            *self._pages(),
        ]
        app = Starlette(routes=self.paths, exception_handlers={HTTPException: self._refused})
        app.router.redirect_slashes = False  # it would redirect to the scheme and host that a proxy has changed
        self._app = Guard(app, rule.hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        await self._app(scope, receive, send)

    def _pages(self) -> list[Path]:
        """Return the paths for people."""
        tokens = self.rule.tokens
        pages = self.site.paths(self._page_behind, self._open)
        if tokens is not None:
            login = LoginPage(tokens, self.site)
            pages += [
                Path("/login", self._open(login.show), methods=["GET"]),
                Path("/login", self._open(login.log_in), methods=["POST"]),
                Path("/logout", self._open(login.log_out), methods=["POST"]),
            ]
        return pages

    def _page_behind(self, needed: Level, endpoint: Endpoint) -> Endpoint:
        """Return a page for those of a level: what goes wrong with it is a page, too."""
        return self._behind(needed, endpoint, is_page=True)

    async def _document(self, request: Request) -> Response:
        return answer(document(ROUTES, root_of(request)))

    def _path(self, route: Route) -> Path:
        return Path(
            route.path,
            self._behind(route.level, lambda request: self._answer(route, request)),
            methods=[route.method],
            name=f"{route.method} {route.path}",
        )

    async def _answer(self, route: Route, request: Request) -> Response:
        """Do what a route of the table says."""
        named = request.path_params
        several = frozenset(field.name for field in route.fields if field.kind.is_several)
        if route.method == "GET":
            given: Mapping[str, Any] = query_of(request, several)
        else:
            given = await body_of(request, several)
        path = {name: read_id(name, said) if name == "id" else check_text(name, said) for name, said in named.items()}
        now = self.desk.now()
        fields = read_fields(route.fields, given, now)
        level, actor = request.state.level, request.state.actor
        found = await route.do(Ask(self.desk, level, actor, path, fields, now, trace_of(request)))
        if not isinstance(found, Page):
            return answer(await asyncio.to_thread(encoded, found))  # it may be large, and others wait for the loop
        most = math.inf if found.place_of is None else MOST_PAGE_BYTES
        text, count = await asyncio.to_thread(rows_json, found.rows, most)
        after, searched = found.after, found.searched
        if found.place_of is not None and count < len(found.rows):
            after, searched = found.place_of(found.rows[count - 1]), None
        headers = {} if after is None else {"Link": next_link(request, after)}
        if searched is not None:
            headers["Jobrunner-Searched"] = str(searched)
        return answer(text, headers=headers)

    def _open(self, endpoint: Endpoint, refuse: Refuse | None = None) -> Endpoint:
        """Return an endpoint for everybody, of which no more than `_MOST_REQUESTS` are answered at a time.

        Whoever listens to a stream is not counted: how many do is limited for each browser.
        """
        refuse = refuse or _as_json

        async def one_of_many(request: Request) -> Response:
            if self._going >= _MOST_REQUESTS:
                busy = f"{_MOST_REQUESTS} requests are being answered; try again"
                return await refuse(request, 503, busy, {"Retry-After": "1"})
            self._going += 1
            try:
                return await endpoint(request)
            finally:
                self._going -= 1

        return _guarded(one_of_many, refuse)

    def _behind(self, needed: Level, endpoint: Endpoint, *, is_page: bool = False) -> Endpoint:
        """Return an endpoint for those of a level; a page sends the others to the login."""
        refuse = self.site.refuse if is_page else _as_json

        async def check(request: Request) -> Response:
            try:
                level, actor = await self._who(request)
            except Unauthorized:
                return await refuse(request, 401, "that token is not known", _CHALLENGE)
            request.state.level, request.state.actor = level, actor
            if level >= needed:
                return await endpoint(request)
            has_login = is_page and self.rule.tokens is not None
            if level is not Level.NONE and not (has_login and actor == OPEN_ACTOR):
                said = f"this needs the level {needed.name.lower()}, and you have {level.name.lower()}"
                return await refuse(request, 403, said, None)
            if has_login:
                return back_to(request, "login")
            said = "this needs a token: send it as `Authorization: Bearer …`, or log in at /login"
            return await refuse(request, 401, said, _CHALLENGE)

        return self._open(check, refuse)

    async def _who(self, request: Request) -> tuple[Level, str]:
        """Return what the access rule says of who asks."""
        said = self.rule.access(request)
        level, actor = await said if inspect.isawaitable(said) else said
        return Level.of(level), str(actor)

    async def _refused(self, request: Request, raised: Exception) -> Response:
        """Answer what no route takes: to a browser with a page."""
        headers = None
        if isinstance(raised, HTTPException):
            said = {404: "there is nothing at this address", 405: "this address does not take that method"}
            status, headers = raised.status_code, raised.headers
            message = said.get(status, str(raised.detail))
        else:
            status, message = told(raised)
        is_page = "text/html" in request.headers.get("accept", "")
        return await (self.site.refuse if is_page else _as_json)(request, status, message, headers)


def _guarded(endpoint: Endpoint, refuse: Refuse | None = None) -> Endpoint:
    """Return the endpoint with every error as an answer: a sentence, and never a traceback."""
    refuse = refuse or _as_json

    async def endpoint_or_error(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ClientDisconnect:
            return error(400, "the body ended early")  # nobody is there to read it
        except HTTPException as raised:  # of a program's own access rule
            return await refuse(request, raised.status_code, str(raised.detail), raised.headers)
        except TooLarge:
            return await refuse(request, 413, "the body is too large; a payload may have 1 MiB", None)
        except Exception as raised:  # noqa: BLE001 - whoever asks gets an answer, and the log the error
            status, message = told(raised)
            return await refuse(request, status, message, TRY_AGAIN if status == 503 else None)

    return endpoint_or_error


async def _as_json(_request: Request, status: int, message: str, headers: Mapping[str, str] | None) -> Response:
    return error(status, message, headers)
