"""Where a page's links lead: always relative, so that they hold under any prefix, also one that a proxy takes away.

A page cannot know what stands before its own path in the browser; how deep it lies itself, it knows. A part of a page
that is shown inside another one (a form in a dialog) is told by that one's script how deep that one lies.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.requests import Request

BASE_HEADER = "Jobrunner-Base"
_BASE = re.compile(r"\./|(\.\./){1,9}")


def root_of(request: Request) -> str:
    """Return the prefix under which the application is mounted, as far as it is known here, without a slash at its end.

    One that a proxy takes away is not.
    """
    return str(request.scope.get("root_path", "")).rstrip("/")


def path_of(request: Request) -> str:
    """Return the path of a request below the prefix under which the application is mounted."""
    path, root = str(request.scope["path"]), root_of(request)
    return (path.removeprefix(root) if path.startswith(f"{root}/") else path) or "/"


def base_of(request: Request) -> str:
    """Return the way from the page that is open in the browser to the console's first page: `./`, `../`, `../../`."""
    said = request.headers.get(BASE_HEADER, "")
    if "hx-request" in request.headers and _BASE.fullmatch(said):
        return said
    return own_base(path_of(request))


def own_base(path: str) -> str:
    """Return the way from a path to the console's first page."""
    return "../" * (path.count("/") - 1) or "./"
