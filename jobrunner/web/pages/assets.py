"""The files that pages load: stylesheet, scripts, icon. Their address holds what they are, so that they can be kept."""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import TYPE_CHECKING

from starlette.responses import Response

from jobrunner.web.answers import error

if TYPE_CHECKING:
    from starlette.requests import Request

_KINDS = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


class Assets:
    """All of them, read once."""

    def __init__(self) -> None:
        folder = resources.files("jobrunner.web") / "static"
        self._files = {
            file.name: file.read_bytes() for file in folder.iterdir() if file.name.rpartition(".")[2] in _KINDS
        }
        whole = hashlib.sha256()
        for name, content in sorted(self._files.items()):
            whole.update(name.encode() + b"\0" + content)
        self.version = whole.hexdigest()[:12]

    def path(self, name: str) -> str:
        """Return the address of a file, below the console's. Raises `KeyError` for one that there is not."""
        self._files[name]
        return f"static/{self.version}/{name}"

    async def show(self, request: Request) -> Response:
        """Answer with a file."""
        name = request.path_params["name"]
        if name not in self._files or request.path_params["version"] != self.version:
            return error(404, "there is nothing at this address")
        kind = _KINDS[name.rpartition(".")[2]]
        kept = {"Cache-Control": "public, max-age=31536000, immutable"}
        return Response(self._files[name], headers=kept, media_type=kind)
