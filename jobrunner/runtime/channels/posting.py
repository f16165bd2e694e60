"""A POST to a URL, by the standard library, with an end: for webhooks and pings.

The time limit of a socket is one of each read, and a receiver that sends a byte now and then could go on for hours. So
a timer shuts the connection down when the time for all of it is over.

A redirect is not followed: a message would become a GET, or go where nobody has said. A receiver on this machine is
asked directly, whatever proxy the environment names for others.
"""

from __future__ import annotations

import http.client
import socket
import threading
import urllib.error
import urllib.request
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from jobrunner.errors import NotSent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LONGEST_SECONDS = 10.0
_MOST_READ = 4096
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class _End:
    """When a request must be over: then its connection is shut down, whatever it is waiting for."""

    def __init__(self, seconds: float) -> None:
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self.is_over = False
        self._timer = threading.Timer(seconds, self._come)
        self._timer.daemon = True

    def __enter__(self) -> _End:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            for each in self._sockets:
                each.close()
            self._sockets.clear()

    def watched(self, connect: Callable[..., socket.socket]) -> Callable[..., socket.socket]:
        """Return what connects as `connect` does, and is shut down at the end."""

        def connected(*arguments: Any, **named: Any) -> socket.socket:
            made = connect(*arguments, **named)
            with self._lock:
                if self.is_over:
                    made.close()
                    raise TimeoutError
                self._sockets.append(made.dup())  # TLS takes the first one away, and the connection stays the same
            return made

        return connected

    def _come(self) -> None:
        with self._lock:
            self.is_over = True
            for each in self._sockets:
                with suppress(OSError):  # it is closed already
                    each.shutdown(socket.SHUT_RDWR)


class _Request(urllib.request.Request):
    end: _End


class _Watched(urllib.request.AbstractHTTPHandler):
    """Opens connections that end when their request must be over."""

    def do_open(self, http_class: Any, req: Any, **args: Any) -> Any:
        def made(*arguments: Any, **named: Any) -> Any:
            connection = http_class(*arguments, **named)
            connection._create_connection = req.end.watched(connection._create_connection)
            return connection

        return super().do_open(made, req, **args)


class _Http(_Watched, urllib.request.HTTPHandler):
    pass


class _Https(_Watched, urllib.request.HTTPSHandler):
    pass


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Follow none: the answer itself is what came back."""


_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect(), _Http(), _Https())
_BY_PROXY: list[urllib.request.OpenerDirector] = []


def post(url: str, body: bytes, headers: Mapping[str, str], seconds: float = LONGEST_SECONDS) -> str:
    """Send `body`; return what came back, such as `200 OK`. It blocks: call it in a thread of its own.

    Raises:
        NotSent: the receiver cannot be reached, has not answered within `seconds`, or answers with anything but 2xx.
            The message names the host alone, since the rest of a URL may be secret.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise NotSent("the URL does not begin with https:// or http://")
    host = parts.hostname
    with _End(seconds) as end:
        try:
            return _posted(url, host, body, headers, seconds, end)
        except NotSent:
            if end.is_over:  # else what is said would be how the connection was seen to break
                raise NotSent(f"{host} did not answer within {seconds:g} s") from None
            raise


def _posted(url: str, host: str, body: bytes, headers: Mapping[str, str], seconds: float, end: _End) -> str:
    try:
        request = _Request(url, data=body, headers=dict(headers), method="POST")
        request.end = end
        with _opener(host).open(request, timeout=seconds) as answer:
            said = f"{answer.status} {answer.reason}".strip()
            if not end.is_over:  # else its headers were broken off, which looks as if they had been sent
                with suppress(OSError, http.client.HTTPException):  # it is taken: what else is said does not matter
                    answer.read(_MOST_READ)
                return said
        raise NotSent(f"{host} did not answer within {seconds:g} s")
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
        _BY_PROXY.append(urllib.request.build_opener(_NoRedirect(), _Http(), _Https()))
    return _BY_PROXY[0]
