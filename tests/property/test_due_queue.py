"""The play of the time ahead judges as few as it can, and says what it would say if it judged everybody each time."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Set
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jobrunner.model.facts import ActiveRun, Candidate, KeyFacts, LimitFacts, Start, Window, WorkerFacts
from jobrunner.model.run import Trigger
from jobrunner.model.worker import (
    Dependency,
    DependencyCondition,
    JobPriority,
    Misfire,
    WorkerConfig,
    WorkerState,
)
from jobrunner.policy import forecast
from jobrunner.policy.due_queue import DueQueue

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
UNTIL = NOW + timedelta(minutes=10)


class Everybody(DueQueue):
    """Judges all that are due, whenever something may start."""

    def decide(self, due: Set[str], free: int, decide: Callable[[Set[str]], list[Start]], place: Any) -> list[Start]:
        return decide(frozenset(self._spans)) if self._spans else []


def drawn(draw: random.Random) -> dict[str, WorkerFacts]:
    """Workers at random that depend on and block each other, of which many are due."""
    names = [f"w{number:02}" for number in range(draw.choice([3, 8, 25, 50]))]
    counterparts: defaultdict[str, set[str]] = defaultdict(set)
    edges: defaultdict[str, tuple[Dependency, ...]] = defaultdict(tuple)
    for place, name in enumerate(names[1:], 1):
        if draw.random() < 0.25:
            condition = draw.choice(list(DependencyCondition))
            edges[name] = (Dependency(draw.choice(names[:place]), condition, draw.choice([None, 300.0])),)
        if draw.random() < 0.2:
            other = draw.choice(names[:place])
            counterparts[name].add(other)
            counterparts[other].add(name)
    return {
        name: _worker(draw, name, 100 * number, edges[name], tuple(sorted(counterparts[name])))
        for number, name in enumerate(names, 1)
    }


def _worker(
    draw: random.Random, name: str, first_id: int, edges: tuple[Dependency, ...], counterparts: tuple[str, ...]
) -> WorkerFacts:
    config = WorkerConfig(
        name,
        handler="tests:code",
        interval_seconds=draw.choice([5.0, 20.0, 60.0, 300.0]),
        priority=draw.choice([*JobPriority, JobPriority.NORMAL]),
        misfire=draw.choice(list(Misfire)),
        max_running=draw.choice([1, 1, 2]),
        depends_on=edges,
    )
    state = replace(
        WorkerState(name),
        next_run_at=draw.choice([None, *[NOW + timedelta(seconds=draw.uniform(-60, 120))] * 6]),
        last_run_outcome=draw.choice(["succeeded", "succeeded", None, "failed"]),
        last_success_at=draw.choice([None, NOW - timedelta(seconds=100)]),
        last_due_at=draw.choice([None, NOW - timedelta(seconds=200)]),
        paused_until=draw.choice([*[None] * 9, NOW + timedelta(seconds=60)]),
    )
    waiting = tuple(
        Candidate(
            name,
            first_id + number,
            draw.randrange(3),
            NOW + timedelta(seconds=draw.uniform(-100, 300)),
            attempt=draw.choice([1, 1, 2]),
            is_forced=draw.random() < 0.2,
            has_started_before=draw.random() < 0.3,
        )
        for number in range(draw.choice([0, 0, 1, 3]))
    )
    active: tuple[ActiveRun, ...] = ()
    if draw.random() < 0.2:
        trigger = draw.choice([Trigger.SCHEDULE, Trigger.MANUAL])
        active = (ActiveRun(first_id + 50, name, 0, "n1", NOW - timedelta(seconds=draw.uniform(0, 100)), trigger),)
    return WorkerFacts(
        config,
        state,
        has_handler=draw.random() < 0.95,
        has_handler_elsewhere=draw.random() < 0.9,
        active=active,
        waiting=waiting,
        waiting_retry=min((run.due_at for run in waiting if run.attempt > 1), default=None),
        counterparts=counterparts,
        scheduled_run=next((run.id for run in active if run.trigger is Trigger.SCHEDULE), None),
    )


def limited(
    draw: random.Random, workers: dict[str, WorkerFacts]
) -> tuple[dict[str, WorkerFacts], dict[str, LimitFacts]]:
    """The same workers with limits at random."""
    limits: dict[str, LimitFacts] = {}
    for name in ("one", "two"):
        rate = draw.choice([None, "1/20s", "4/1m"])
        full = Window(4, NOW + timedelta(seconds=draw.randrange(60)))
        window = draw.choice([Window(), Window(3), full]) if rate == "4/1m" else Window()
        limits[name] = LimitFacts(name, draw.choice([None, 1, 2]), rate, window=window)
    found = {}
    for name, worker in workers.items():
        rules: dict[str, Any] = {"rate": draw.choice([None, None, "1/10s", "3/1m"]), "smooth": draw.random() < 0.2}
        rules["limits"] = draw.choice([(), (), ("one",), ("two",), ("one", "two")])
        if draw.random() < 0.5:
            rules |= {"limit_key": "customer", "payload": draw.choice([{}, {"customer": "a"}])}
            rules |= {"max_running_per_key": draw.choice([None, 1, 2]), "rate_per_key": draw.choice([None, "1/15s"])}
            rules |= {"fair": draw.random() < 0.5, "ordered": draw.random() < 0.3, "max_running": 3}
        key = lambda run: replace(run, limit_key=draw.choice([None, "a", "b"]))  # noqa: E731
        found[name] = replace(
            worker,
            config=replace(worker.config, **rules),
            waiting=tuple(key(run) for run in worker.waiting),
            active=tuple(replace(key(run), key_slot=0) for run in worker.active),
            keys={"b": KeyFacts(last_started_at=draw.choice([None, NOW - timedelta(seconds=9)]))},
        )
    for name, limit in limits.items():
        active = [run for worker in found.values() if name in worker.config.limits for run in worker.active]
        limits[name] = replace(limit, active=tuple(active))
    return found, limits


@pytest.mark.parametrize("seed", range(40))
def test_few_are_judged_of_those_with_limits_and_the_same_is_said(seed: int, monkeypatch: pytest.MonkeyPatch):
    draw = random.Random(seed)
    workers, limits = limited(draw, drawn(draw))
    usual = {name: timedelta(seconds=draw.choice([0.5, 3, 20, 90])) for name in workers if draw.random() < 0.8}
    slots, most = draw.choice([1, 2, 3, 5, 20, 2**31]), draw.choice([30, 150])
    found = forecast.play(workers, usual, slots, NOW, UNTIL, most, limits)
    monkeypatch.setattr(forecast, "DueQueue", Everybody)
    assert found == forecast.play(workers, usual, slots, NOW, UNTIL, most, limits)
    assert any(expected.starts_at for expected in found.expected.values())


@pytest.mark.parametrize("seed", range(40))
def test_few_are_judged_and_the_same_is_said(seed: int, monkeypatch: pytest.MonkeyPatch):
    draw = random.Random(seed)
    workers = drawn(draw)
    usual = {name: timedelta(seconds=draw.choice([0.5, 3, 20, 90])) for name in workers if draw.random() < 0.8}
    slots, most = draw.choice([1, 2, 3, 5, 20, 2**31]), draw.choice([30, 150])
    found = forecast.play(workers, usual, slots, NOW, UNTIL, most)
    monkeypatch.setattr(forecast, "DueQueue", Everybody)
    assert found == forecast.play(workers, usual, slots, NOW, UNTIL, most)
    assert any(expected.starts_at for expected in found.expected.values())


def test_where_slots_are_few_the_play_judges_a_few_workers_a_start(monkeypatch: pytest.MonkeyPatch):
    judged = []

    def counting(facts: Any) -> list[Start]:
        judged.append(len(facts.workers))
        return decide(facts)

    decide = forecast.decide_starts
    monkeypatch.setattr(forecast, "decide_starts", counting)
    due = NOW - timedelta(seconds=1)
    workers = {
        name: WorkerFacts(
            WorkerConfig(name, handler="tests:code", interval_seconds=60.0),
            replace(WorkerState(name), next_run_at=due, last_due_at=due - timedelta(seconds=60)),
        )
        for name in (f"w{number:03}" for number in range(200))
    }
    usual = dict.fromkeys(workers, timedelta(seconds=10))
    found = forecast.play(workers, usual, 2, NOW, UNTIL, 100)
    assert len([each for each in found.expected.values() if each.starts_at is not None]) >= 100
    assert sum(judged) <= 10 * 100
