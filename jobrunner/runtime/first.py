"""Process 1 of a container: who reaps there all that nobody waits for.

The kernel gives process 1 every process that has lost its parent. A node cannot reap them itself: it could not tell
them from processes that a handler has started and will wait for. So a node that finds itself process 1 forks, before
anything else is loaded: the copy is the node, and process 1 does nothing but reap, pass on the signals it is sent, and
end as the node does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading

_WAITED_FOR = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}


def stand_aside_if_first() -> None:
    """Return in the process that is to be the node: this one, or if it is process 1, a child of it."""
    if os.getpid() == 1 and sys.platform == "linux" and threading.active_count() == 1:
        stand_aside()


def stand_aside() -> None:
    """Return in a child of this process, which stays behind as its reaper and ends when it does."""
    sys.stdout.flush()
    sys.stderr.flush()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR)
    node = os.fork()
    if node == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    while True:
        came = signal.sigwaitinfo(_WAITED_FOR)
        if came.si_signo == signal.SIGCHLD:
            _reap(node)
        elif came.si_code <= 0:  # sent by a process; what the terminal sends, the node is sent, too
            with contextlib.suppress(ProcessLookupError):
                os.kill(node, came.si_signo)


def _reap(node: int) -> None:
    """Take leave of all who have ended; with the node, leave."""
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            if pid == node:
                code = os.waitstatus_to_exitcode(status)
                os._exit(code if code >= 0 else 128 - code)
