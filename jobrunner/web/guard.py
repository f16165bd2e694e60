"""What every request passes before any route sees it: whose server it means, and which site sent it.

- **Host.** A page of somebody else's may have its own name lead to this machine (DNS rebinding), and would then be read
  as being of the same site. It sends its own name as Host, which is none of ours: 421.
- **Origin, Sec-Fetch-Site.** What another site's page sends is refused: 403. A link from there may be followed.
- Every answer says that it is for nobody else: what it may load, that it is not kept, nor framed.
"""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders

from jobrunner.web.access import is_loopback
from jobrunner.web.answers import error

if TYPE_CHECKING:
    from collections.abc import Collection

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "font-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # with no-referrer a form of ours would be sent with the Origin `null`
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


class Hosts:
    """The names this server may be called by.

    Args:
        named: those of the setting; None: any, since the program in which it is mounted looks after that.
        is_local: it listens to this machine only, so that no other address can be meant.
    """

    def __init__(self, named: Collection[str] | None, *, is_local: bool = False) -> None:
        self._is_any = named is None
        self._is_local = is_local
        own = set() if is_local else {socket.gethostname().lower()}
        self._named = {name.lower().rstrip(".") for name in named or ()}
        self._names = own | self._named

    def allow(self, header: str) -> bool:
        """Say whether a Host header names this server; the port is left aside."""
        host = _name(header)
        if self._is_any or host in self._names or is_loopback(host):
            return True
        return not self._is_local and _is_address(host)

    def is_own(self, origin: str, header: str) -> bool:
        """Say whether an Origin is this server's: what the Host header says, or, where a proxy changes that, a name."""
        try:
            place = urlsplit(origin)
            return place.netloc.lower() == header.lower() or (place.hostname or "") in self._named
        except ValueError:
            return False


class Guard:
    """The ASGI application around all others."""

    def __init__(self, app: ASGIApp, hosts: Hosts) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refused = self._refusal(scope["method"], Headers(scope=scope))
        await (self._app if refused is None else error(*refused))(scope, receive, sending)

    def _refusal(self, method: str, headers: Headers) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if not self._hosts.allow(host):
            shown = "".join(c for c in _name(host)[:100] if c.isprintable())
            return 421, f"this server is not called {shown!r}; JOBRUNNER_HTTP_HOSTS names what it may be called"
        origin = headers.get("origin")
        if origin is not None and not self._hosts.is_own(origin, host):
            return (
                403,
                "a page of another site sent this (Origin); JOBRUNNER_HTTP_HOSTS names what this server is called",
            )
        site = headers.get("sec-fetch-site", "none")
        is_link = method in _SAFE and headers.get("sec-fetch-mode") == "navigate"
        if site in {"cross-site", "same-site"} and not is_link:
            return 403, "a page of another site sent this (Sec-Fetch-Site); open the console itself"
        return None


def _name(header: str) -> str:
    """Return the host of a Host header, without the port."""
    try:
        return (urlsplit(f"//{header}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
