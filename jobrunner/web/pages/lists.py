"""Lists that a filter narrows: the API's page of rows, or, where the filter cannot be used, why; in the same page."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jobrunner.errors import UsageError
from jobrunner.web.answers import Forbidden
from jobrunner.web.api.ask import Page

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from jobrunner.web.api.ask import Ask

ROWS = 50
"""So many rows has a page of a list."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A page of rows; `refused`: why there are none."""

    page: Page
    refused: str | None = None


async def listed(read: Callable[[Ask], Awaitable[Page]], ask: Ask, **fields: Any) -> Listed:
    """Return the rows that a read of the API gives for these fields."""
    try:
        return Listed(await read(replace(ask, fields=fields)))
    except (UsageError, Forbidden) as error:
        return Listed(Page([]), str(error))
