"""From the settings to who may do what: for a server of ours, and for an application that is mounted in another.

On this machine alone reading is open and writing needs a token; where none is set, one is made at the start. Elsewhere
nothing opens without a token, and without one nothing is started. Where a setting tells of a proxy nothing is open.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobrunner.errors import InvalidSetting
from jobrunner.web.access import Level, TokenAccess, is_loopback
from jobrunner.web.guard import Hosts

if TYPE_CHECKING:
    from jobrunner.config import Settings
    from jobrunner.web.access import Access

_ADDRESS = re.compile(r"(?:(?P<host>[^:\[\]]*)|\[(?P<v6>[^\]]+)\]):(?P<port>\d{1,5})")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read `HOST:PORT`, an IPv6 address in brackets. Raises `InvalidSetting`."""
        found = _ADDRESS.fullmatch(text.strip())
        host = "" if found is None else found["host"] or found["v6"] or ""
        if found is None or not host or int(found["port"]) > 65535:
            raise InvalidSetting(
                f"{text!r} is no address to listen on; write HOST:PORT, such as 127.0.0.1:8484, "
                "or 0.0.0.0:8484 for every network of this machine"
            )
        return cls(host, int(found["port"]))

    @property
    def is_local(self) -> bool:
        """Say whether only this machine can reach it."""
        return is_loopback(self.host)

    def url(self, port: int | None = None) -> str:
        """Return the address as a browser takes it; `port`: the one that is listened on, where 0 was asked for."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - what is shown for it
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port if port is None else port}/"


@dataclass(frozen=True, slots=True)
class Rule:
    """Who may do what. `tokens` is the built-in rule, where that is the one; `link_token` was made at the start."""

    access: Access
    hosts: Hosts
    tokens: TokenAccess | None = None
    link_token: str | None = None


def served_rule(settings: Settings, address: Address) -> Rule:
    """Return the rule of a server of ours.

    Raises:
        InvalidSetting: it can be reached from elsewhere and no token is set, or a setting cannot be used.
    """
    tokens = _tokens(settings)
    made = secrets.token_urlsafe(24) if address.is_local and not tokens and settings.http_user_header is None else None
    if made is not None:
        tokens[Level.ADMIN] = made
    if not address.is_local and not tokens and settings.http_user_header is None:
        raise InvalidSetting(
            f"{address.host}:{address.port} can be reached from other machines, and no token is set; "
            "set JOBRUNNER_HTTP_TOKEN (and JOBRUNNER_HTTP_READ_TOKEN), or listen on 127.0.0.1"
        )
    is_open = address.is_local and not _is_published(settings)
    access = _built_in(settings, tokens, is_open=is_open, link_token=made)
    return Rule(access, Hosts(settings.http_hosts or (), is_local=address.is_local), access, made)


def mounted_rule(settings: Settings, access: Access | None) -> Rule:
    """Return the rule of an application that is mounted in another: nothing is open.

    Raises:
        InvalidSetting: there is neither `access` nor a token, or a setting cannot be used.
    """
    hosts = Hosts(settings.http_hosts)
    if access is not None:
        return Rule(access, hosts)
    tokens = _tokens(settings)
    if not tokens and settings.http_user_header is None:
        raise InvalidSetting("nobody may open this console; set JOBRUNNER_HTTP_TOKEN, or give access=")
    built_in = _built_in(settings, tokens)
    return Rule(built_in, hosts, built_in)


def _built_in(
    settings: Settings, tokens: dict[Level, str], *, is_open: bool = False, link_token: str | None = None
) -> TokenAccess:
    return TokenAccess(
        tokens,
        is_open=is_open,
        link_token=link_token,
        user_header=settings.http_user_header,
        proxies=settings.http_proxies or (),
        user_level=Level.of(settings.http_user_level),
    )


def _is_published(settings: Settings) -> bool:
    """Say whether a setting tells of a proxy or of a name for others: then what comes from this machine may be theirs.

    A proxy on this machine need not say for whom it asks: nginx's `proxy_pass` alone adds no header, and its Host is
    ours.
    """
    return any((settings.http_proxies, settings.http_user_header, settings.http_hosts, settings.http_url))


def _tokens(settings: Settings) -> dict[Level, str]:
    given = {
        Level.READ: settings.http_read_token,
        Level.OPERATE: settings.http_operate_token,
        Level.ADMIN: settings.http_token,
    }
    return {level: token for level, token in given.items() if token is not None}
