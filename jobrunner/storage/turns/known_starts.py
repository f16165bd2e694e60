"""What a node's turns know of the starts in a rate's window, so that they need not count all of it each time.

A turn that has counted the ended attempts in a window answers how many there were, and the last row of the worker's
history then. The next turn adds the rows that came since: that is as many as there are in the window now, or more,
since some have left it. Only where those would be too many for the rate is the window counted again. No clock is asked:
whoever writes a row of a worker's history holds its state, so that what comes later has a larger id.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from jobrunner.model.worker import WorkerConfig


class KnownStarts:
    """See the module."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str | None, bool], tuple[int, int]] = {}

    def of(self, config: WorkerConfig) -> tuple[int | None, int | None]:
        """Return how many ended attempts were in the window of the worker's rate, and the last row that was counted."""
        return self._known.get((config.name, config.rate, config.smooth), (None, None))

    def note(self, configs: Mapping[str, WorkerConfig], counted: Iterable[Any]) -> None:
        """Note what a turn has answered: worker, count and last row of each."""
        for name, count, last_id in counted:
            config = configs[name]
            self._known[name, config.rate, config.smooth] = (count, last_id)
