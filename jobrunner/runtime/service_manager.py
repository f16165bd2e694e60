"""Telling systemd how the node is, by its protocol: short datagrams to the socket that $NOTIFY_SOCKET names.

`READY=1` once the node ticks, `WATCHDOG=1` now and then while it does, `STOPPING=1` when it begins to leave. With
`Type=notify` and `WatchdogSec=` in the unit, systemd restarts a node that says nothing any more. Without the variable
nothing is told to anybody. (sd_notify(3), sd_watchdog_enabled(3).)
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_ALIVE_SECONDS = 5.0


class ServiceManager:
    """Where to tell it; `address` None: nobody asks. Its methods may be called from any thread, and never raise."""

    def __init__(self, address: str | None = None, alive_seconds: float = _ALIVE_SECONDS) -> None:
        self._address = address
        self._alive_seconds = alive_seconds
        self._told_alive_at: float | None = None

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> ServiceManager:
        """Read what systemd has told this process."""
        address = environ.get("NOTIFY_SOCKET", "")
        if address[:1] not in {"/", "@"} or not hasattr(socket, "AF_UNIX"):
            return cls()
        is_watched = environ.get("WATCHDOG_PID") in {None, "", str(os.getpid())}
        limit = environ.get("WATCHDOG_USEC", "")
        if is_watched and limit.isdecimal() and int(limit) > 0:
            return cls(address, min(_ALIVE_SECONDS, int(limit) / 1e6 / 4))
        return cls(address)

    def ready(self) -> None:
        """Say that the node ticks."""
        self._tell("READY=1")

    def stopping(self) -> None:
        """Say that the node leaves."""
        self._tell("STOPPING=1")

    def alive(self) -> None:
        """Say that the node ticks still; call it as often as you like."""
        now = time.monotonic()
        if self._told_alive_at is None or now - self._told_alive_at >= self._alive_seconds:
            self._told_alive_at = now
            self._tell("WATCHDOG=1")

    def _tell(self, message: str) -> None:
        if self._address is None:
            return
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | getattr(socket, "SOCK_CLOEXEC", 0)) as sock,
        ):
            sock.setblocking(False)  # systemd that does not read must not hold up a node
            sock.sendto(message.encode(), address)
