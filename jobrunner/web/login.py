"""Logging in with a token, by a form or by the link that was printed at the start: a cookie stands for it then."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from jobrunner.web.access import LOGIN_SECONDS, Level, TokenAccess
from jobrunner.web.pages.responses import back_to, cookie_path, html

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from jobrunner.web.pages.site import Site

_MOST_BYTES = 16 * 1024


class LoginPage:
    """`/login` and `/logout`, of the built-in rule."""

    def __init__(self, tokens: TokenAccess, site: Site) -> None:
        self._tokens = tokens
        self._site = site

    async def show(self, request: Request) -> Response:
        """Show the form; or let in who follows the link that was printed at the start."""
        token = request.query_params.get("token", "")
        if token and self._tokens.is_of_link(token):
            return self._let_in(request, Level.ADMIN, None)
        return await self._form(
            request, "That link is of an earlier start; take the one printed last." if token else None
        )

    async def log_in(self, request: Request) -> Response:
        """Take the form."""
        raw = bytearray()
        async for chunk in request.stream():
            raw += chunk
            if len(raw) > _MOST_BYTES:
                return await self._form(request, "That is no token.", 413)
        given = parse_qs(raw.decode("utf-8", "replace"))
        level = self._tokens.level_of(given.get("token", [""])[0].strip())
        if level is None:
            return await self._form(request, "That token is not known.", 401)
        return self._let_in(request, level, given.get("name", [""])[0])

    async def log_out(self, request: Request) -> Response:
        """Forget the login in this browser."""
        response = back_to(request, "login")
        response.delete_cookie(self._tokens.cookie, path=cookie_path(request), httponly=True, samesite="strict")
        return response

    def _let_in(self, request: Request, level: Level, name: str | None) -> Response:
        response = back_to(request, "")
        is_secure = request.url.scheme == "https" or (
            self._tokens.is_behind_proxy(request) and request.headers.get("x-forwarded-proto") == "https"
        )
        response.set_cookie(
            self._tokens.cookie,
            self._tokens.write_cookie(level, name),
            max_age=int(LOGIN_SECONDS),
            path=cookie_path(request),
            httponly=True,
            samesite="strict",
            secure=is_secure,
        )
        return response

    async def _form(self, request: Request, said: str | None, status: int = 200) -> Response:
        body = await self._site.render("login.html", request, {"title": "Log in", "refused": said})
        return html(body, status)
