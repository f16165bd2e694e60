"""Who this process is, and whether another process of this host is still there."""

from __future__ import annotations

import functools
import os
import socket
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import psutil

from jobrunner.storage.nodes import NodeIdentity

if TYPE_CHECKING:
    from jobrunner.storage.nodes import SeenNode

_SAME_START_SECONDS = 30.0
"""How far two readings of one process's start may differ.

Too little here would declare a living process gone; too much only leaves one whose pid was reused within seconds to be
found silent. It is for systems other than Linux: there a process's start is told by the time of the boot, which moves
with the wall clock whenever that is set, and so the ticks since the boot are compared.
"""


def new_identity(max_concurrent: int, *, allows_commands: bool, lease: float) -> NodeIdentity:
    """Return a new identity for this process: a UUID for each start of a node. `lease` in seconds."""
    return NodeIdentity(
        id=str(uuid4()),
        hostname=socket.gethostname(),
        pid=os.getpid(),
        boot_id=boot_id(),
        process_started_at=_started_at(os.getpid()),
        version=version(),
        max_concurrent=max_concurrent,
        allows_commands=allows_commands,
        start_ticks=_own_start_ticks(os.getpid()),
        lease_seconds=lease,
    )


@functools.cache
def _started_at(pid: int) -> datetime:
    """Return when this process started: read once, so that all its nodes say the same."""
    return datetime.fromtimestamp(psutil.Process(pid).create_time(), UTC)


@functools.cache
def _own_start_ticks(pid: int) -> int | None:
    return start_ticks(pid)


def start_ticks(pid: int) -> int | None:
    """Return when a process started, in ticks since the boot; None where that cannot be told (other than on Linux)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        return int(stat.rpartition(")")[2].split()[19])  # the name, in brackets, may hold anything
    except (OSError, ValueError, IndexError):
        return None


def boot_id() -> str:
    """Return what is the same for all processes that can see each other's pids, and never again after a reboot.

    On Linux the kernel's boot id and the pid namespace: two containers of one host have the first in common and not the
    second, and the pids of the one mean nothing in the other.
    """
    try:
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{kernel}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{socket.gethostname()}/{psutil.boot_time():.0f}"


def is_gone(node: SeenNode, here: NodeIdentity) -> bool:
    """Say whether `node` was a process of this host that has certainly ended.

    True only when the pid is free or belongs to a process that started at another time.
    """
    if node.boot_id != here.boot_id or node.pid == here.pid:
        return node.boot_id == here.boot_id and node.process_started_at != here.process_started_at
    try:
        process = psutil.Process(node.pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return True
        ticks = start_ticks(node.pid)
        if ticks is not None and node.start_ticks is not None:
            return ticks != node.start_ticks
        return bool(abs(process.create_time() - node.process_started_at.timestamp()) > _SAME_START_SECONDS)
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, ValueError, OverflowError):  # a pid that no process can have was written by hand: who knows
        return False


def version() -> str:
    """Return the installed version of jobrunner."""
    try:
        return metadata.version("jobrunner")
    except metadata.PackageNotFoundError:
        return "unknown"
