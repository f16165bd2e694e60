"""Process groups: stopping a process with all that it started, and letting none outlive its node.

Each process a node starts leads a group of its own. The node tells one small watcher, a shell that holds the other end
of a pipe, which groups exist; when the pipe closes, because the node has ended in whatever way, the watcher kills them.
A child that has left its group (a daemon) is still found through its parents as long as these live.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess

import psutil

# Reads "+ GROUP" and "- GROUP"; at the end of the input, kills the groups that are left.
_WATCHER = """
groups=" "
while read -r sign group; do
  case $sign in
    +) groups="$groups$group " ;;
    -) case $groups in *" $group "*) groups="${groups%% $group *} ${groups#* $group }" ;; esac ;;
  esac
done
for group in $groups; do kill -KILL -- "-$group" 2>/dev/null; done
"""


class GroupWatcher:
    """One watcher process for a node, started with its first child."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def add(self, group: int) -> None:
        """Have the watcher kill `group` if this process ends."""
        self._tell(f"+ {group}\n")

    def remove(self, group: int) -> None:
        """`group` has ended: its number may be given to others."""
        self._tell(f"- {group}\n")

    def _tell(self, line: str) -> None:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(  # noqa: S603 - our own script
                ["/bin/sh", "-c", _WATCHER],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C in the terminal is not for the watcher
            )
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.write(line.encode())
                self._process.stdin.flush()

    def close(self) -> None:
        """End the watcher, and with it every group that is left."""
        if self._process is not None:
            if self._process.stdin is not None:
                with contextlib.suppress(OSError):
                    self._process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(2.0)
            self._process = None


def signal_family(leader: int, number: signal.Signals) -> None:
    """Send a signal to the group that `leader` leads and to those of its descendants that have left the group."""
    strays = _descendants(leader)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)
    for stray in strays:
        with contextlib.suppress(psutil.Error):
            stray.send_signal(number)


def _descendants(leader: int) -> list[psutil.Process]:
    try:
        return list(psutil.Process(leader).children(recursive=True))
    except psutil.Error:
        return []


def group_is_alive(leader: int) -> bool:
    """Say whether any process of the group is left (a zombie that waits for its parent is none)."""
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    for process in psutil.process_iter(["pid", "status"]):
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == leader and process.info["status"] != psutil.STATUS_ZOMBIE:
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
