"""What an attempt says: the last 64 KiB of it, while it runs (`runs.output`) and afterwards (`run_history.output`).

Lines are counted from the attempt's first, so that whoever looks again and again knows which lines are new, also after
the oldest have given way. Where some have, the first line of the text says how many: `read_new_lines` reads that.
"""

from __future__ import annotations

import re
import threading
from collections import deque

MAX_OUTPUT_BYTES = 64 * 1024
_DROPPED = re.compile(r"\.\.\. ([\d,]+) of ([\d,]+) lines are not kept \.\.\.")


class Output:
    """The tail of what an attempt said: at most 64 KiB in bounded memory, safe to write from any thread."""

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._lines = 0
        self._lock = threading.Lock()
        self.shown_lines = 0  # of the whole lines, how many were there when the run's row was last written

    @property
    def has_news(self) -> bool:
        """Say whether there are whole lines that the run's row does not know of."""
        return self._lines > self.shown_lines

    def write(self, line: str) -> None:
        """Add a line."""
        self.write_bytes(line.encode("utf-8", "replace") + b"\n")

    def write_bytes(self, chunk: bytes) -> None:
        """Add bytes as they come; the oldest give way."""
        if not chunk:
            return
        with self._lock:
            self._lines += chunk.count(b"\n")
            self._chunks.append(chunk[-MAX_OUTPUT_BYTES:])
            self._size += len(self._chunks[-1])
            while self._size - len(self._chunks[0]) >= MAX_OUTPUT_BYTES:
                self._size -= len(self._chunks.popleft())

    def text(self) -> str | None:
        """Return what is kept, whole lines where lines were dropped, or None if nothing was said."""
        with self._lock:
            kept, lines = b"".join(self._chunks), self._lines
        return _tail(kept, lines) if kept else None

    def whole_lines(self) -> tuple[str | None, int]:
        """Return the same without a line that has not ended, and how many lines have ended so far."""
        with self._lock:
            kept, lines = b"".join(self._chunks), self._lines
        whole = kept[: kept.rfind(b"\n") + 1]
        return _tail(whole, lines) if lines else None, lines


def _tail(kept: bytes, lines: int) -> str:
    is_cut = len(kept) > MAX_OUTPUT_BYTES or kept.count(b"\n") < lines
    if is_cut:
        tail = kept[-(MAX_OUTPUT_BYTES - 100) :]
        kept = tail.split(b"\n", 1)[1] if b"\n" in tail[:-1] else tail
    text = kept.decode("utf-8", "replace").replace("\0", "\\0").removesuffix("\n")
    if not is_cut:
        return text
    dropped = lines - kept.count(b"\n")
    remark = f"... {dropped:,} of {lines:,} lines are not kept ..."
    return f"{remark}\n{text}" if kept else remark


def read_new_lines(text: str | None, known: int) -> tuple[list[str], int]:
    """Return the lines of an attempt's output after the first `known`, and how many lines are known then.

    Lines that have given way before anybody saw them are one line that says how many.
    """
    if text is None:
        return [], known
    lines = text.split("\n")
    first = 0
    found = _DROPPED.fullmatch(lines[0])
    if found is not None:
        first = int(found[1].replace(",", ""))
        lines = lines[1:]
    new = lines[max(known - first, 0) :]
    if first > known:
        new.insert(0, f"... {first - known:,} lines are not shown: more was said than is kept ...")
    return new, max(known, first + len(lines))
