"""A POST to a URL, by the standard library, with an end: for webhooks and pings.

A redirect is not followed: a message would become a GET, or go where nobody has said. A receiver on this machine is
asked directly, whatever proxy the environment names for others.
"""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from jobrunner.errors import NotSent

if TYPE_CHECKING:
    from collections.abc import Mapping

LONGEST_SECONDS = 10.0
_MOST_READ = 4096
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Follow none: the answer itself is what came back."""


_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())
_BY_PROXY: list[urllib.request.OpenerDirector] = []


def post(url: str, body: bytes, headers: Mapping[str, str], seconds: float = LONGEST_SECONDS) -> str:
    """Send `body`; return what came back, such as `200 OK`. It blocks: call it in a thread of its own.

    Raises:
        NotSent: the receiver cannot be reached, is silent for `seconds`, or answers with anything but 2xx. The message
            names the host alone, since the rest of a URL may be secret.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise NotSent("the URL does not begin with https:// or http://")
    host = parts.hostname
    try:
        request = urllib.request.Request(url, data=body, headers=dict(headers), method="POST")  # noqa: S310 - looked at above
        with _opener(host).open(request, timeout=seconds) as answer:
            answer.read(_MOST_READ)
            return f"{answer.status} {answer.reason}".strip()
    except urllib.error.HTTPError as error:
        with error:
            raise NotSent(f"{host} answered {error.code} {error.reason}".strip()) from None
    except TimeoutError:
        raise NotSent(f"{host} did not answer within {seconds:g} s") from None
    except urllib.error.URLError as error:
        is_late = isinstance(error.reason, TimeoutError)
        said = f"did not answer within {seconds:g} s" if is_late else f"cannot be reached: {error.reason}"
        raise NotSent(f"{host} {said}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        said = type(error).__name__ if isinstance(error, ValueError | http.client.InvalidURL) else str(error)
        raise NotSent(f"{host} cannot be told: {said or type(error).__name__}") from None


def _opener(host: str) -> urllib.request.OpenerDirector:
    if host in _LOOPBACK:
        return _DIRECT
    if not _BY_PROXY:  # made at the first use: it reads the environment
        _BY_PROXY.append(urllib.request.build_opener(_NoRedirect()))
    return _BY_PROXY[0]
