"""What a handler may leave changed in its process for the next one: a process with traces is not used again.

What is the program's own (imported modules, its global variables, files and connections it keeps open, levels of
logging) is no trace: a process that runs many handlers may keep it. A thread is: its run has ended only when its code
has.
"""

from __future__ import annotations

import contextlib
import gc
import locale
import logging
import os
import resource
import signal
import socket
import sys
import threading
from dataclasses import dataclass
from typing import Any

_LIMITS = sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})


@dataclass(frozen=True)
class Traces:
    """The state of this process at one moment; two are equal if nothing between them left a trace."""

    threads: frozenset[int]
    folder: tuple[int, int] | None
    umask: int
    environment: dict[bytes, bytes]
    signals: tuple[Any, ...]
    users: tuple[Any, ...]
    niceness: int
    limits: tuple[tuple[int, int], ...]
    streams: tuple[Any, ...]
    interpreter: tuple[Any, ...]

    @classmethod
    def seen(cls) -> Traces:
        """Look; takes less than half a millisecond."""
        return cls(
            threads=frozenset(sys._current_frames()),
            folder=_identity("."),
            umask=_umask(),
            environment=dict(os.environb),
            signals=_signals(),
            users=_users(),
            niceness=os.getpriority(os.PRIO_PROCESS, 0),
            limits=tuple(resource.getrlimit(limit) for limit in _LIMITS),
            streams=_streams(),
            interpreter=_interpreter(),
        )


def _identity(file: str | int) -> tuple[int, int] | None:
    """Return what tells a file from any other; None if it is not there."""
    try:
        found = os.stat(file)  # noqa: PTH116 - a number, too
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _umask() -> int:
    umask = os.umask(0o077)  # it can be read in no other way; for this moment nobody else gets a right too much
    os.umask(umask)
    return umask


def _signals() -> tuple[Any, ...]:
    """Handlers, the wake-up descriptor, blocked signals, and the timer that would send one."""
    handlers = tuple(signal.getsignal(number) for number in sorted(signal.valid_signals()))
    wakeup = signal.set_wakeup_fd(-1)
    if wakeup != -1:
        with contextlib.suppress(OSError, ValueError):  # it was closed: then it is a trace, gone or not
            signal.set_wakeup_fd(wakeup)
    blocked = frozenset(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    return handlers, wakeup, blocked, signal.getitimer(signal.ITIMER_REAL)[0] > 0


def _users() -> tuple[Any, ...]:
    return os.getuid(), os.geteuid(), os.getgid(), os.getegid(), tuple(os.getgroups()), os.getpgrp(), os.getsid(0)


def _streams() -> tuple[Any, ...]:
    """The standard streams, as files and as Python's objects; what is closed is a trace, too."""
    objects = tuple(id(getattr(sys, name, None)) for name in ("stdin", "stdout", "stderr"))
    closed = tuple(bool(getattr(stream, "closed", False)) for stream in (sys.stdout, sys.stderr))
    return (*objects, *closed, *(_identity(number) for number in range(3)))


def _interpreter() -> tuple[Any, ...]:
    """What Python itself keeps once for all code."""
    return (
        tuple(sys.path),
        tuple(id(handler) for handler in logging.getLogger().handlers),
        locale.setlocale(locale.LC_ALL),
        sys.getrecursionlimit(),
        sys.getswitchinterval(),
        socket.getdefaulttimeout(),
        gc.isenabled(),
        tuple(id(hook) for hook in (sys.gettrace(), sys.getprofile(), sys.excepthook, sys.displayhook)),
        id(threading.excepthook),
    )
