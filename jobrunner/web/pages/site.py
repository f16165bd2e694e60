"""The console's pages as routes: each read, shown in its template, and kept for a moment for whoever asks the same.

A page that is asked by its own script is the same page: the script takes from it what has changed. So there is one way
to make a page, and all of it works without the script.
"""

from __future__ import annotations

import asyncio
import hashlib
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from starlette.responses import Response
from starlette.routing import Route as Path

from jobrunner.policy.arguments import check_text, read_id
from jobrunner.storage.database.asked import recording
from jobrunner.web.access import Level
from jobrunner.web.api.ask import Ask, query_of
from jobrunner.web.api.fields import read_fields
from jobrunner.web.pages.assets import Assets
from jobrunner.web.pages.bulk_form import BulkForm
from jobrunner.web.pages.exports import export_paths
from jobrunner.web.pages.forms import Forms
from jobrunner.web.pages.kept import KeptPages
from jobrunner.web.pages.links import base_of, path_of
from jobrunner.web.pages.output import output_paths
from jobrunner.web.pages.page import COMMON
from jobrunner.web.pages.render import environment, link_values, query
from jobrunner.web.pages.responses import SAID_COOKIE, cookie_path, html, said_of
from jobrunner.web.pages.stream import Stream
from jobrunner.web.pages.table import PAGES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.requests import Request

    from jobrunner.web.desk import Desk
    from jobrunner.web.pages.page import Page

    Endpoint = Callable[[Request], Awaitable[Response]]
    Behind = Callable[[Level, Endpoint], Endpoint]

_MENU = tuple(page for page in PAGES if page.label is not None)
_THEMES = ("light", "dark")
_REFRESH_HEADER = "jobrunner-refresh"
"""A page that is open asks with it, when it was told that something has changed."""
THEME_COOKIE = "jobrunner_theme"


class Site:
    """All pages of one desk. `has_login`: the built-in rule is at work, so that one can log in and out."""

    def __init__(self, desk: Desk, *, has_login: bool) -> None:
        self.desk = desk
        self.has_login = has_login
        self.stream = Stream(desk)
        self._assets = Assets()
        self._templates = environment()
        self._kept = KeptPages(desk.orchestrator.clock)
        self._forms = Forms(desk, self.render, self.stream.wake)

    def paths(self, behind: Behind, free: Callable[[Endpoint], Endpoint]) -> list[Path]:
        """Return the routes: `behind` lets an endpoint be reached by those of a level, `free` by everybody."""
        pages = [Path(page.path, behind(page.level, self._endpoint(page)), methods=["GET"]) for page in PAGES]
        return [
            Path("/static/{version}/{name}", free(self._assets.show)),
            *self._forms.paths(behind),
            *export_paths(self.desk, behind),
            *BulkForm(self.desk, self.render, self.stream.wake).paths(behind),
            *output_paths(self.desk, behind),
            *pages,
        ]

    def _endpoint(self, page: Page) -> Endpoint:
        async def show(request: Request) -> Response:
            return await self._show(page, request)

        return show

    async def _show(self, page: Page, request: Request) -> Response:
        """Answer with a page, or with 304 where the browser has it already."""
        said = request.cookies.get(SAID_COOKIE)
        state, theme = request.state, request.cookies.get(THEME_COOKIE)
        key = (path_of(request), request.url.query, base_of(request), state.level, state.actor, theme)
        if said is None:
            body = await self._kept.get(key, self.stream.generation, lambda: self._make(page, request))
        else:
            body = await self._make(page, request)
        tag = f'"{hashlib.sha256(body).hexdigest()[:24]}"'
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={"ETag": tag})
        response = html(body, headers={"ETag": tag})
        if said is not None:
            response.delete_cookie(SAID_COOKIE, path=cookie_path(request), httponly=True, samesite="strict")
        return response

    async def _make(self, page: Page, request: Request) -> bytes:
        """Read a page, and fill its template; what that costs slows the next look for those who are refreshed."""
        before = self.desk.statements
        body = await self._made(page, request)
        if _REFRESH_HEADER in request.headers:
            self.stream.costs(self.desk.statements - before)
        return body

    async def _made(self, page: Page, request: Request) -> bytes:
        now = self.desk.now()
        named = request.path_params
        path = {name: read_id(name, said) if name == "id" else check_text(name, said) for name, said in named.items()}
        given = {name: value for name, value in query_of(request, several_of(page)).items() if value not in ("", [""])}
        fields = read_fields((*page.fields, *COMMON), given, now)
        ask = Ask(self.desk, request.state.level, request.state.actor, path, fields, now)
        statements: list[str] | None = None
        if fields["as"] == "sql":
            with recording() as statements:
                shown = await page.read(ask)
            statements = list(dict.fromkeys(statements))
        else:
            shown = await page.read(ask)
        facts = {
            **shown.facts,
            "page": page,
            "title": shown.title,
            "commands": shown.cli,
            "api": shown.api,
            "sql": shown.sql,
            "statements": statements,
        }
        return await self.render(f"{page.name}.html", request, facts, given=given)

    async def render(
        self, template: str, request: Request, facts: Mapping[str, Any], *, given: Mapping[str, Any] | None = None
    ) -> bytes:
        """Return a template filled with facts, and with what every page shows."""
        given = dict(given or {})
        tz = given.get("tz", "local")
        kept = {} if tz == "local" else {"tz": tz}
        base = base_of(request)

        def link(path: str, **values: Any) -> str:
            """Return the address of another page, in the same zone."""
            return base + path.lstrip("/") + query(**{**kept, **values})

        def here(**changes: Any) -> str:
            """Return the address of this page with some of its values changed."""
            return (path_of(request).rpartition("/")[2] or "./") + link_values(given, **changes)

        theme = request.cookies.get(THEME_COOKIE)
        level = getattr(request.state, "level", Level.NONE)
        whole = {
            "page": None,
            "commands": (),
            "api": None,
            "sql": None,
            "statements": None,
            "base": base,
            "own_path": path_of(request),
            "link": link,
            "here": here,
            "asset": lambda name: base + self._assets.path(name),
            "given": given,
            "tz": tz,
            "now": self.desk.now(),
            "menu": _MENU,
            "theme": theme if theme in _THEMES else None,
            "level": level,
            "actor": getattr(request.state, "actor", None),
            "may_operate": level >= Level.OPERATE,
            "may_admin": level >= Level.ADMIN,
            "has_login": self.has_login,
            "said": said_of(request),
            "instance": self.desk.name,
            "is_part": "hx-request" in request.headers,
            **facts,
        }
        made = self._templates.get_template(template)
        text = await asyncio.to_thread(made.render, whole)
        return text.encode("utf-8", "backslashreplace")

    async def refuse(self, request: Request, status: int, message: str, headers: Mapping[str, str] | None) -> Response:
        """Answer with an error as a page."""
        title = HTTPStatus(status).phrase
        body = await self.render("error.html", request, {"title": title, "status": status, "message": message})
        return html(body, status, headers)


def several_of(page: Page) -> frozenset[str]:
    """Return the names of the fields that a page takes several times."""
    return frozenset(field.name for field in page.fields if field.kind.is_several)
