"""Logging in with a token, by a form or by the link that was printed at the start: a cookie stands for it then."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from starlette.responses import HTMLResponse, RedirectResponse, Response

from jobrunner.web.access import LOGIN_SECONDS, Level, TokenAccess

if TYPE_CHECKING:
    from starlette.requests import Request

_MOST_BYTES = 16 * 1024
_FORM = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>jobrunner: log in</title>
<main>
<h1>jobrunner</h1>{said}
<form method="post">
<p><label>Token <input name="token" type="password" autocomplete="current-password" required></label></p>
<p><label>Your name, for the audit log <input name="name" autocomplete="username" maxlength="100"></label></p>
<p><button>Log in</button></p>
</form>
</main>
</html>
"""


class LoginPage:
    """`/login` and `/logout`, of the built-in rule."""

    def __init__(self, tokens: TokenAccess) -> None:
        self._tokens = tokens

    async def show(self, request: Request) -> Response:
        """Show the form; or let in who follows the link that was printed at the start."""
        token = request.query_params.get("token", "")
        if token and self._tokens.is_of_link(token):
            return self._let_in(request, Level.ADMIN, None)
        return _form("That link is of an earlier start; take the one printed last." if token else "")

    async def log_in(self, request: Request) -> Response:
        """Take the form."""
        raw = bytearray()
        async for chunk in request.stream():
            raw += chunk
            if len(raw) > _MOST_BYTES:
                return _form("That is no token.", 413)
        given = parse_qs(raw.decode("utf-8", "replace"))
        level = self._tokens.level_of(given.get("token", [""])[0].strip())
        if level is None:
            return _form("That token is not known.", 401)
        return self._let_in(request, level, given.get("name", [""])[0])

    async def log_out(self, request: Request) -> Response:
        """Forget the login in this browser."""
        response = RedirectResponse(f"{root_of(request)}/login", 303)
        response.delete_cookie(self._tokens.cookie, path=_path(request), httponly=True, samesite="strict")
        return response

    def _let_in(self, request: Request, level: Level, name: str | None) -> Response:
        response = RedirectResponse(f"{root_of(request)}/", 303)
        is_secure = request.url.scheme == "https" or (
            self._tokens.is_behind_proxy(request) and request.headers.get("x-forwarded-proto") == "https"
        )
        response.set_cookie(
            self._tokens.cookie,
            self._tokens.write_cookie(level, name),
            max_age=int(LOGIN_SECONDS),
            path=_path(request),
            httponly=True,
            samesite="strict",
            secure=is_secure,
        )
        return response


def root_of(request: Request) -> str:
    """Return the prefix under which the application is mounted, without a slash at its end."""
    return str(request.scope.get("root_path", "")).rstrip("/")


def _path(request: Request) -> str:
    return root_of(request) or "/"


def _form(said: str = "", status: int = 200) -> Response:
    shown = f'\n<p role="alert">{html.escape(said)}</p>' if said else ""
    return HTMLResponse(_FORM.replace("{said}", shown), status)
