"""Reading a JSON document that a row holds. It never raises: what cannot be read is an `Unreadable`.

Both databases take documents that Python cannot hold, or that it could read and not write again: half of a surrogate
pair (SQLite), numbers no float can hold, integers of thousands of digits, nesting as deep as one likes (PostgreSQL).
"""

from __future__ import annotations

import json
import re
from typing import Any

from jobrunner.model.unreadable import Unreadable

MOST_NESTED = 500
"""So that reading, checking and writing it again stay within Python's recursion limit of 1,000, wherever it happens."""
_MOST_SHOWN = 64 * 1024
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|([\[{])|([\]}])')


def _finite(text: str) -> float:
    number = float(text)
    if number in {float("inf"), float("-inf")}:
        msg = f"it holds a number that is too large, {text[:20]}"
        raise ValueError(msg)
    return number


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        msg = f"it holds a number of {len(text):,} digits"
        raise ValueError(msg) from None


def _no_constant(name: str) -> Any:
    msg = f"it holds {name}, which is no JSON"
    raise ValueError(msg)


_decode = json.JSONDecoder(parse_float=_finite, parse_int=_integer, parse_constant=_no_constant).decode


def read_document(text: str) -> Any:
    """Return the value that `text` says, or an `Unreadable` that says why there is none."""
    if text == "{}":
        return {}
    try:
        refuse_nesting(text)
        value = _decode(text)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()  # fails on half of a pair
    except UnicodeEncodeError:
        return unreadable(text, "it holds half of a surrogate pair, which is no text")
    except json.JSONDecodeError as error:
        return unreadable(text, f"it is no JSON: {error}")
    except ValueError as error:
        return unreadable(text, str(error))
    return value


def unreadable(text: str, problem: str) -> Unreadable:
    """Make what stands in for `text`: at most 64 KiB of it are kept."""
    shown = text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}... ({len(text):,} characters)"
    return Unreadable(shown.replace("\0", "\\0").encode("utf-8", "replace").decode(), problem)


def refuse_nesting(text: str) -> None:
    """Raise `ValueError` for a JSON text that is nested too deep."""
    if text.count("[") + text.count("{") <= MOST_NESTED:
        return
    depth = deepest = 0
    for token in _TOKEN.finditer(text):
        if token[1]:
            depth += 1
            deepest = max(deepest, depth)
        elif token[2]:
            depth -= 1
    if deepest > MOST_NESTED:
        msg = f"it is nested {deepest:,} deep, the most is {MOST_NESTED}"
        raise ValueError(msg)
