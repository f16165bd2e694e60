"""Who may do what: levels, tokens, and the cookie that stands for a token after a login.

Each route says which level it needs, and each request is given one, on the server, by an access rule: a function
`access(request) -> (level, actor)`. `TokenAccess` is the one that is built in.

The cookie is no token: it says a level, a name and until when, signed with a key that is made from the token of that
level. Who takes the token away or changes it ends every login with it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

from jobrunner.errors import InvalidSetting
from jobrunner.runtime.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request

OPEN_ACTOR = "local@http"
"""Who reads from this machine itself without a token."""
LOGIN_SECONDS = 7 * 86400.0
_LONGEST_NAME = 100
_UNFIT = re.compile(r"[^\w.@+ -]")


class Level(IntEnum):
    """What somebody may do, each level all that those below it may."""

    NONE = 0
    READ = 1
    OPERATE = 2
    ADMIN = 3

    @classmethod
    def of(cls, given: object) -> Level:
        """Return the level that an access rule has named. Raises `ValueError` for what is none."""
        if isinstance(given, Level):
            return given
        if isinstance(given, str) and given.upper() in cls.__members__:
            return cls[given.upper()]
        msg = f"an access rule must return one of none, read, operate and admin, not {given!r}"
        raise ValueError(msg)


Access = Callable[["Request"], "tuple[Level | str, str] | Awaitable[tuple[Level | str, str]]"]


class Unauthorized(Exception):
    """The request brings credentials that are wrong: it is refused also where none are needed."""


@dataclass(frozen=True, slots=True)
class Login:
    """Who has logged in, and until when (seconds since 1970)."""

    level: Level
    actor: str
    until: float


class TokenAccess:
    """The built-in rule; call it with a request.

    Args:
        tokens: the token of each level that has one.
        is_open: reading needs no token, from this machine itself.
        link_token: the one that was made at the start, which `/login?token=` takes.
        user_header: the header in which a proxy names the person; None: no proxy does.
        proxies: addresses and networks of those proxies.
        user_level: what such a person may do.
    """

    def __init__(
        self,
        tokens: Mapping[Level, str],
        *,
        is_open: bool = False,
        link_token: str | None = None,
        user_header: str | None = None,
        proxies: tuple[str, ...] = (),
        user_level: Level = Level.OPERATE,
    ) -> None:
        if user_header is not None and not proxies:
            raise InvalidSetting(
                "JOBRUNNER_HTTP_USER_HEADER is believed only of proxies that are named; "
                "set JOBRUNNER_HTTP_PROXIES to their addresses or networks"
            )
        self._tokens = dict(tokens)
        self._is_open = is_open
        self._link_token = link_token
        self._user_header = user_header
        self._proxies = [ip_network(proxy, strict=False) for proxy in proxies]
        self._user_level = user_level
        every = "\n".join(f"{level}={token}" for level, token in sorted(tokens.items()))
        self.cookie = f"jobrunner_{hashlib.sha256(b'cookie ' + every.encode()).hexdigest()[:8]}"

    def __call__(self, request: Request) -> tuple[Level, str]:
        """Return what the one who asks may do, and the name for the audit log. Raises `Unauthorized`."""
        user = self._user_of(request)
        bearer = _bearer(request)
        if bearer is not None:
            level = self.level_of(bearer)
            if level is None:
                raise Unauthorized
            return level, user or f"{level.name.lower()}@http"
        if user is not None:
            return self._user_level, user
        login = self.read_cookie(request.cookies.get(self.cookie))
        if login is not None:
            return login.level, login.actor
        if self._is_open and is_from_here(request):
            return Level.READ, OPEN_ACTOR
        return Level.NONE, "nobody"

    def level_of(self, token: str) -> Level | None:
        """Return the highest level that a token opens; every one is compared, in constant time."""
        given = token.encode()
        found = [level for level, known in self._tokens.items() if hmac.compare_digest(given, known.encode())]
        return max(found, default=None)

    def is_of_link(self, token: str) -> bool:
        """Say whether it is the token of the link that was printed at the start."""
        return self._link_token is not None and hmac.compare_digest(token.encode(), self._link_token.encode())

    def write_cookie(self, level: Level, name: str | None) -> str:
        """Return the cookie's value for a login that has begun now."""
        shown = _UNFIT.sub("", name or "").strip()[:_LONGEST_NAME]
        actor = f"{shown or level.name.lower()}@http"
        said = json.dumps([int(level), actor, int(_now() + LOGIN_SECONDS)], separators=(",", ":"))
        text = base64.urlsafe_b64encode(said.encode()).decode().rstrip("=")
        return f"{text}.{self._signature(level, text)}"

    def read_cookie(self, value: str | None) -> Login | None:
        """Return the login that a cookie stands for; None for one that is not ours, or whose time is over."""
        text, dot, signature = (value or "").partition(".")
        if not dot:
            return None
        for level in self._tokens:
            if hmac.compare_digest(signature.encode(), self._signature(level, text).encode()):
                said: list[Any] = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
                login = Login(Level(said[0]), str(said[1]), float(said[2]))
                return login if login.level is level and login.until > _now() else None
        return None

    def _signature(self, level: Level, text: str) -> str:
        key = hashlib.sha256(b"login " + self._tokens[level].encode()).digest()
        return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()

    def _user_of(self, request: Request) -> str | None:
        """Return who the proxy says it is; nobody else is believed."""
        if self._user_header is None or request.client is None:
            return None
        user = request.headers.get(self._user_header, "").strip()[:_LONGEST_NAME]
        return user if user and user.isprintable() and _is_in(request.client.host, self._proxies) else None

    def is_behind_proxy(self, request: Request) -> bool:
        """Say whether the request comes from a proxy that was named."""
        return request.client is not None and _is_in(request.client.host, self._proxies)


def is_from_here(request: Request) -> bool:
    """Say whether the request comes from this machine itself, not through a proxy on it."""
    client, headers = request.client, request.headers
    is_passed_on = any(name in headers for name in ("forwarded", "x-forwarded-for", "x-real-ip", "via"))
    return client is not None and is_loopback(client.host) and not is_passed_on


def is_loopback(host: str) -> bool:
    """Say whether a name or address is this machine's own, which no other can reach."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def _is_in(host: str, networks: list[Any]) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None) or address
    return any(mapped in network for network in networks if network.version == mapped.version)


def _bearer(request: Request) -> str | None:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _now() -> float:
    return SystemClock().now().timestamp()
