"""SQLite's file under a process that uses it: noticing that it was removed, replaced or emptied.

A connection goes on with the file it has opened, whatever becomes of its name: what it writes to a file that was
removed is lost, and what the next connection opens may be another database. So the file is compared, by device and
inode, with what was opened first. The two files beside it count, too: as long as a connection is open SQLite keeps
them, and what is written to a `-wal` that was removed is seen by nobody else.

The file is never opened here: closing it again would end the locks that SQLite holds for this process.
"""

from __future__ import annotations

import math
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from jobrunner.errors import DatabaseGone

if TYPE_CHECKING:
    import os
    from pathlib import Path

CHECK_SECONDS = 1.0
"""A look costs some 5 µs; a database in use looks at most so often."""
CLOSING_SECONDS = 5.0
_BESIDE = ("-wal", "-shm")


class WatchedFile:
    """The file of one `Database`; see the module. Once gone, it stays gone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._real = path
        self._main: tuple[int, int] | None = None
        self._beside: dict[str, tuple[int, int]] = {}
        self._checked_at = self._closing_at = -math.inf
        self._gone: str | None = None

    def opened(self) -> None:
        """Note which file it is; a connection to it was just opened. Only the first counts."""
        found = _stat(self._path)
        if self._main is None and found is not None:
            self._real = self._path.resolve()
            self._main = _identity(found)

    def closing(self, *_: object) -> None:
        """Note that a connection of ours is being closed: if it is the last, SQLite deletes the files beside it.

        That takes place in the connection's own thread, so for a while they are not counted on.
        """
        self._beside.clear()
        self._closing_at = time.monotonic()

    def check_if_due(self) -> None:
        """Do `check`, unless that was less than a second ago."""
        if self._gone is not None or time.monotonic() - self._checked_at >= CHECK_SECONDS:
            self.check()

    def check(self) -> None:
        """Return if the file is the one that was opened first, or none was opened yet.

        Raises:
            DatabaseGone: it was removed, replaced or emptied, or a file that SQLite keeps beside it was.
        """
        if self._main is not None and self._gone is None:
            self._checked_at = time.monotonic()
            with suppress(OSError):  # it cannot be looked at just now; whoever uses it will hear why
                self._gone = self._find_wrong(self._main)
        if self._gone is not None:
            raise DatabaseGone(self._gone)

    def _find_wrong(self, opened: tuple[int, int]) -> str | None:
        found = _stat(self._path)
        if found is None:
            return f"{self._path} was removed or moved"
        if _identity(found) != opened:
            return f"{self._path} was replaced by another file"
        if found.st_size == 0:
            return f"{self._path} was emptied"
        for suffix in _BESIDE:
            path = self._real.with_name(f"{self._real.name}{suffix}")
            found = _stat(path)
            before = self._beside.get(suffix)
            if before is not None and (found is None or _identity(found) != before):
                return f"{path}, a part of the database, was {'removed' if found is None else 'replaced'}"
            if found is not None and time.monotonic() - self._closing_at > CLOSING_SECONDS:
                self._beside[suffix] = _identity(found)
        return None


def _stat(path: Path) -> os.stat_result | None:
    """Return what the system says of the file; None if there is none."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
