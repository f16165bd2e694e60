"""Which outcomes of an attempt may end its run, and how: what `decide_finish` can come to, in one table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobrunner.model.run import USES_UP_AN_ATTEMPT, EndsRun, OutcomeKind

if TYPE_CHECKING:
    from collections.abc import Mapping

MAY_END: Mapping[OutcomeKind, frozenset[EndsRun | None]] = {
    OutcomeKind.SUCCEEDED: frozenset({EndsRun.SUCCEEDED}),
    OutcomeKind.CANCELLED: frozenset({EndsRun.CANCELLED}),
    OutcomeKind.INTERRUPTED: frozenset({None, EndsRun.CANCELLED}),
    OutcomeKind.SNOOZED: frozenset({None, EndsRun.CANCELLED}),
    OutcomeKind.MISSED: frozenset({None}),
    **dict.fromkeys(USES_UP_AN_ATTEMPT, frozenset({None, EndsRun.EXHAUSTED, EndsRun.DISCARDED, EndsRun.CANCELLED})),
}
"""None: the run goes on. A run that was to go on ends `cancelled` if somebody had asked for that meanwhile."""
