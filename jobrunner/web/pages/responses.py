"""Answers of pages: HTML, and going back after something was done, with a word about it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode

from starlette.responses import RedirectResponse, Response

from jobrunner.web.pages.links import own_base, path_of, root_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request

SAID_COOKIE = "jobrunner_said"
_SAID_SECONDS = 60


def html(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a page."""
    return Response(body, status, headers, media_type="text/html")


def back_to(request: Request, place: str, said: Mapping[str, str] | None = None) -> Response:
    """Send the browser to another page, which says what was done; `place` is its path below the console's."""
    response = RedirectResponse(own_base(path_of(request)) + place, 303)
    if said is not None:
        response.set_cookie(
            SAID_COOKIE,
            urlencode(said),
            max_age=_SAID_SECONDS,
            path=cookie_path(request),
            httponly=True,
            samesite="strict",
        )
    return response


def cookie_path(request: Request) -> str:
    """Return the path that cookies are for, as far as it is known here."""
    return root_of(request) or "/"


def said_of(request: Request) -> dict[str, str] | None:
    """Return what was done last, which the next page tells: `text`, and `place`, where it can be seen."""
    found = dict(parse_qsl(request.cookies.get(SAID_COOKIE, "")))
    return {"text": found["text"], "place": found.get("place", "")} if found.get("text") else None
