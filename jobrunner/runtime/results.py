"""What came of a handler: its result as it can be stored, JSON of at most 64 KiB; its error from another process."""

from __future__ import annotations

import json
from typing import Any

MAX_RESULT_BYTES = 64 * 1024


def storable_result(value: Any) -> tuple[Any, str | None]:
    """Return the result if JSON can say it in 64 KiB; else None and the reason. Never fails the attempt."""
    if value is None:
        return None, None
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        size = len(text.encode())  # a lone surrogate fails here
    except (TypeError, ValueError, RecursionError) as error:
        return None, f"its result is not kept, since it is no JSON: {str(error)[:200]}"
    if size > MAX_RESULT_BYTES:
        return None, f"its result is not kept, since it is {size:,} bytes; the most is {MAX_RESULT_BYTES:,}"
    if "\\u0000" in text:
        return None, "its result is not kept, since it holds a character that a database cannot store"
    return json.loads(text), None


class RemoteError(Exception):
    """What a handler raised in another process, as text. `kinds` names its class and those it derives from."""

    def __init__(self, kind: str, kinds: tuple[str, ...], message: str, text: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.kinds = kinds
        self.text = text
