"""What a node knows of who may take the fast path (`storage.turns.turn`), and what its next turn is to be. No I/O.

States. *Unknown*: nothing stands, and the next pass looks the long way. *Known*: what the last look found stands, and
turns may follow each other. *Late*: workers were stuck at the last look, `LOOK_AGAIN_SECONDS` ago or more, and one
turn was sent since: the next pass looks. That one turn is let pass so that on an idle node the look is not in the way
of a run that has just come.

Events. A pass begins; a look found who is eligible; a turn is sent off, and comes back. A turn that found other work
due makes all unknown, for it may be one of the eligible who is so no longer. After one that found nothing, and says so,
there is rest.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from jobrunner.policy.timetable import Timetable
from jobrunner.storage.turns.turn import LOOK_AGAIN_SECONDS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from datetime import datetime

    from jobrunner.policy.fast_path import Eligible, Planned
    from jobrunner.storage.turns.turn import Turned

LOCKED_PAUSE_SECONDS = 0.01
"""After others had locked what may start: they are about to claim it, or to end it."""


class FastPathKnowledge:
    """See the module. `monotonic` are seconds of the monotonic clock."""

    def __init__(self) -> None:
        self._eligible: Eligible | None = None
        self._timetable = Timetable()
        self._look_at = 0.0
        self._is_late = False
        self._is_worth_a_turn = False
        self._last: Turned | None = None

    def pass_begins(self, *, is_worth_a_turn: bool) -> None:
        """Note whether runs may wait that nobody has looked for: the last pass gave some, or something has woken us."""
        has_paused = self._is_held_up or (self.is_at_rest and self._is_passing_by)
        self._is_worth_a_turn = is_worth_a_turn or has_paused

    def next_turn(self, now: datetime, free_slots: int, *, may_claim: bool) -> Eligible | None:
        """Return whose runs, or firings, a turn may start now; None: of nobody's that is known."""
        self._last = None
        firings = self._due_firings(now, free_slots)
        return firings or (self._known() if may_claim else None)

    def _due_firings(self, now: datetime, free_slots: int) -> Eligible | None:
        if free_slots <= 0:
            return None
        stuck = self._eligible.stuck if self._eligible is not None and not self._is_late else ()
        return self._timetable.due(now, free_slots, stuck)

    def _known(self) -> Eligible | None:
        eligible = self._eligible
        if eligible is None or not eligible.configs or not self._is_worth_a_turn:
            return None
        return None if self._is_look_due else eligible

    @property
    def is_at_rest(self) -> bool:
        """Say whether the last turn has found that nothing more may start of those who are eligible."""
        return self._last is not None and self._last.is_all and not self._last.runs

    @property
    def _is_held_up(self) -> bool:
        return self._last is not None and self._last.has_locked and not self._last.runs

    @property
    def settled(self) -> Collection[str]:
        """Return the workers whose waiting runs a look need not look at: turns do."""
        if self._eligible is None or not (self.is_at_rest or self._is_look_due):
            return ()
        return self._eligible.configs

    @property
    def _is_look_due(self) -> bool:
        return self._is_passing_by and self._is_late

    @property
    def _is_passing_by(self) -> bool:
        return self._eligible is not None and bool(self._eligible.stuck)

    def seconds_of_rest(self, now: datetime, monotonic: float) -> float | None:
        """Return for how long there is nothing to do, as the last turn has found; None if a look is to say so."""
        if self._is_held_up and not self._is_look_due:
            return LOCKED_PAUSE_SECONDS
        if self._last is None or not self.is_at_rest or self._is_look_due:
            return None
        due_at = self._last.next_due_at
        seconds = math.inf if due_at is None else max(0.0, (due_at - now).total_seconds())
        return min(seconds, max(0.0, self._look_at - monotonic)) if self._is_passing_by else seconds

    def turn_sent(self, monotonic: float) -> None:
        """A turn that claims has been sent off."""
        self._is_late = monotonic >= self._look_at

    def turn_came_back(self, eligible: Eligible | None, turned: Turned) -> None:
        """A turn for `eligible` is done, or has failed."""
        self._last = turned
        if eligible is not None:
            fired = {run.worker for run in turned.runs}
            self._timetable.settle(eligible, fired, were_all_refused=turned.has_other)
            self._is_worth_a_turn = self._is_worth_a_turn or bool(turned.runs)
        if turned.has_other:
            self._eligible = None

    def looked(self, monotonic: float, eligible: Eligible | None, *, is_nothing_due: bool) -> None:
        """A look has found who is eligible; where nothing was due, who was eligible is so still."""
        if eligible is not None or not is_nothing_due:
            self._eligible = eligible and eligible.beside(self._eligible)
        elif self._eligible is not None:
            self._eligible = replace(self._eligible, stuck=())
        self._look_at = monotonic + LOOK_AGAIN_SECONDS
        self._is_late = False
        self._last = None

    def learn(self, planned: Iterable[Planned]) -> None:
        """Note workers as their last firing left them."""
        self._timetable.learn(planned)

    def forget(self) -> None:
        """Know nothing any more."""
        self._eligible = None
        self._timetable = Timetable()
