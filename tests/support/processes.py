"""Which processes are still there. Any may end between two questions, so each question is asked once."""

from __future__ import annotations

from pathlib import Path

import psutil


def is_alive(process: psutil.Process | int) -> bool:
    """Say whether it runs: one that has ended and is not yet waited for does not."""
    try:
        found = psutil.Process(process) if isinstance(process, int) else process
        return bool(found.is_running()) and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def alive(folder: Path) -> list[int]:
    """Return the processes that noted themselves in `folder`, a file each, and are still there."""
    return [int(entry.name) for entry in folder.iterdir() if entry.name.isdigit() and is_alive(int(entry.name))]
