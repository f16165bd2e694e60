"""The picture: the workers and runs of a simulation, in memory, moved on by the same decisions as a node's tables.

It is no store: nothing can be asked of it, nobody else changes it, it knows no nodes, leases or locks, and it is gone
with the simulation. What it knows by itself is only which runs wait, and when something is due next. What may start,
what a firing becomes and what follows from an end are the answers of `policy`, as they are for `storage`. Between two
passes no run is active: the simulation carries out each pass to its end.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter, defaultdict
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from jobrunner.errors import WorkerNotFound
from jobrunner.model.facts import ActiveRun, Candidate, Facts, LimitFacts, WorkerFacts
from jobrunner.model.run import FROM_SCHEDULE, Run, RunState, Trigger
from jobrunner.model.worker import WorkerConfig, WorkerState
from jobrunner.policy import definitions
from jobrunner.policy.dependencies import named_elsewhere, refuse_cycles, refuse_unknown
from jobrunner.policy.duplicates import KEEP, REPLACE, postponed
from jobrunner.policy.firing import after_starts, fire, first_time
from jobrunner.policy.gates import decide_starts
from jobrunner.policy.limit_gates import goes_by_key, is_rated
from jobrunner.policy.limit_options import limit_key_of
from jobrunner.policy.near import near_name
from jobrunner.policy.played_limits import PlayedLimits
from jobrunner.policy.ties import related
from jobrunner.policy.transitions import decide_finish
from jobrunner.storage.records.history import attempt_row, missed_row, storable_outcome
from jobrunner.storage.runs.claims import Claim
from jobrunner.testing.queue import Queue

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from jobrunner.model.facts import Start
    from jobrunner.model.named_limit import LimitConfig
    from jobrunner.model.run import Outcome
    from jobrunner.policy.transitions import Retry
    from jobrunner.storage.runs.enqueue import Request

NODE_ID = "simulation"


@dataclass(slots=True)
class _Worker:
    """One worker: its definition, its state, its waiting runs, and the run that its schedule or loop has made."""

    config: WorkerConfig
    state: WorkerState
    counterparts: tuple[str, ...]
    related: frozenset[str] = frozenset()  # itself, and all that its relations lead to
    queue: Queue = field(default_factory=Queue)
    keyed: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    scheduled_run: int | None = None
    planned: datetime | None = None  # its moment in the agenda
    facts: WorkerFacts | None = None  # kept while nothing of it waits or changes

    def is_due(self, now: datetime) -> bool:
        next_run_at = self.state.next_run_at
        return (next_run_at is not None and next_run_at <= now) or self.queue.has_due(now)

    def next_moment(self, now: datetime) -> datetime | None:
        """Return when something of it becomes due next, after `now`."""
        moments = (self.state.next_run_at, self.state.probe_at, self.queue.next_due(now))
        return min((moment for moment in moments if moment is not None and moment > now), default=None)


@dataclass(slots=True)
class _Live:
    run: Run
    key_scope: str = "waiting"


class Picture:
    """The workers, from the moment they are registered at `now`.

    Raises:
        InvalidWorker: a dependency or block names an unknown worker.
        DependencyCycle: workers wait for each other in a circle.
    """

    def __init__(self, configs: Iterable[WorkerConfig], limits: Iterable[LimitConfig], now: datetime) -> None:
        known = {config.name: _as_stored(config) for config in configs}
        refuse_unknown(named_elsewhere(known), (), known)
        refuse_cycles({name: [edge.depends_on for edge in config.depends_on] for name, config in known.items()})
        self.history: list[dict[str, Any]] = []
        self.starts: Counter[str] = Counter()  # by worker; the caller clears it
        self._live: dict[int, _Live] = {}
        self._last_id = 0
        self._agenda: list[tuple[datetime, str]] = []
        self._openings: list[tuple[datetime, str]] = []  # when rates open, for workers that wait
        self._may_be_due: set[str] = set()
        self._workers: dict[str, _Worker] = {}
        counterparts = _counterparts(known)
        for name, config in known.items():
            state = WorkerState(name, next_run_at=first_time(config, now))
            self._workers[name] = worker = _Worker(config, state, tuple(sorted(counterparts[name])))
            self._note_change(worker, now)
        for name, worker in self._workers.items():
            worker.related = related(name, self._workers)
        self._shared = {limit.name: LimitFacts(limit.name, limit.max_running, limit.rate) for limit in limits}
        begin = {name: WorkerFacts(worker.config, worker.state) for name, worker in self._workers.items()}
        self._limits = PlayedLimits(begin, self._shared, now)
        self._rated = {name for name, worker in self._workers.items() if is_rated(worker.config, self._shared)}

    def claim(self, now: datetime, slots: int) -> tuple[list[Claim], bool]:
        """Start what may start now, at most `slots` runs; say whether anything has changed, be it only a missed row."""
        due = self._due(now)
        starts = decide_starts(self._facts(due, now, slots)) if due else []
        fences = {start.worker: self._workers[start.worker].state.last_fence for start in starts}
        probes: dict[str, int] = {}
        runs = []
        for start in starts:
            fences[start.worker] += 1
            run = self._start(start, fences[start.worker], now)
            if run is not None:
                runs.append(run)
                if start.is_probe:
                    probes[start.worker] = run.id
        begun = {run.worker for run in runs if run.first_started_at == now}
        for name, fence in fences.items():
            worker = self._workers[name]
            begins = name in begun
            worker.state = after_starts(worker.state, fence, now if begins else None, probes.get(name))
            self._note_change(worker, now)
        self._note_openings(due, slots, now)
        self.starts.update(run.worker for run in runs)
        return [self._claimed(run) for run in sorted(runs, key=lambda run: run.id)], bool(starts)

    def _claimed(self, run: Run) -> Claim:
        return Claim(replace(run, payload=deepcopy(run.payload)), self._workers[run.worker].config)

    def finish(self, ended: Sequence[tuple[Run, Outcome]], now: datetime) -> None:
        """Write how the runs of a pass ended, in the order of their ids."""
        attempts, missed = [], []
        for run, _ in ended:
            self._limits.end(self._workers[run.worker].config, run.id)
        for run, outcome in sorted(ended, key=lambda each: each[0].id):
            worker = self._workers[run.worker]
            decided = decide_finish(run, storable_outcome(outcome), worker.config, worker.config, worker.state, 0.0)
            worker.state = decided.state
            attempts.append(attempt_row(run, decided))
            missed += [missed_row(run.worker, each, outcome.finished_at) for each in decided.missed]
            if decided.retry is None:
                self._end(worker, run)
            else:
                self._set_back(worker, run.id, decided.retry)
        self._record(attempts + missed)
        for name in {run.worker for run, _ in ended}:
            self._note_change(self._workers[name], now)

    def next_moment(self) -> datetime | None:
        """Return when something becomes due next, None if nothing ever does."""
        opens_at = self._openings[0][0] if self._openings else None
        while self._agenda:
            moment, name = self._agenda[0]
            if self._workers[name].planned == moment:
                return moment if opens_at is None else min(moment, opens_at)
            heapq.heappop(self._agenda)
        return opens_at

    def enqueue(self, requests: Sequence[Request], now: datetime) -> list[int]:
        """Add waiting runs and return their ids; for a key that is taken, the id of the run that has it.

        Raises:
            WorkerNotFound: a request names an unknown worker; then none is added.
        """
        for request in requests:
            if request.worker not in self._workers:
                near = near_name(request.worker, self._workers)
                raise WorkerNotFound(request.worker, None if near is None else f"did you mean {near!r}?")
        return [self._enqueue(self._workers[request.worker], request, now) for request in requests]

    def _enqueue(self, worker: _Worker, request: Request, now: datetime) -> int:
        holder = None if request.key is None else self._holder(worker, request.key, request.key_scope)
        if holder is not None:
            self._change_waiting(worker, holder, request, now)
            return holder
        payload = worker.config.payload if request.payload is None else request.payload
        fields: dict[str, Any] = {
            "trigger": Trigger(request.trigger),
            "state": RunState.PENDING,
            "priority": int(worker.config.priority) if request.priority is None else request.priority,
            "payload": json.loads(json.dumps(payload)),
            "key": request.key,
            "is_forced": request.is_forced,
            "limit_key": request.limit_key or limit_key_of(worker.config, payload),
        }
        run = self._new_run(worker, request.due_at or now, now, fields)
        self._live[run.id].key_scope = request.key_scope
        if run.key is not None:
            worker.keyed[run.key].append(run.id)
        worker.queue.add(run)
        self._note_change(worker, now)
        return run.id

    def _change_waiting(self, worker: _Worker, run_id: int, request: Request, now: datetime) -> None:
        """Replace or postpone the run that holds a key, if it has never started."""
        live = self._live[run_id]
        if live.run.first_started_at is not None or request.on_duplicate == KEEP:
            return
        worker.queue.remove(live.run)
        if request.on_duplicate == REPLACE:
            payload = worker.config.payload if request.payload is None else request.payload
            key = request.limit_key or limit_key_of(worker.config, payload)
            live.run = replace(live.run, payload=json.loads(json.dumps(payload)), limit_key=key)
        else:
            due_at = postponed(live.run.due_at, request.due_at or now, live.run.created_at or now, request.at_most, now)
            if due_at is not None:
                live.run = replace(live.run, due_at=due_at, scheduled_for=due_at)
        worker.queue.add(live.run)
        self._note_change(worker, now)

    def _holder(self, worker: _Worker, key: str, scope: str) -> int | None:
        """Return the first run that holds the key."""
        for run_id in worker.keyed.get(key, ()):
            live = self._live[run_id]
            if "live" in {scope, live.key_scope} or live.run.first_started_at is None:
                return run_id
        return None

    def _start(self, start: Start, fence: int, now: datetime) -> Run | None:
        """Start a waiting run, or a firing, which may come to nothing but a missed row."""
        worker = self._workers[start.worker]
        claimed: dict[str, Any] = {"slot": start.slot, "fence": fence, "node_id": NODE_ID, "started_at": now}
        claimed["is_rated"] = is_rated(worker.config, self._shared)
        if start.run_id is not None:
            live = self._live[start.run_id]
            worker.queue.remove(live.run)
            first = live.run.first_started_at or now
            live.run = replace(live.run, state=RunState.RUNNING, first_started_at=first, **claimed)
            self._limits.start(worker.config, _active(live.run))
            return live.run
        fired = fire(worker.config, worker.state, now)
        worker.state = fired.state
        self._record(missed_row(start.worker, each, now) for each in fired.missed)
        if fired.trigger is None or fired.scheduled_for is None:
            return None
        fields: dict[str, Any] = {
            **claimed,
            "trigger": fired.trigger,
            "state": RunState.RUNNING,
            "priority": int(worker.config.priority),
            "payload": worker.config.payload,
            "first_started_at": now,
            "limit_key": start.limit_key,
        }
        run = self._new_run(worker, fired.scheduled_for, now, fields)
        worker.scheduled_run = run.id
        self._limits.start(worker.config, _active(run))
        return run

    def _new_run(self, worker: _Worker, due_at: datetime, now: datetime, fields: Mapping[str, Any]) -> Run:
        self._last_id += 1
        times: dict[str, Any] = {"scheduled_for": due_at, "due_at": due_at, "created_at": now}
        others = {"attempt": 1, "key": None, "is_forced": False, **fields}
        run = Run(id=self._last_id, worker=worker.config.name, **times, **others)
        self._live[run.id] = _Live(run)
        return run

    def _set_back(self, worker: _Worker, run_id: int, retry: Retry) -> None:
        live = self._live[run_id]
        live.run = replace(
            live.run,
            state=RunState.PENDING,
            slot=None,
            fence=None,
            node_id=None,
            started_at=None,
            is_rated=False,
            attempt=retry.attempt,
            due_at=retry.due_at,
            lost_in_a_row=retry.lost_in_a_row,
        )
        worker.queue.add(live.run)

    def _end(self, worker: _Worker, run: Run) -> None:
        del self._live[run.id]
        if run.trigger in FROM_SCHEDULE:
            worker.scheduled_run = None
        if run.key is not None:
            worker.keyed[run.key].remove(run.id)

    def _record(self, rows: Iterable[dict[str, Any]]) -> None:
        for row in rows:
            self.history.append({"id": len(self.history) + 1, **row})

    def _note_change(self, worker: _Worker, now: datetime) -> None:
        """Keep in mind that the worker may be due, and when something of it becomes due."""
        worker.facts = None
        self._may_be_due.add(worker.config.name)
        moment = worker.next_moment(now)
        if moment != worker.planned:
            worker.planned = moment
            if moment is not None:
                heapq.heappush(self._agenda, (moment, worker.config.name))

    def _note_openings(self, due: set[str], slots: int, now: datetime) -> None:
        """Keep in mind when the rates open that are shut for those who are due."""
        for name in sorted(due & self._rated):
            for moment in self._limits.opens(self._facts_of(self._workers[name], now, slots), now):
                if (moment, name) not in self._openings:
                    heapq.heappush(self._openings, (moment, name))

    def _due(self, now: datetime) -> set[str]:
        """Return the workers that have something due."""
        while self._openings and self._openings[0][0] <= now:
            self._may_be_due.add(heapq.heappop(self._openings)[1])
        while self._agenda and self._agenda[0][0] <= now:
            moment, name = heapq.heappop(self._agenda)
            worker = self._workers[name]
            if worker.planned == moment:
                worker.planned = None
                self._note_change(worker, now)
        self._may_be_due = {name for name in self._may_be_due if self._workers[name].is_due(now)}
        return self._may_be_due

    def _facts(self, due: set[str], now: datetime, slots: int) -> Facts:
        names = frozenset[str]().union(*(self._workers[name].related for name in due))
        known = {name: self._limits.of(self._facts_of(self._workers[name], now, slots), now) for name in names}
        return Facts(now, known, slots, self._limits.shared(known.values(), now))

    def _facts_of(self, worker: _Worker, now: datetime, slots: int) -> WorkerFacts:
        if worker.facts is not None:
            return worker.facts
        most = 1 if worker.config.max_running <= 1 else slots
        waiting = worker.queue.all() if goes_by_key(worker.config) else worker.queue.first_due(now, most)
        probe = self._live.get(worker.state.probe_run_id or 0)
        if probe is not None and probe.run.due_at <= now:
            waiting.add(probe.run.id)
        facts = WorkerFacts(
            worker.config,
            worker.state,
            waiting=tuple(_candidate(self._live[run_id].run) for run_id in sorted(waiting)),
            waiting_retry=worker.queue.next_retry(),
            counterparts=worker.counterparts,
            scheduled_run=worker.scheduled_run,
        )
        if not worker.queue:
            worker.facts = facts
        return facts


def _candidate(run: Run) -> Candidate:
    has_started = run.first_started_at is not None
    place = (run.worker, run.id, run.priority, run.due_at, run.attempt)
    return Candidate(*place, run.is_forced, has_started, run.limit_key)


def _active(run: Run) -> ActiveRun:
    at = run.started_at or run.due_at
    return ActiveRun(run.id, run.worker, run.slot or 0, NODE_ID, at, run.trigger, run.limit_key)


def _as_stored(config: WorkerConfig) -> WorkerConfig:
    """Return a definition as it is after it was written and read."""
    return definitions.from_document(config.name, definitions.to_document(config), {})


def _counterparts(configs: Mapping[str, WorkerConfig]) -> defaultdict[str, set[str]]:
    found: defaultdict[str, set[str]] = defaultdict(set)
    for config in configs.values():
        for other in config.blocks:
            found[config.name].add(other)
            found[other].add(config.name)
    return found
