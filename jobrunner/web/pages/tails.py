"""The end of a long text, where what matters stands; and two texts beside each other, with what differs. Pure."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_LINES, MOST_CHARACTERS = 200, 16 * 1024
_MOST_COMPARED, _LONGEST_LINE = 300, 500


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of a text; `is_cut`: there is more before it."""

    text: str
    is_cut: bool


@dataclass(frozen=True, slots=True)
class Pair:
    """Two lines beside each other; None: there is none on that side."""

    left: str | None
    right: str | None

    @property
    def differs(self) -> bool:
        """Say whether they are not the same."""
        return self.left != self.right


def tail_of(text: str | None, lines: int = MOST_LINES, characters: int = MOST_CHARACTERS) -> Tail | None:
    """Return the last lines of a text, of no more characters than that; None of an empty one."""
    if not text or not text.strip():
        return None
    end = text.rstrip()[-characters:]
    kept = "\n".join(end.split("\n")[-lines:])
    return Tail(kept, len(kept) < len(text.rstrip()))


def side_by_side(left: str, right: str) -> list[Pair]:
    """Return the last lines of two texts in pairs; those that are the same stand beside each other."""
    ones, others = _lines(left), _lines(right)
    pairs: list[Pair] = []
    for _, a, b, c, d in difflib.SequenceMatcher(None, ones, others, autojunk=False).get_opcodes():
        for place in range(max(b - a, d - c)):
            one = ones[a + place] if a + place < b else None
            other = others[c + place] if c + place < d else None
            pairs.append(Pair(one, other))
    return pairs


def _lines(text: str) -> list[str]:
    found = text.rstrip().splitlines()[-_MOST_COMPARED:] if text else []
    return [line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}…" for line in found]


@dataclass(frozen=True, slots=True)
class Change:
    """A line of a difference: `kind` is `added`, `removed`, `same` or `place`, which says where it is."""

    kind: str
    text: str


_KINDS = {"+": "added", "-": "removed", "@": "place"}
_MOST_CHANGES = 1_000


def difference(stored: str, edited: str) -> list[Change]:
    """Return the difference of two texts as `diff -u` writes it, without the names; nothing where they are the same.

    Of a text with very many lines only the first changes are told.
    """
    return list(_changes(stored, edited))


def _changes(stored: str, edited: str) -> Iterator[Change]:
    ones, others = stored.splitlines(), edited.splitlines()
    if ones == others:
        return
    if max(len(ones), len(others)) > 5 * _MOST_CHANGES:  # a matcher of so many would keep everybody waiting
        first = next((n for n, (one, other) in enumerate(zip(ones, others, strict=False)) if one != other), None)
        at = min(len(ones), len(others)) if first is None else first
        yield Change("place", f"@@ the first difference is at line {at + 1} @@")
        ones, others = ones[at : at + 20], others[at : at + 20]
    for number, line in enumerate(difflib.unified_diff(ones, others, n=3, lineterm="")):
        if number < 2:  # the names of the two
            continue
        if number > _MOST_CHANGES:
            yield Change("place", "@@ there is more @@")
            return
        shown = line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}…"
        yield Change(_KINDS.get(line[:1], "same"), shown)
