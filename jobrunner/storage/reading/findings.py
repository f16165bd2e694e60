"""What `db verify` looks for and what it finds: the scope of a look, and a violation."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken promise: its number in README.md, what is wrong, and the rows that show it."""

    promise: int
    problem: str
    rows: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Scope:
    """What to check: from when on ends must still be there, and how far intervals may touch."""

    now: datetime
    history_days: float
    failure_days: float
    tolerance: timedelta = timedelta(0)

    @property
    def ends_kept_since(self) -> datetime:
        """Rows younger than this have lost nothing to pruning; a day's grace, since pruning takes its time."""
        return self._kept_since(min(self.history_days, self.failure_days))

    @property
    def failures_kept_since(self) -> datetime:
        """The same for failures and letters."""
        return self._kept_since(self.failure_days)

    def _kept_since(self, days: float) -> datetime:
        return self.now - timedelta(days=max(days - 1, 0) if days >= 1 else 0)


async def stream(conn: AsyncConnection, statement: Any) -> AsyncIterator[Any]:
    """Yield the rows of a statement as they come: few at a time, however many there are."""
    result = await conn.stream(statement.execution_options(yield_per=1000))
    async for row in result:
        yield row
