"""Process families: stopping a process with all that it started, and letting none outlive its node.

Each process a node starts leads a group of its own. A descendant that has left the group (a daemon) belongs to the
family all the same: it is found through its parents while these live, and remembered from then on, so that it cannot
hide behind a leader that obeys SIGTERM first.

The node tells one small watcher process, which holds the other end of a pipe, which groups exist. When the pipe closes,
because the node has ended in whatever way, the watcher kills them and their descendants.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import weakref
from multiprocessing import spawn
from pathlib import Path

import psutil

# Reads "+ GROUP" and "- GROUP"; at the end of its input kills the groups that are left, and who descends from them.
_WATCHER = """
import os, signal, subprocess, sys
groups = set()
for line in sys.stdin.buffer:
    sign, group = line.split()
    (groups.add if sign == b"+" else groups.discard)(int(group))

def parents():
    found = {}
    if os.path.isdir("/proc/self"):
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/stat", "rb") as stat:
                    found[int(pid)] = int(stat.read().rpartition(b")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                pass
    else:
        listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True).stdout
        found = {int(pid): int(parent) for pid, parent in map(str.split, listed.splitlines())}
    return found

doomed = set(groups)
for _ in range(2):  # the second time: who was born meanwhile
    known, grown = parents() if groups else {}, True
    while grown:
        young = {pid for pid, parent in known.items() if parent in doomed} - doomed
        doomed |= young
        grown = bool(young)
    for kill, numbers in ((os.killpg, groups), (os.kill, doomed - groups)):
        for number in numbers:
            try:
                kill(number, signal.SIGKILL)
            except OSError:
                pass
"""


class GroupWatcher:
    """One watcher process for a node, started with its first child. Safe to use from any thread."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        _watchers.add(self)

    def add(self, group: int) -> None:
        """Have the watcher kill `group` if this process ends."""
        self._tell(f"+ {group}\n")

    def remove(self, group: int) -> None:
        """`group` has ended: its number may be given to others."""
        self._tell(f"- {group}\n")

    def _tell(self, line: str) -> None:
        with self._lock:
            if self._process is None:
                self._process = subprocess.Popen(  # noqa: S603 - our own script
                    [spawn.get_executable() or "python3", "-I", "-S", "-c", _WATCHER],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    start_new_session=True,  # a Ctrl-C in the terminal is not for the watcher
                )
            if self._process.stdin is not None:
                with contextlib.suppress(OSError):
                    self._process.stdin.write(line.encode())
                    self._process.stdin.flush()

    def close(self) -> None:
        """End the watcher, and with it every group that is left."""
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(2.0)

    def let_go(self) -> None:
        """In a process forked from the node: the pipe is not its own, and must close when the node ends."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()


_watchers: weakref.WeakSet[GroupWatcher] = weakref.WeakSet()


def _let_go() -> None:
    for watcher in list(_watchers):
        watcher.let_go()


os.register_at_fork(after_in_child=_let_go)


class Family:
    """A group's leader and all that descends from it. `mark` is what only its members have in their environment."""

    def __init__(self, leader: int, mark: str | None = None) -> None:
        self._group = leader
        self._mark = None if mark is None else mark.encode()
        self._known: set[psutil.Process] = set()  # psutil tells a number that was given anew from the old one
        self._lock = threading.Lock()
        with contextlib.suppress(psutil.Error, OSError):
            self._known.add(psutil.Process(leader))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the group and to those who have left it."""
        with self._lock:
            strays = self._look()
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._group, number)
            for stray in strays:
                with contextlib.suppress(psutil.Error, OSError):
                    stray.send_signal(number)

    def _look(self) -> list[psutil.Process]:
        """Learn who belongs to the family now; return those outside the group."""
        for process in [*self._known]:
            with contextlib.suppress(psutil.Error, OSError):  # no descriptor to look with: the group at least is known
                self._known.update(process.children(recursive=True))
        if self._mark is not None:
            with contextlib.suppress(OSError):
                self._known.update(_marked(self._mark))
        return [process for process in self._known if _is_outside(process, self._group)]

    def has_children(self) -> bool:
        """Say whether anyone but the leader is left, a zombie apart."""
        with self._lock:
            self._look()
            return any(process.pid != self._group and _is_alive(process) for process in self._known)

    def is_alive(self) -> bool:
        """Say whether any process of the family is left (a zombie that waits for its parent is none)."""
        with self._lock:
            return any(_is_alive(process) for process in self._known) or _group_is_alive(self._group)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
    except OSError:
        return True  # nobody knows: no descriptor to look with


def _is_outside(process: psutil.Process, group: int) -> bool:
    try:
        return os.getpgid(process.pid) != group
    except OSError:
        return False


def _marked(mark: bytes) -> list[psutil.Process]:
    """Return the processes with `mark` in their environment, where the system tells: daemons forget their parents."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError, psutil.Error):
            if mark in environ.read_bytes().split(b"\0"):
                found.append(psutil.Process(int(environ.parent.name)))
    return found


def _group_is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        pids = psutil.pids()
    except OSError:
        return True  # nobody knows: no descriptor to look with
    for pid in pids:
        with contextlib.suppress(psutil.Error, OSError):
            if os.getpgid(pid) == group and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                return True
    return False


def name_of_exit(code: int) -> str:
    """Say in words how a process ended: `exit code 3`, or `signal SIGSEGV`."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
