"""Every time of a schedule is served, or in one `missed` row, or still to come of: whatever is switched, and when."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from hypothesis import given, settings
from hypothesis import strategies as st

from jobrunner.model.run import Outcome, OutcomeKind, Trigger
from jobrunner.model.schedule import Missed
from jobrunner.model.worker import CircuitState, Misfire, WorkerState
from jobrunner.policy import switches
from jobrunner.policy.firing import after_starts, fire
from jobrunner.policy.missed import UNTIL_RESUMED, Gap, is_off
from jobrunner.policy.schedule import occurrences, usable_schedule
from jobrunner.policy.transitions import decide_finish
from tests.support.ends import a_run, at, config

STEP = st.one_of(
    st.tuples(st.just("wait"), st.integers(1, 400)),
    st.tuples(st.just("pause"), st.sampled_from([20, 130, 700, None])),
    st.tuples(st.just("claim"), st.booleans()),
    st.tuples(st.just("wait"), st.just(125)),
    st.tuples(st.sampled_from(["disable", "enable", "resume"]), st.none()),
)
RULES = st.builds(
    lambda misfire, cooldown, when: config(
        "scheduled", misfire=misfire, cooldown_seconds=cooldown, max_consecutive_failures=1, max_retries=0, **when
    ),
    st.sampled_from(list(Misfire)),
    st.sampled_from([None, 90.0]),
    st.sampled_from([{"interval_seconds": 60}, {"cron": "*/2 * * * *"}]),
)
GAPS = st.one_of(
    st.none(), st.builds(lambda start, length: Gap(at(start), at(start + length)), *[st.integers(1, 900)] * 2)
)


class Story:
    """One worker; `told` holds each time that was served or missed, with what was said of it."""

    def __init__(self, rules, gap) -> None:
        self.rules, self.gap = rules, gap
        schedule = usable_schedule(rules)
        assert schedule is not None
        self.schedule = schedule
        self.clock = 0.0
        self.first = at(0)
        self.state = WorkerState("a", next_run_at=self.first, last_due_at=at(-60))
        self.told: dict[datetime, str] = {}
        self.runs = 0

    def tell(self, missed: tuple[Missed, ...]) -> None:
        for each in missed:
            times = [each.first, *occurrences(self.schedule, each.first, each.last)]
            assert len(times) == each.occurrences, each
            for time in times:
                assert time not in self.told, (time, each.reason, self.told[time])
                self.told[time] = each.reason

    def step(self, what: str, argument) -> None:
        now = at(self.clock)
        if what == "wait":
            self.clock += argument
        elif what == "pause":
            until = UNTIL_RESUMED if argument is None else at(self.clock + argument)
            self.state, missed = switches.pause(self.state, self.rules, now, until, "why", actor="ann", gap=self.gap)
            self.tell(missed)
        elif what == "disable":
            self.state, missed = switches.disable(self.state, self.rules, now, "why", "root", self.gap)
            self.tell(missed)
        elif what == "enable":
            self.state, missed = switches.enable(self.state, self.rules, now)
            self.tell(missed)
        elif what == "resume":
            self.state, missed = switches.resume(self.state, self.rules, now)
            self.tell(missed)
        else:
            self.claim(now, argument)

    def claim(self, now: datetime, succeeds: bool) -> None:
        state = self.state
        is_paused = state.paused_until is not None and state.paused_until > now
        may_probe = state.circuit_state is CircuitState.OPEN and state.probe_at is not None and state.probe_at <= now
        if state.next_run_at is None or state.next_run_at > now or is_paused or not (state.is_enabled or may_probe):
            return
        fired = fire(self.rules, state, now, self.gap)
        self.tell(fired.missed)
        self.state = fired.state
        if fired.scheduled_for is None:
            return
        self.tell((Missed(fired.scheduled_for, fired.scheduled_for, 1, "served"),))
        self.runs += 1
        self.state = after_starts(fired.state, self.runs, now, self.runs if may_probe else None)
        self.clock += 1
        run = a_run(self.runs, trigger=Trigger.SCHEDULE, scheduled_for=fired.scheduled_for)
        kind = OutcomeKind.SUCCEEDED if succeeds else OutcomeKind.FAILED
        decided = decide_finish(run, Outcome(kind, at(self.clock), error="no"), self.rules, self.rules, self.state, 0.0)
        self.tell(decided.missed)
        self.state = decided.state

    def check(self) -> None:
        """What is not told is still to come of; what is told is not."""
        state = self.state
        if not is_off(state, at(self.clock)) and state.paused_until is None:
            assert state.missed_from is None
        open_from = min((time for time in (state.missed_from, state.next_run_at) if time is not None), default=None)
        for time in [self.first, *occurrences(self.schedule, self.first, at(self.clock))]:
            is_open = open_from is not None and time >= open_from
            assert (time in self.told) != is_open, (time, state)


@given(RULES, GAPS, st.lists(STEP, min_size=20, max_size=40))
@settings(max_examples=100, deadline=None)
def test_no_time_is_lost_or_told_twice(rules, gap, steps):
    story = Story(rules, gap)
    for what, argument in steps:
        story.step(what, argument)
        story.check()
    story.clock += 5000
    for what in ("resume", "enable", "claim"):
        story.step(what, True)
    while story.state.next_run_at is not None and story.state.next_run_at <= at(story.clock):
        story.step("claim", True)
    story.check()
    assert story.state.missed_from is None


def test_a_state_that_is_off_by_hand_owes_from_its_next_time_on():
    by_hand = WorkerState("a", is_enabled=False, disabled_by="operator", next_run_at=at(0), last_due_at=at(-60))
    minutely = config(interval_seconds=60)
    assert switches.enable(by_hand, minutely, at(90))[1] == (
        Missed(at(0), at(60), 2, "disabled by an operator: no reason given"),
    )
    on_again = replace(by_hand, is_enabled=True, disabled_by=None, missed_from=at(-180))
    (missed,) = fire(minutely, on_again, at(0)).missed
    assert (missed.occurrences, missed.reason) == (3, "switched off by hand, in the database")


def test_a_pause_after_a_probe_that_was_too_late_loses_no_time():
    rules = config(
        "scheduled",
        misfire=Misfire.SKIP,
        cooldown_seconds=90.0,
        max_consecutive_failures=1,
        max_retries=0,
        cron="*/2 * * * *",
    )
    story = Story(rules, None)
    for what, argument in (
        ("wait", 6),
        ("claim", False),
        ("wait", 574),
        ("claim", False),
        ("pause", 20),
        ("wait", 251),
    ):
        story.step(what, argument)
        story.check()
