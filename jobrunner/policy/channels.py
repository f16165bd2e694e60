"""The channels of alerts: which a rule may name, and how they are shown. Pure.

A secret is never part of a rule. What is secret, a whole URL too, is given as `env:NAME`: whoever sends a message reads
it then from its environment.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from jobrunner.errors import InvalidSetting, NotSent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WEBHOOK, COMMAND, APPRISE = "webhook", "command", "apprise"
_REFERENCE = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")
_SECRET_FIELDS = re.compile(r"token|secret|passw|api_?key|signature|^key$|^sig$|^auth", re.IGNORECASE)
_ADVICE = "put the whole URL into an environment variable and give env:NAME"


def webhook(url: str, secret: str | None = None) -> dict[str, Any]:
    """Return the channel of a URL that is sent JSON, signed with `secret` if that is given.

    Raises:
        InvalidSetting: the URL is none, or holds a secret; or the secret is no reference.
    """
    if not is_reference(url):
        check_url("--webhook", url)
    if secret is not None and not is_reference(secret):
        raise InvalidSetting("--secret must be env:NAME, the environment variable that holds the secret")
    return {"type": WEBHOOK, "url": url} | ({} if secret is None else {"secret": secret})


def command(words: Sequence[str]) -> dict[str, Any]:
    """Return the channel of a command; nodes started with `--allow-commands` run it. Raises `InvalidSetting`."""
    if not words or not words[0]:
        raise InvalidSetting("--command must be a command")
    return {"type": COMMAND, "command": list(words)}


def apprise(url: str) -> dict[str, Any]:
    """Return the channel of an Apprise URL. Raises `InvalidSetting` unless it is a reference: they hold secrets."""
    if not is_reference(url):
        raise InvalidSetting("--apprise must be env:NAME: an Apprise URL holds secrets, which are not stored")
    return {"type": APPRISE, "url": url}


def check_url(option: str, url: str) -> None:
    """Raise `InvalidSetting` for what is no http URL, or one that holds a secret that can be told as such."""
    if not _is_url(url):
        raise InvalidSetting(f"{option} must be a URL that begins with https:// or http://, or env:NAME")
    secret = secret_in(url)
    if secret is not None:
        raise InvalidSetting(f"{option}: a URL with {secret} is not stored; {_ADVICE}")


def _is_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return is_url and url.isprintable() and " " not in url


def secret_in(url: str) -> str | None:
    """Say what in a URL can be told as a secret; None: nothing."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    if "@" in parts.netloc:
        return "a user or password"
    named = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True) if _SECRET_FIELDS.search(name)]
    return f"{named[0]}=" if named else None


def host_of(url: str) -> str:
    """Return of a URL its scheme and host only: a path may be what lets in; a reference is shown as it is."""
    if is_reference(url):
        return url
    try:
        parts = urlsplit(url)
        port = "" if parts.port is None else f":{parts.port}"
    except ValueError:
        return "…"
    return f"{parts.scheme}://{parts.hostname}{port}/…" if parts.hostname else "…"


def without_secrets(channel: Mapping[str, Any]) -> dict[str, Any]:
    """Return a channel as those may see it who may not change rules: of a URL the host, of a command the program."""
    found = dict(channel)
    if "url" in found:
        found["url"] = host_of(str(found["url"]))
    if "command" in found:
        words = found["command"]
        found["command"] = [*words[:1], *(["…"] if len(words) > 1 else [])] if isinstance(words, list) else "…"
    return found


def is_reference(value: object) -> bool:
    """Say whether a value is `env:NAME`."""
    return isinstance(value, str) and _REFERENCE.fullmatch(value) is not None


def resolve(value: object, environ: Mapping[str, str]) -> str:
    """Return a value, or what the environment variable holds that it refers to.

    Raises:
        NotSent: there is no such variable here.
    """
    text = str(value)
    found = _REFERENCE.fullmatch(text)
    if found is None:
        return text
    held = environ.get(found[1], "").strip()
    if not held:
        raise NotSent(f"the environment variable {found[1]} is not set here; set it for the nodes that send alerts")
    return held


def show(channel: Mapping[str, Any]) -> str:
    """Return a channel as people read it."""
    kind = channel.get("type")
    if kind == COMMAND:
        words = channel.get("command")
        return f"command {' '.join(map(str, words))}" if isinstance(words, list) else "command ?"
    signed = ", signed" if channel.get("secret") else ""
    return f"{kind} {channel.get('url', '?')}{signed}"
