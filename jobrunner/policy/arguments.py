"""What a program hands over, checked before any of it reaches a database: ids, counts, names, texts. Pure.

Each function returns the value it was given, or raises `InvalidSetting`, which names the argument.
"""

from __future__ import annotations

import re

from jobrunner.errors import InvalidSetting

LARGEST_ID = 2**63 - 1
_LONGEST_ACTOR = 200
_WHOLE = re.compile(r"-?[0-9]{1,19}")  # longer ones Python itself may refuse to read
_SHOWN = 60


def check_id(argument: str, value: object) -> int:
    """Return a number that a row may have as its id."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidSetting(f"{argument} must be a whole number, not {value!r}")
    if abs(value) > LARGEST_ID:
        raise InvalidSetting(f"{argument} must be at most {LARGEST_ID}, not {value}")
    return value


def read_id(argument: str, value: object) -> int:
    """Return a number that a row may have as its id, from the number or from its digits."""
    if isinstance(value, str):
        if not _WHOLE.fullmatch(value):
            shown = value if len(value) <= _SHOWN else f"{value[:_SHOWN]}…"
            raise InvalidSetting(f"{argument} must be a whole number of at most 19 digits, not {shown!r}")
        value = int(value)
    return check_id(argument, value)


def check_limit(value: object) -> int:
    """Return how many rows there may be at most."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidSetting(f"limit must be a whole number above 0, not {value!r}")
    return check_id("limit", value)


def check_flag(argument: str, value: object) -> bool:
    """Return True or False: what is merely true, as the text "no" is, was meant otherwise."""
    if not isinstance(value, bool):
        raise InvalidSetting(f"{argument} must be True or False, not {value!r}")
    return value


def check_text(argument: str, value: object) -> str:
    """Return text that both databases can be asked for."""
    if not isinstance(value, str):
        raise InvalidSetting(f"{argument} must be text, not {value!r}")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise InvalidSetting(f"{argument} must be text that a database can hold, not {value!r}")
    return value


def check_reason(value: object) -> str | None:
    """Return a reason, or None for none; characters that no database holds are escaped where it is written."""
    if value is not None and not isinstance(value, str):
        raise InvalidSetting(f"reason must be text, not {value!r}")
    return value


def check_actor(argument: str, value: object) -> str:
    """Return who acts, without the space around it."""
    name = value.strip() if isinstance(value, str) else ""
    if not name or not name.isprintable() or len(name) > _LONGEST_ACTOR:
        raise InvalidSetting(f"{argument} must be 1 to {_LONGEST_ACTOR} printable characters")
    return name
