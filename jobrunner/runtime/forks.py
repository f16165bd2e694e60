"""What forks from a process in which a node lives, or from one of the pool: it gets none of our signals.

A copy of the process has the node's signal handlers and the descriptor that wakes its loop. Without this, a SIGTERM for
the copy (`Pool.terminate()`, say) is taken by the *node* for its own, and the copy is deaf to it. So signals wait while
a process forks, and the copy lets them in when it has given up what was ours:

- the wake-up descriptor, and handlers of ours or of asyncio's loops, which do nothing without it. What a program has
  set itself with `signal.signal` stays;
- the loops: on Linux the copy shares the kernel's list of what a loop waits for, and would take the node's entries out
  of it. A copy that comes back to a loop ends there, instead of running on as a second node.

Connections and lines are the concern of `storage/database/forks.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import sys
import threading
import weakref
from typing import Any

from jobrunner.storage.database import forks

CAME_BACK = 70  # EX_SOFTWARE
_OURS = ("asyncio", "jobrunner", "uvloop")
_SYNCHRONOUS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
_loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, list[int]] = weakref.WeakKeyDictionary()
_masks = threading.local()
_here = {"is_guest": False}  # a process of the pool: it has no loop of ours


def protect(loop: asyncio.AbstractEventLoop) -> None:
    """Keep a loop, which runs in this thread, from forks, until `unprotect` was called as often."""
    _loops.setdefault(loop, []).append(threading.get_ident())


def unprotect(loop: asyncio.AbstractEventLoop) -> None:
    """The loop is not ours any more, or once less."""
    threads = _loops.get(loop)
    if threads:
        threads.pop()
    if not threads:
        _loops.pop(loop, None)


def protect_handlers() -> None:
    """Keep our signal handlers from forks of this process, in which no node lives."""
    _here["is_guest"] = True


def leave_if_forked(pid: int, error: BaseException | None) -> None:
    """End a copy of the process `pid` in which a handler's code has returned, or raised `error`: it is not ours."""
    if os.getpid() == pid:
        return
    code = _code_of(error)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # the handler may have closed or replaced it
            stream.flush()
    os._exit(code)


def _code_of(error: BaseException | None) -> int:
    """Return the exit code that Python would choose."""
    if isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int)):
        return (error.code or 0) & 0xFF
    return int(error is not None)


def _before() -> None:
    if _loops or _here["is_guest"]:
        _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _SYNCHRONOUS)


def _let_signals_in() -> None:
    before = _masks.__dict__.pop("before", None)
    if before is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _in_child() -> None:
    try:
        if _loops or _here["is_guest"]:
            signal.set_wakeup_fd(-1)
            _reset_handlers()
            for loop, threads in list(_loops.items()):
                if not loop.is_closed():
                    _cut_off(loop, is_running=threading.get_ident() in threads)
            _loops.clear()
    finally:
        _let_signals_in()


def _reset_handlers() -> None:
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        if callable(handler) and _home_of(handler).startswith(_OURS):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def _home_of(handler: Any) -> str:
    """Return the module a handler comes from; asyncio's own for SIGINT is a partial."""
    function = getattr(handler, "func", handler)
    return str(getattr(function, "__module__", None) or type(getattr(function, "__self__", function)).__module__)


def _cut_off(loop: Any, *, is_running: bool) -> None:
    """Make a loop of the parent's harmless; asyncio's own know these attributes, others may not."""
    selector = getattr(loop, "_selector", None)
    if selector is not None and hasattr(select, "epoll") and hasattr(selector, "fileno"):
        with select.epoll() as fresh:
            os.dup2(fresh.fileno(), selector.fileno(), inheritable=False)
    for name in ("_ssock", "_csock"):
        end = getattr(loop, name, None)
        if end is not None:
            forks.silence(end.fileno())
    if is_running:
        loop.call_soon(_came_back)
    else:
        loop._closed = True  # its thread is not here: whoever asks it for something must not wait


def _came_back() -> None:
    with contextlib.suppress(OSError):
        os.write(2, b"jobrunner: a process that a handler forked came back to the node's event loop; it ends here\n")
    os._exit(CAME_BACK)


os.register_at_fork(before=_before, after_in_parent=_let_signals_in, after_in_child=_in_child)
