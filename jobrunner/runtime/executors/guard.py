"""A guard: the process between a node and something it started, so that nothing of it gets away.

    node ─ post ─ guard ─ command ─ whatever that starts
    node ─ fork server ─ keeper ─ guard ─ process of the pool ─ whatever its handlers start

On Linux the guard is the *subreaper* of what it guards: whoever loses its parent becomes the guard's child, a daemon in
a session of its own, too. So all that was ever started descends from the guard, and when the kernel says that the guard
has no child, nobody is left. Elsewhere it knows the group of the main process, and descendants as long as their parents
live (remembered from then on).

The guard holds one end of a socket, and the node alone the other.

    node → guard   `T`  SIGTERM to all that descends from the guard
                   `K`  SIGKILL to all, again and again until nobody is left; the end of the stream, which comes when
                        the node has ended in whatever way, means the same
    guard → node   `began PID`, or `refused ERRNO NAME` if the program could not be started
                   `ended CODE LEFT`: the main process has ended, and LEFT is 1 if others of its family live on
                   the end of the stream: nobody is left

A guard that is killed itself takes the main process with it (PR_SET_PDEATHSIG); what else is left falls to the process
above, the post or the keeper, which kills it. The post forks the guards of commands: a fork of a small process costs a
tenth of starting Python. If it is killed, the guards go on, and the node starts another. A keeper has one guard, whose
copy it is, and only waits; if it is killed, the guard goes on.

This file is also run by its path, as the post, without the package: it needs the standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Container

IS_LINUX = sys.platform == "linux"
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_KILL_AGAIN_MS = 20
_LOOK_AGAIN_MS = 1000  # where only looking tells that the last stray has ended
_DEAF_TO = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # a guard ends when its node or its charge does
_LENGTH_BYTES = 4


def adopt_orphans() -> None:
    """Become the parent of descendants whose own has ended, where the system offers it."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with(parent: int) -> None:
    """Have the kernel kill this process when `parent` ends, where it offers that; end now if it has."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if IS_LINUX and os.getppid() != parent:
        os._exit(1)


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


class Guard:
    """Guards `main`, a child of this process; `may_leave` says that what it leaves behind may live on for a while."""

    def __init__(self, control: int, main: int, *, may_leave: bool) -> None:
        self._control = control
        self._main = main
        self._may_leave = may_leave
        self._code: int | None = None
        self._is_killing = False
        self._known: dict[int, int] = {}  # pid -> start: a number that was given anew is somebody else's

    def run(self) -> int:
        """Guard until nobody is left; return how the main process ended, as `subprocess` says it."""
        woken = wake_at_child_ends()
        poller = select.poll()
        poller.register(woken, select.POLLIN)
        poller.register(self._control, select.POLLIN)
        while self._look():
            for number, _ in poller.poll(self._patience()):
                if number == woken:
                    os.read(woken, 4096)
                elif not self._listen():
                    poller.unregister(self._control)
        return self._code or 0

    def _patience(self) -> int | None:
        if self._is_killing:
            return _KILL_AGAIN_MS
        return None if IS_LINUX or self._code is None else _LOOK_AGAIN_MS

    def _listen(self) -> bool:
        """Do what the node asks for; False once it is not there any more."""
        try:
            asked = os.read(self._control, 64)
        except OSError:
            asked = b""
        self._is_killing = self._is_killing or not asked or b"K" in asked
        if b"T" in asked and not self._is_killing:
            self._signal(signal.SIGTERM)
        return bool(asked)

    def _look(self) -> bool:
        """Take leave of who has ended, and tell of the main process; say whether anybody is left."""
        is_left = self._reap() or (not IS_LINUX and bool(self._family()))
        if self._code is not None and self._main:
            self._main = 0
            self._is_killing = self._is_killing or not self._may_leave
            tell(self._control, f"ended {self._code} {int(is_left)}")
        if is_left and self._is_killing:
            self._signal(signal.SIGKILL)
        return is_left

    def _reap(self) -> bool:
        """Reap all who have ended; say whether there is a child left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._main:
                self._code = os.waitstatus_to_exitcode(status)

    def _signal(self, number: signal.Signals) -> None:
        for pid in self._family():
            with contextlib.suppress(OSError):
                os.kill(pid, number)

    def _family(self) -> list[int]:
        """Return who is guarded now, parents before children, so that none is replaced by its supervisor."""
        table = processes()
        self._known = {pid: start for pid, start in self._known.items() if pid in table and table[pid][2] == start}
        group = {pid for pid, (_, leader, _) in table.items() if self._main and leader == self._main}
        found = descendants(table, {os.getpid(), *group, *self._known})
        family = [*(group | set(self._known)), *(pid for pid in found if pid not in group and pid not in self._known)]
        self._known = {} if IS_LINUX else {pid: table[pid][2] for pid in family}
        return family


def processes() -> dict[int, tuple[int, int, int]]:
    """Return all processes: pid -> (parent, group, something that tells it from others with its number)."""
    if not IS_LINUX:
        return _listed()
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208 - a path for each takes ten times as long
        with contextlib.suppress(OSError, IndexError, ValueError):  # it has ended meanwhile
            with open(f"/proc/{pid}/stat", "rb") as stat:  # noqa: PTH123 - likewise
                state, parent, group, *rest = stat.read().rpartition(b")")[2].split()
            if state not in {b"Z", b"X"} or int(rest[14]) > 1:  # others of its threads may outlive its first
                found[int(pid)] = (int(parent), int(group), int(rest[16]))
    return found


def _listed() -> dict[int, tuple[int, int, int]]:
    command = ["/bin/ps", "-A", "-o", "pid=,ppid=,pgid=,stat=,lstart="]
    found = {}
    listed = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - nothing of a user's
    for line in listed.stdout.splitlines():
        pid, parent, group, state, *start = line.split()
        if not state.startswith("Z"):
            found[int(pid)] = (int(parent), int(group), hash(tuple(start)))
    return found


def descendants(table: dict[int, tuple[int, int, int]], roots: set[int], but: Container[int] = ()) -> list[int]:
    """Return who descends from `roots`, parents before children; `but` and theirs apart."""
    children: dict[int, list[int]] = {}
    for pid, (parent, _, _) in table.items():
        children.setdefault(parent, []).append(pid)
    found: dict[int, None] = {}
    row = sorted(roots)
    while row:
        row = [c for pid in row for c in children.get(pid, ()) if c not in found and c not in roots and c not in but]
        found.update(dict.fromkeys(row))
    return list(found)


def wake_at_child_ends() -> int:
    """Return a file that becomes readable when a child ends."""
    woken, wake = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return woken


def be_deaf() -> None:
    """Outlive what is sent to all processes of a service: what is guarded is told by the node."""
    for number in _DEAF_TO:
        signal.signal(number, signal.SIG_IGN)


def be_as_new() -> None:
    """Take back what `be_deaf` and `wake_at_child_ends` have done, in a process forked off."""
    signal.set_wakeup_fd(-1)
    for number in (*_DEAF_TO, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)


def tell(control: int, message: str) -> None:
    """Write a line to the node, if it is still there."""
    with contextlib.suppress(OSError):
        os.write(control, f"{message}\n".encode())


def pack(request: dict[str, Any]) -> bytes:
    """Return a command as it is sent to its guard: `arguments`, `environment`, and `folder` or None."""
    body = json.dumps(request).encode()
    return len(body).to_bytes(_LENGTH_BYTES) + body


def _unpack(control: int) -> dict[str, Any]:
    read = partial(_read_exactly, control)
    request: dict[str, Any] = json.loads(read(int.from_bytes(read(_LENGTH_BYTES))))
    return request


def _read_exactly(source: int, count: int) -> bytes:
    chunks = bytearray()
    while len(chunks) < count:
        chunk = os.read(source, count - len(chunks))
        if not chunk:
            os._exit(1)  # the node has ended
        chunks += chunk
    return bytes(chunks)


def keep(guard: int) -> None:
    """Wait for a guard, a child of this subreaper; if it was killed, end all that it has left."""
    be_deaf()
    is_killed = os.waitpid(guard, 0)[1] != 0
    while is_killed:
        _kill_descendants()
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(_KILL_AGAIN_MS / 1000)


def _kill_descendants(but: Container[int] = ()) -> bool:
    """Kill who descends from this process, `but` and theirs apart; say whether there was anybody."""
    found = descendants(processes(), {os.getpid()}, but)
    for pid in found:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    return bool(found)


def _guard_command(control: int, payload: int, output: int) -> None:
    """Start the command that the node describes, and guard it."""
    os.setsid()
    adopt_orphans()
    request = _unpack(control)
    try:
        main = subprocess.Popen(  # noqa: S603 - what the operator asked for
            request["arguments"],
            stdin=payload,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=request["environment"],
            cwd=request["folder"],
            start_new_session=True,
            preexec_fn=partial(_prepare_command, os.getpid()),  # noqa: PLW1509 - this process has one thread
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        number, name = getattr(error, "errno", None), getattr(error, "filename", None)
        tell(control, f"refused {number or 0} {json.dumps(str(name or error))}")
        return
    os.close(payload)
    os.close(output)
    tell(control, f"began {main.pid}")
    Guard(control, main.pid, may_leave=True).run()
    main.returncode = 0  # the guard has waited for it


def _prepare_command(guard: int) -> None:
    be_as_new()
    die_with(guard)


class Post:
    """Forks a guard for each message on its line, which brings the guard's end of a socket and the command's files."""

    def __init__(self, line: int) -> None:
        self._line = socket.socket(fileno=line)
        self._guards: set[int] = set()
        self._is_open = True
        self._has_orphans = False

    def run(self) -> None:
        """Serve until the node has ended, and all guards have."""
        be_deaf()
        adopt_orphans()
        woken = wake_at_child_ends()
        poller = select.poll()
        poller.register(woken, select.POLLIN)
        poller.register(self._line, select.POLLIN)
        while self._is_open or self._guards or self._has_orphans:
            for number, _ in poller.poll(_KILL_AGAIN_MS if self._has_orphans else None):
                if number == woken:
                    os.read(woken, 4096)
                elif not self._serve(woken):
                    poller.unregister(self._line)
            self._look()

    def _serve(self, woken: int) -> bool:
        try:
            message, files, _, _ = socket.recv_fds(self._line, 1, 3)
        except OSError:
            message, files = b"", []
        if not message:
            self._is_open = False
            return False
        pid = os.fork()
        if pid == 0:
            try:
                os.close(woken)
                self._line.close()
                _guard_command(*files)
            finally:
                os._exit(0)
        self._guards.add(pid)
        for file in files:
            os.close(file)
        return True

    def _look(self) -> None:
        """Take leave of guards that have ended; kill what one left behind that was killed."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                pid, status = 0, 0
            if pid == 0:
                break
            self._has_orphans = self._has_orphans or (pid in self._guards and status != 0)
            self._guards.discard(pid)
        if self._has_orphans:
            self._has_orphans = _kill_descendants(but=self._guards)


if __name__ == "__main__":
    Post(int(sys.argv[1])).run()
