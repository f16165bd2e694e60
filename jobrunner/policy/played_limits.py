"""What limits hold while the time ahead is played: the starts in each rate's window, of each key, and who holds what.

The play knows its own starts, and those of the runs that are active. Of the others in a window it knows how many there
are, and when the first of them leaves one that is full: the rest are taken to have been at the beginning of the play.
So a rate opens no earlier than it is said to, and perhaps later.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from jobrunner.model.facts import Gate, KeyFacts, Window
from jobrunner.policy.gates import candidates_of
from jobrunner.policy.limit_gates import goes_by_key
from jobrunner.policy.rates import rate_of, rates_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from jobrunner.model.facts import ActiveRun, LimitFacts, Verdict, WorkerFacts
    from jobrunner.model.worker import WorkerConfig
    from jobrunner.policy.rates import Rate

NOTED = frozenset({Gate.KEY, Gate.RATE, Gate.LIMITS})
_NO_WINDOW = Window()


@dataclass(slots=True)
class _Starts:
    """The starts that count in a rate: `unknown` of them are taken to have been at `began`, the others are known."""

    rate: Rate
    began: datetime
    unknown: int = 0
    known: list[datetime] = field(default_factory=list)

    def window(self, now: datetime) -> Window:
        since, most = now - self.rate.window, self.rate.count
        known = len(self.known) - bisect_right(self.known, since)
        unknown = self.unknown if self.began > since else 0
        if known + unknown < most:
            return Window(known + unknown)
        later = len(self.known) - bisect_left(self.known, self.began)
        if later >= most:
            oldest = self.known[-most]
        else:
            oldest = self.began if later + unknown >= most else self.known[unknown - most]
        return Window(most, oldest + self.rate.window)


def _starts(rate: Rate, window: Window, active: Iterable[ActiveRun], now: datetime) -> _Starts:
    """Return what is known of the starts in a window as the play begins."""
    since = now - rate.window
    known = sorted(run.started_at for run in active if run.started_at > since)
    if window.opens_at is not None and window.opens_at - rate.window not in known:
        insort(known, window.opens_at - rate.window)
    return _Starts(rate, now, max(window.used - len(known), 0), known)


class PlayedLimits:
    """See the module. Told of each start and end; asked for the facts of the moment."""

    def __init__(self, workers: Mapping[str, WorkerFacts], limits: Mapping[str, LimitFacts], now: datetime) -> None:
        self._began = now
        self._limits = {name: replace(limit, active=()) for name, limit in limits.items()}
        self._holding: dict[str, dict[int, ActiveRun]] = {name: {} for name in limits}
        self._of_worker: dict[str, _Starts] = {}
        self._of_key: dict[tuple[str, str], _Starts] = {}
        self._of_limit: dict[str, _Starts] = {}
        self._last: dict[tuple[str, str], datetime] = {}
        self._held: dict[tuple[str, str], int] = {}
        for name, worker in workers.items():
            self._add(name, worker)
        for name, limit in limits.items():
            rate = rate_of(limit.rate)
            if rate is not None:
                self._of_limit[name] = _starts(rate, limit.window, limit.active, now)

    def _add(self, name: str, worker: WorkerFacts) -> None:
        rate, per_key = rates_of(worker.config)
        if rate is not None:
            self._of_worker[name] = _starts(rate, worker.window, worker.active, self._began)
        for limit in self._shared(worker.config):
            self._holding[limit].update({run.id: run for run in worker.active})
        if not goes_by_key(worker.config):
            return
        active: defaultdict[str, list[ActiveRun]] = defaultdict(list)
        for run in worker.active:
            if run.limit_key is not None:
                active[run.limit_key].append(run)
        waiting = {run.id for run in worker.waiting}
        for key in active.keys() | worker.keys.keys():
            known = worker.keys.get(key, KeyFacts())
            if per_key is not None:
                self._of_key[name, key] = _starts(per_key, known.window, active[key], self._began)
            started = [run.started_at for run in active[key]]
            if known.last_started_at is not None or started:
                self._last[name, key] = max(filter(None, [*started, known.last_started_at]))
            if known.first is not None and known.first not in waiting:  # it waits for longer than is played
                self._held[name, key] = known.first

    def _shared(self, config: WorkerConfig) -> list[str]:
        return [name for name in config.limits if name in self._limits]

    def start(self, config: WorkerConfig, run: ActiveRun) -> None:
        """Count a run that starts."""
        at, key = run.started_at, run.limit_key
        if config.name in self._of_worker:
            insort(self._of_worker[config.name].known, at)
        for limit in self._shared(config):
            self._holding[limit][run.id] = run
            if limit in self._of_limit:
                insort(self._of_limit[limit].known, at)
        if key is not None and goes_by_key(config):
            self._last[config.name, key] = at
            per_key = rates_of(config)[1]
            if per_key is not None:
                insort(self._of_key.setdefault((config.name, key), _Starts(per_key, self._began)).known, at)

    def end(self, config: WorkerConfig, run_id: int) -> None:
        """Let a run give back what it holds."""
        for limit in self._shared(config):
            self._holding[limit].pop(run_id, None)

    def of(self, worker: WorkerFacts, now: datetime) -> WorkerFacts:
        """Return a worker's facts with what its limits hold now."""
        name = worker.config.name
        if name in self._of_worker:
            worker = replace(worker, window=self._of_worker[name].window(now))
        return replace(worker, keys=self._keys(worker, now)) if goes_by_key(worker.config) else worker

    def shared(self, workers: Iterable[WorkerFacts], now: datetime) -> dict[str, LimitFacts]:
        """Return the limits that these workers share, as they are now."""
        return {
            name: replace(
                self._limits[name],
                active=tuple(self._holding[name].values()),
                window=self._of_limit[name].window(now) if name in self._of_limit else _NO_WINDOW,
            )
            for name in {name for worker in workers for name in self._shared(worker.config)}
        }

    def opens(self, worker: WorkerFacts, now: datetime) -> list[datetime]:
        """Return when those of the rates open that are shut for the worker."""
        name = worker.config.name
        counted = [self._of_worker.get(name), *(self._of_limit.get(limit) for limit in worker.config.limits)]
        if worker.config.rate_per_key is not None:
            counted += [self._of_key.get((name, key)) for key in _keys_of(worker)]
        moments = [starts.window(now).opens_at for starts in counted if starts is not None]
        return [moment for moment in moments if moment is not None]

    def _keys(self, worker: WorkerFacts, now: datetime) -> dict[str, KeyFacts]:
        name, config = worker.config.name, worker.config
        firsts: dict[str, int] = {}
        if config.ordered:
            firsts = {key: run_id for (of, key), run_id in self._held.items() if of == name}
            for run in worker.waiting:
                key, is_in_turn = run.limit_key, run.due_at <= now or run.has_started_before
                if key is not None and run.id is not None and is_in_turn:
                    firsts[key] = min(firsts.get(key, run.id), run.id)
        found = {}
        for key in _keys_of(worker):
            starts = self._of_key.get((name, key))
            window = _NO_WINDOW if starts is None else starts.window(now)
            found[key] = KeyFacts(window, firsts.get(key), self._last.get((name, key)))
        return found


def _keys_of(worker: WorkerFacts) -> set[str]:
    return {each.limit_key for each in candidates_of(worker) if each.limit_key is not None}


def show_waited_for(shut: Verdict) -> str:
    """Say which limit is waited for, of one of the gates `NOTED`: `waits for rate 100/1m`."""
    return f"waits for {shut.reason.rpartition(': ')[0] or shut.reason}"
