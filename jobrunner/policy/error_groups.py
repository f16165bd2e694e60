"""What makes two errors the same for who reads a list of them: one text, whatever numbers and names stand in it. Pure.

"order 17 not found" and "order 18 not found" are both "order … not found".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

GAP = "…"
"""What stands for whatever differs."""
LONGEST_READ, LONGEST_SHOWN = 1000, 200
"""So much of a message's first line is looked at, and so much of what it is made into is kept. In characters."""

MOST_NAMED = 5
"""So many workers are named in a filter."""

# One after the other: one pattern of them all takes twice as long.
_DIFFERS = (
    re.compile(r""""[^"]*"|`[^`]*`|«[^«»]*»|“[^“”]*”|'(?<!\w.)[^']*'(?!\w)"""),
    re.compile(r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b"),
    re.compile(r"\b0[xX][0-9a-fA-F]+\b|\b(?=[a-fA-F]*\d)[0-9a-fA-F]{6,}\b"),
    re.compile(r"\d+(?:[.,:_/-]\d+)*"),
)
_MAY_DIFFER = re.compile("[\"`«“'\\d]")  # a text without any of these has nothing that differs
_GAPS = re.compile(f"{GAP}(?:[ ,;]*{GAP})+")


def normalise(message: str | None) -> str:
    """Return a message's first line with `…` for quoted text, numbers, ids, and what cannot be printed.

    What it returns it returns as it is; never more than `LONGEST_SHOWN` characters.
    """
    text = message or ""
    lines = text.strip().splitlines()
    line = lines[0][:LONGEST_READ].strip() if lines else ""
    line = _settled(_printable(line if text.startswith(line) else GAP + line))
    if len(line) > LONGEST_SHOWN:
        line = _settled(line[: LONGEST_SHOWN - 1] + GAP)
    return line


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(each if each.isprintable() else GAP for each in text)


def _settled(line: str) -> str:
    """Put gaps in until there is nothing left to put one in for: each may bring two quotes together."""
    while True:
        made = line
        if _MAY_DIFFER.search(line):
            for pattern in _DIFFERS:
                made = pattern.sub(GAP, made)
        made = _GAPS.sub(GAP, made)
        if made == line:
            return line
        line = made


def filter_of(workers: Sequence[str], error_type: str | None, normalised: str) -> str:
    """Return the filter (`policy.filters`) of the open letters of one error, or of little more than those.

    Of more than `MOST_NAMED` workers none is named: then it is of all that have the error. A filter looks for one piece
    of text in `type: message`: that is the longest that has no gap.
    """
    head = f"{error_type}: " if error_type is not None else ""
    pieces = [piece for piece in _printable(head + normalised).split(GAP) if piece.strip()]
    terms = [f"worker:{','.join(workers)}"] if len(workers) <= MOST_NAMED else []
    terms.append("status:open")
    if pieces:
        terms.append(f'error:"{_quoted(max(pieces, key=len))}"')
    return " ".join(terms)


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
