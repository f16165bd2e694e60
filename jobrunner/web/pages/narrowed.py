"""A page's question put to a read of the API, which has fields of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobrunner.web.api.ask import Ask


def narrowed(ask: Ask, **fields: Any) -> Ask:
    """Return the same question with these fields, and no others."""
    return replace(ask, fields=fields)
