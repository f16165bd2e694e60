"""A worker's state at a moment that is past, as far as the gates read it.

From the state of a new worker on, what was recorded is gone through in the order of time: starts and ends of attempts
(history), times that were passed over, switches (the audit log). Each changes the state by the function that changed it
then. Whether a circuit opened is taken from the audit log, since the limit may have been another.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from jobrunner.model.limits import MAX_COUNT
from jobrunner.model.run import FROM_SCHEDULE, EndsRun, Outcome, Run, RunState
from jobrunner.model.worker import CircuitState, JobPriority, Misfire, WorkerConfig, WorkerState
from jobrunner.policy import schedule as schedules
from jobrunner.policy import switches
from jobrunner.policy.firing import after_starts, first_time
from jobrunner.policy.missed import UNTIL_RESUMED, end_pause, with_schedule_of
from jobrunner.policy.transitions import after_end, enabled_state, next_time, rescheduled_time, with_cooldown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from jobrunner.model.past import Passed, Past, Spell, Switch

    Change = Callable[[WorkerState], WorkerState]

SWITCHES = ("enable", "disable", "trip", "close", "pause", "resume", "set", "unset")
"""The actions of the audit log that say how a worker stood."""
SKIPPED = "more than 60 s late"
"""How the reason of a `missed` row begins that no run came after: `misfire` skip."""
_OF_A_SCHEDULE = frozenset({"execution_mode", "interval_seconds", "cron", "timezone", "jitter_seconds"})
_OF_LIMITS = frozenset({"limit_key", "max_running_per_key", "rate", "rate_per_key", "smooth", "fair", "ordered"})
_READ_BY_GATES = _OF_LIMITS | {
    "interval_seconds",
    "cron",
    "timezone",
    "jitter_seconds",
    "priority",
    "max_running",
    "misfire",
    "cooldown_seconds",
    "payload",  # a firing's key is the one of the worker's own payload
}
_END, _SWITCH, _START, _END_AT_ONCE = range(4)  # what comes first of one moment


def config_at(config: WorkerConfig, since: Iterable[Switch]) -> WorkerConfig:
    """Take back what operators have set or unset since; `since` has the newest first."""
    kinds: dict[str, Callable[[Any], Any]] = {"priority": JobPriority, "misfire": Misfire}
    for each in since:
        old = each.detail.get("old") if each.action in {"set", "unset"} else None
        if isinstance(old, dict):
            changes = {name: value for name, value in old.items() if name in _READ_BY_GATES}
            changes |= {name: kinds[name](value) for name, value in changes.items() if name in kinds}
            config = replace(config, **changes)
    return config


def state_at(past: Past, at: datetime) -> WorkerState:
    """Return the state at `at`."""
    state = WorkerState(past.config.name, next_run_at=first_time(past.config, past.created_at))
    for _, _, change in sorted(_changes(past, at), key=lambda each: each[:2]):
        state = change(state)
    return state


def _changes(past: Past, at: datetime) -> Iterator[tuple[datetime, int, Change]]:
    """Yield what changed the state until `at`: when, its place among those of the same moment, and the change."""
    trips = {each.detail.get("run_id"): each for each in past.switches if each.action == "trip"}
    told = {run_id for run_id, spells in past.spells.items() if spells[-1].ends_run is not None}
    for spells in past.spells.values():
        for spell in spells:
            if spell.started_at is not None and spell.started_at <= at:
                is_first = (
                    spell is spells[0] and spell.attempt == 1 and spell.first_started_at in {None, spell.started_at}
                )
                yield spell.started_at, _START, _start(past.config, spell, spell.started_at, is_first=is_first)
            if spell.finished_at is not None and spell.finished_at <= at:
                place = _END_AT_ONCE if spell.started_at == spell.finished_at else _END
                yield spell.finished_at, place, _end(past.config, spell, spell.finished_at, trips)
    for passed in past.passed:
        if passed.noted_at <= at and passed.reason.startswith(SKIPPED):
            yield passed.noted_at, _START, _skip(past.config, passed)
    for switch in past.switches:
        is_told = switch.action in {"trip", "close"} and switch.detail.get("run_id") in told
        if switch.at <= at and not is_told:
            yield switch.at, _SWITCH, _switch(past.config, switch, has_loop_run=_has_loop_run(past, switch.at))


def _has_loop_run(past: Past, at: datetime) -> bool:
    for spells in past.spells.values():
        has_ended = spells[-1].ends_run is not None and spells[-1].is_over(at)
        if spells[0].trigger in FROM_SCHEDULE and spells[0].has_started(at) and not has_ended:
            return True
    return False


def _start(config: WorkerConfig, spell: Spell, at: datetime, *, is_first: bool) -> Change:
    def change(state: WorkerState) -> WorkerState:
        is_probe = not spell.is_forced and state.disabled_by == "circuit" and state.circuit_state is CircuitState.OPEN
        if is_first and spell.trigger in FROM_SCHEDULE:
            state = _served(end_pause(state, config, at)[0], config, spell.scheduled_for)
        return after_starts(state, spell.fence or 0, at if is_first else None, spell.run_id if is_probe else None)

    return change


def _served(state: WorkerState, config: WorkerConfig, due: datetime) -> WorkerState:
    schedule = schedules.usable_schedule(config)
    following = None if schedule is None else schedules.step_after(schedule, due)
    return replace(state, next_run_at=following, last_due_at=due, missed_from=None)


def _skip(config: WorkerConfig, passed: Passed) -> Change:
    return lambda state: _served(end_pause(state, config, passed.noted_at)[0], config, passed.last)


def _end(config: WorkerConfig, spell: Spell, at: datetime, trips: dict[Any, Switch]) -> Change:
    trip = trips.get(spell.run_id) if spell.ends_run is EndsRun.EXHAUSTED else None
    rules = replace(config, max_consecutive_failures=MAX_COUNT if trip is None else 1)
    run = Run(
        id=spell.run_id,
        worker=config.name,
        trigger=spell.trigger,
        state=RunState.RUNNING,
        priority=int(config.priority),
        scheduled_for=spell.scheduled_for,
        due_at=spell.due_at,
        payload={},
        key=None,
        attempt=spell.attempt,
        is_forced=spell.is_forced,
        fence=spell.fence,
    )
    assert spell.outcome is not None  # noqa: S101 - it has ended
    outcome = Outcome(spell.outcome, at, error_type=spell.error_type, error=spell.error, reason=spell.reason)

    def change(state: WorkerState) -> WorkerState:
        after, _, _ = after_end(state, run, outcome, spell.ends_run, rules)
        said = None if trip is None else trip.detail.get("reason")
        return replace(after, disabled_reason=str(said)) if said and after.disabled_by == "circuit" else after

    return change


def _switch(config: WorkerConfig, switch: Switch, *, has_loop_run: bool) -> Change:
    now, detail = switch.at, switch.detail

    def change(state: WorkerState) -> WorkerState:
        match switch.action:
            case "enable":
                return switches.enable(state, config, now, has_loop_run=has_loop_run)[0]
            case "disable":
                return switches.disable(state, config, now, detail.get("reason"), switch.actor)[0]
            case "pause":
                until, reason = _time(detail.get("until")), detail.get("reason")
                return switches.pause(state, config, now, until, reason, actor=switch.actor)[0]
            case "resume":
                return switches.resume(state, config, now, has_loop_run=has_loop_run)[0]
            case "trip":
                return _opened(state, config, switch)
            case "close":
                closed = replace(enabled_state(state, config, now), consecutive_failures=0)
                return replace(closed, next_run_at=next_time(config, closed, now))
            case _:
                return _redefined(state, config, switch)

    return change


def _opened(state: WorkerState, config: WorkerConfig, switch: Switch) -> WorkerState:
    """Open the circuit for a run of which no history is at hand."""
    opened = replace(
        state,
        is_enabled=False,
        disabled_by="circuit",
        disabled_reason=str(switch.detail.get("reason")),
        circuit_state=CircuitState.OPEN,
        circuit_opened_at=switch.at,
        cooldown_current_seconds=config.cooldown_seconds,
        probe_run_id=None,
    )
    return with_cooldown(opened, config, switch.at)


def _redefined(state: WorkerState, config: WorkerConfig, switch: Switch) -> WorkerState:
    new = switch.detail.get("new")
    if not isinstance(new, dict) or _OF_A_SCHEDULE.isdisjoint(new):
        return state
    state, _ = with_schedule_of(config, state, config, switch.at)
    return replace(state, next_run_at=rescheduled_time(state, config, switch.at)) if state.is_enabled else state


def _time(text: Any) -> datetime:
    try:
        return datetime.fromisoformat(str(text))
    except ValueError:
        return UNTIL_RESUMED
