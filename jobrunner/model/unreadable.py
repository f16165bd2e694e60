"""What stands in for a value of a row that cannot be read.

Any program may write into the tables, and not all that a database takes can be read as what it should be. One such
value must not keep the rest from being read, so reading never raises: it gives one of these.
"""

from __future__ import annotations

from datetime import UTC, datetime

UNREADABLE_TIME = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""Instead of a text that is no time: nothing is due by it, and a schedule that has it computes its next time again."""

UNREADABLE = "Unreadable"
"""The `error_type` of a run that ended since it could not be read."""


class Unreadable(dict[str, str]):
    """Instead of a JSON document: an object that shows the `text` as it stands, and says what the `problem` is."""

    def __init__(self, text: str, problem: str) -> None:
        super().__init__(unreadable=text)
        self.problem = problem
