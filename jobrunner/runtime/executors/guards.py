"""Guards as the node sees them: a line to each, and the post that forks those of commands; see `guard.py`."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import threading
from multiprocessing import spawn
from pathlib import Path
from typing import TYPE_CHECKING

from jobrunner.runtime.executors import guard
from jobrunner.storage.database import forks

if TYPE_CHECKING:
    from collections.abc import Mapping

_TRIES = 3
_GONE_SECONDS = 5.0  # how long killed processes may take to be reaped by whoever got them
_pause = threading.Event()  # never set: a thread's sleep


class Line:
    """A guard, and what it guards. `tell` may be called from any thread; one thread at a time reads."""

    def __init__(self) -> None:
        self._socket, self._far = socket.socketpair()
        for end in (self._socket, self._far):  # each side must see the other close
            forks.keep_private(end, socket.socket.fileno)
        self._heard = b""
        self.pid: int | None = None
        """The main process, once it has begun."""
        self.refusal: OSError | None = None
        """Why the program could not be started."""
        self.code: int | None = None
        """How the main process has ended, as `subprocess` says it."""
        self.is_over = False
        """Nobody is left: all that was started has ended."""
        self.is_alone = True
        """When the main process ended, nobody else of its family was left."""

    @property
    def far(self) -> socket.socket:
        """The guard's end; to be closed here once the guard has it."""
        return self._far

    def fileno(self) -> int:
        """Return the file to wait for."""
        return self._socket.fileno()

    def read(self) -> None:
        """Wait for news, and note them."""
        try:
            chunk = self._socket.recv(4096)
        except OSError:
            chunk = b""
        self.is_over = not chunk
        *lines, self._heard = (self._heard + chunk).split(b"\n")
        for line in lines:
            self._note(line.decode())

    def _note(self, line: str) -> None:
        kind, _, told = line.partition(" ")
        if kind == "began":
            self.pid = int(told)
        elif kind == "refused":
            number, _, name = told.partition(" ")
            self.refusal = OSError(int(number), os.strerror(int(number)), json.loads(name))
        elif kind == "ended":
            code, is_left = told.split()
            self.code, self.is_alone = int(code), is_left == "0"

    def has_news(self) -> bool:
        """Say whether `read` would return at once."""
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        return bool(poller.poll(0))

    def send(self, message: bytes) -> None:
        """Send to the guard, if it is still there."""
        with contextlib.suppress(OSError):
            self._socket.sendall(message)

    def ask_to_stop(self) -> None:
        """SIGTERM to all that is guarded."""
        self.send(b"T")

    def kill(self) -> None:
        """SIGKILL to all that is guarded, until nobody is left."""
        self.send(b"K")

    def wait_over(self) -> None:
        """Wait until nobody is left."""
        while not self.is_over:
            self.read()
        if self.code is None and self.pid is not None:
            _kill_group(self.pid)

    def close(self) -> None:
        """Let go: what is still guarded is killed."""
        self._socket.close()
        self._far.close()


def _kill_group(group: int) -> None:
    """End a group whose guard was killed: its leader died with the guard, or does now."""
    looks = int(_GONE_SECONDS / 0.01)
    for _ in range(looks):
        try:
            os.killpg(group, signal.SIGKILL)
        except OSError:
            return
        _pause.wait(0.01)


class Guards:
    """The guards of a node's commands. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._post: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: set[Line] = set()
        self._left: set[Line] = set()
        self._is_closed = False

    def start(self, arguments: list[str], environment: Mapping[str, str], payload: int, output: int) -> Line:
        """Start a program with these files as standard input and output.

        Raises:
            OSError: it cannot be started.
        """
        folder = None
        with contextlib.suppress(OSError):  # it was removed: then the program starts where the post is
            folder = str(Path.cwd())
        request = guard.pack({"arguments": arguments, "environment": dict(environment), "folder": folder})
        for _ in range(_TRIES):
            line = self._begin(request, payload, output)
            while not (line.is_over or line.pid or line.refusal):
                line.read()
            if line.pid:
                return line
            self.forget(line)
            if line.refusal is not None:
                raise line.refusal
        raise OSError("the process that starts commands ended again and again")

    def _begin(self, request: bytes, payload: int, output: int) -> Line:
        line = Line()
        with self._lock:
            if self._is_closed:
                line.close()
                raise OSError("the node has stopped")
            self._lines.add(line)
            try:
                socket.send_fds(self._staffed(), [b"+"], [line.far.fileno(), payload, output])
            except OSError:
                self._give_up_post()  # it was killed: the next try makes another
            line.far.close()
        line.send(request)
        return line

    def _staffed(self) -> socket.socket:
        """Return the line to the post; start one if there is none."""
        if self._post is None:
            near, far = socket.socketpair()
            for end in (near, far):
                forks.keep_private(end, socket.socket.fileno)
            with far:
                self._process = subprocess.Popen(  # noqa: S603 - our own script
                    [spawn.get_executable() or "python3", "-I", "-S", guard.__file__, str(far.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=without_ours(os.environ),
                    pass_fds=[far.fileno()],
                    cwd="/",
                    start_new_session=True,  # a Ctrl-C in the terminal is not for it
                )
            self._post = near
        return self._post

    def _give_up_post(self) -> None:
        if self._post is not None:
            self._post.close()
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1.0)
        self._post = self._process = None

    def needs_care(self) -> bool:
        """Say whether `look_after` has something to do."""
        with self._lock:
            is_dead = self._process is not None and self._process.poll() is not None
            return is_dead or any(line.has_news() for line in self._left)

    def look_after(self) -> None:
        """Replace a post that was killed, and forget those that lived on behind their command and have ended."""
        with self._lock:
            if self._process is not None and self._process.poll() is not None and not self._is_closed:
                self._give_up_post()
                self._staffed()
            over = [line for line in self._left if line.has_news()]
        for line in over:
            line.read()
            if line.is_over:
                self.forget(line)

    def leave(self, line: Line) -> None:
        """Its command has ended. What that left behind lives on, as long as this node does."""
        with self._lock:
            is_left = not line.is_over and not line.is_alone and not self._is_closed
            if is_left:
                self._left.add(line)
        if not is_left:
            self.forget(line)

    def forget(self, line: Line) -> None:
        """Close a line; if anybody is left there, it is killed."""
        with self._lock:
            self._lines.discard(line)
            self._left.discard(line)
        line.close()

    def close(self) -> None:
        """End all that is left, and the post."""
        with self._lock:
            self._is_closed = True
            left, self._left = self._left, set()
            for line in self._lines - left:
                line.kill()  # its thread is reading it
            post, process = self._post, self._process
            self._post = self._process = None
        for line in left:
            line.close()
        if post is not None and process is not None:
            post.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2.0)


def without_ours(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without our settings, of which some are secrets: the database's URL, tokens, keys."""
    return {name: value for name, value in environment.items() if not name.startswith("JOBRUNNER_")}


def name_of_exit(code: int) -> str:
    """Say in words how a process ended: `exit code 3`, or `signal SIGSEGV`."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
