"""Which name was probably meant by one that there is not. Pure."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_UNIT = "_seconds"


def near_name(given: str, known: Iterable[str]) -> str | None:
    """Return the one of the names that is most like what was given, or lacks only its unit; None: none is like it."""
    names = list(known)
    meant = {name.removesuffix(_UNIT): name for name in names} | {name: name for name in names}
    found = difflib.get_close_matches(given, meant, n=1)
    return meant[found[0]] if found else None


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return `did you mean max_retries?`, or all the names there are: `there are cron, timezone`."""
    names = list(known)
    near = near_name(given, names)
    return f"there are {', '.join(names)}" if near is None else f"did you mean {near}?"
