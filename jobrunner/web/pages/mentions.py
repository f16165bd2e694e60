"""Runs and workers that a sentence names, so that a page can link to them. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

_RUN = r"\brun (?P<run>[1-9][0-9]{0,17})\b"
_IN_NAME = r"[A-Za-z0-9._-]"


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of the sentence; `place` is what it names: an address below the console's."""

    text: str
    place: str | None = None


def mentions(sentence: str, names: Collection[str]) -> list[Piece]:
    """Divide a sentence into pieces: those that name a run, or a worker of `names`, have its place."""
    known = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    pattern = rf"{_RUN}|(?<!{_IN_NAME})(?P<worker>{known})(?!{_IN_NAME})" if known else _RUN
    pieces, last = [], 0
    for found in re.finditer(pattern, sentence):
        if found.start() > last:
            pieces.append(Piece(sentence[last : found.start()]))
        run_id = found["run"]
        pieces.append(Piece(found[0], f"runs/{run_id}" if run_id else f"workers/{found[0]}"))
        last = found.end()
    if last < len(sentence):
        pieces.append(Piece(sentence[last:]))
    return pieces
