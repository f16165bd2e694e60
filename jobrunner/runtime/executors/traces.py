"""What a handler may leave changed in its process for the next one: a process with traces is not used again.

What is the program's own (imported modules, its global variables, files and connections it keeps open, levels of
logging, threads that a library's own machine code keeps) is no trace: a process that runs many handlers may keep it. A
thread of Python's is: its run has ended only when its code has.
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
from itertools import filterfalse
from typing import Any

_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_MANNERS = ("closed", "encoding", "errors", "line_buffering", "write_through")
_LIMITS = sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})


@dataclass(frozen=True, eq=False)
class _Itself:
    """An object that equals itself only. It is kept, so that no other takes its place in memory, and its number."""

    thing: object

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and self.thing is other.thing

    __hash__ = None  # type: ignore[assignment]  # compared, never looked up


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
    processors: frozenset[int]
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
            processors=_processors(),
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
    """Handlers, the wake-up descriptor, blocked signals, and the timers that would send one."""
    handlers = tuple(_Itself(signal.getsignal(number)) for number in sorted(signal.valid_signals()))
    wakeup = signal.set_wakeup_fd(-1)
    if wakeup != -1:
        with contextlib.suppress(OSError, ValueError):  # it was closed: then it is a trace, gone or not
            signal.set_wakeup_fd(wakeup)
    blocked = frozenset(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    return handlers, wakeup, blocked, *(signal.getitimer(timer)[0] > 0 for timer in _TIMERS)


def _processors() -> frozenset[int]:
    """The processors it may run on, where the system says so."""
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()


def _users() -> tuple[Any, ...]:
    return os.getuid(), os.geteuid(), os.getgid(), os.getegid(), tuple(os.getgroups()), os.getpgrp(), os.getsid(0)


def _streams() -> tuple[Any, ...]:
    """The standard streams, as files and as Python's objects, and how they write; what is closed is a trace, too."""
    streams = [getattr(sys, name, None) for name in ("stdin", "stdout", "stderr")]
    manners = [tuple(getattr(stream, name, None) for name in _MANNERS) for stream in streams]
    files = [(_identity(number), _blocks(number)) for number in range(3)]
    return (*map(_Itself, streams), *manners, *files)


def _blocks(number: int) -> bool | None:
    try:
        return os.get_blocking(number)
    except OSError:
        return None


def _interpreter() -> tuple[Any, ...]:
    """What Python itself keeps once for all code."""
    return (
        tuple(sys.path),
        tuple(map(_Itself, filterfalse(_is_pythons_own, logging.getLogger().handlers))),
        locale.setlocale(locale.LC_ALL),
        sys.getrecursionlimit(),
        sys.getswitchinterval(),
        socket.getdefaulttimeout(),
        gc.isenabled(),
        tuple(map(_Itself, (sys.gettrace(), sys.getprofile(), sys.excepthook, sys.displayhook, threading.excepthook))),
    )


def _is_pythons_own(handler: logging.Handler) -> bool:
    """Say whether it is what `logging.warning` makes by itself: it writes where the process writes anyway."""
    return type(handler) is logging.StreamHandler and handler.stream is sys.stderr
