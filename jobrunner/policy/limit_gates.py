"""The gates of limits: per key, rates, and limits that workers share; and who goes first of a fair worker. Pure.

What a limit allows is counted, never stored: the runs that are active, and the starts in a rate's window. `Limits`
holds what one pass has started on top of that, so that a pass never starts more than a limit allows.

A forced run passes a rate, and counts in it; what limits how many run at once it never passes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from jobrunner.model.facts import NO_STARTS, ActiveRun, Candidate, Facts, KeyFacts, LimitFacts, WorkerFacts
from jobrunner.policy.rates import Rate, rate_of, rates_of
from jobrunner.policy.words import show_time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from jobrunner.model.facts import Window
    from jobrunner.model.worker import WorkerConfig

_Order = tuple[int, "datetime", int, str]
_NO_KEY = KeyFacts()


def goes_by_key(config: WorkerConfig) -> bool:
    """Say whether it matters which key a run of the worker has."""
    if config.limit_key is None:
        return False
    return bool(config.max_running_per_key or config.rate_per_key or config.ordered or config.fair)


def most_per_key(config: WorkerConfig) -> int | None:
    """Return how many runs of one key may be active at once; None: as many as of the worker."""
    return 1 if config.ordered else config.max_running_per_key


def is_rated(config: WorkerConfig, limits: Mapping[str, LimitFacts]) -> bool:
    """Say whether the worker's starts count in a rate."""
    if config.rate is not None or config.rate_per_key is not None:
        return True
    return any(limits[name].rate is not None for name in config.limits if name in limits)


class Limits:
    """What the limits hold: what the facts say, and what this pass has started since."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._active: defaultdict[tuple[str, str], list[ActiveRun]] = defaultdict(list)
        for name, worker in facts.workers.items():
            if worker.config.limit_key is not None:
                for run in worker.active:
                    if run.limit_key is not None:
                        self._active[name, run.limit_key].append(run)
        self._started: Counter[tuple[str, ...]] = Counter()
        self._key_slots: dict[tuple[str, str], set[int]] = {}

    def start(self, candidate: Candidate) -> int | None:
        """Count a run as started; return the place that it takes among those of its key, None if it needs none."""
        config = self._facts.workers[candidate.worker].config
        if config.rate is not None:
            self._started["rate", candidate.worker] += 1
        for name in config.limits:
            self._started["limit", name] += 1
        if candidate.limit_key is None or not goes_by_key(config):
            return None
        self._started["key", candidate.worker, candidate.limit_key] += 1
        if most_per_key(config) is None:
            return None
        key = candidate.worker, candidate.limit_key
        if key not in self._key_slots:
            self._key_slots[key] = {run.key_slot for run in self._active[key] if run.key_slot is not None}
        taken = self._key_slots[key]
        slot = next(number for number in range(len(taken) + 1) if number not in taken)
        taken.add(slot)
        return slot

    def key_shut(self, candidate: Candidate) -> str | None:
        """Say why the run's key keeps it from starting, or None."""
        worker = self._facts.workers[candidate.worker]
        most = most_per_key(worker.config)
        if candidate.limit_key is None or most is None:
            return None
        said = show_key(worker.config, candidate.limit_key)
        active = self._active.get((candidate.worker, candidate.limit_key), [])
        count = len(active) + self._started["key", candidate.worker, candidate.limit_key]
        if count >= most:
            if most == 1:
                return f"{said}: {f'run {active[0].id} is active' if active else 'another run is about to start'}"
            return f"{said}: {count} of {most} running{_held_by(active)}"
        first = self._key(candidate).first
        if worker.config.ordered and first is not None and (candidate.id is None or first < candidate.id):
            return f"{said}: run {first} goes first, since it is older"
        return None

    def rate_shut(self, candidate: Candidate) -> str | None:
        """Say which rate keeps the run from starting, and when it opens, or None."""
        worker = self._facts.workers[candidate.worker]
        timezone = worker.config.timezone
        for limit in self._shared(worker):
            if limit.rate is not None and rate_of(limit.rate) is None:
                return f"limit {limit.name}: its rate {limit.rate!r} cannot be read"
        for said, rate, window, started in self._rates(worker, candidate):
            if window.used + started >= rate.count:
                opens = "as many as it allows are about to start"
                if window.opens_at is not None:
                    opens = f"opens {show_time(window.opens_at, timezone, today=self._facts.now)}"
                return f"{said}: {opens}"
        return None

    def shared_shut(self, candidate: Candidate) -> str | None:
        """Say which limit that the worker shares keeps the run from starting, and who holds it, or None."""
        for limit in self._shared(self._facts.workers[candidate.worker]):
            count = len(limit.active) + self._started["limit", limit.name]
            if limit.max_running is not None and count >= limit.max_running:
                return f"limit {limit.name}: {count} of {limit.max_running}{_held_by(limit.active)}"
        return None

    def key_open(self, candidate: Candidate) -> str:
        """Say why the gate of the key is open."""
        config = self._facts.workers[candidate.worker].config
        most = most_per_key(config)
        if most is None:
            return "it has none"
        if candidate.limit_key is None:
            return f"the run has no {config.limit_key}: it is limited as any"
        count = len(self._active.get((candidate.worker, candidate.limit_key), []))
        return f"{show_key(config, candidate.limit_key)}: {count} of {most} running"

    def rate_open(self, candidate: Candidate) -> str:
        """Say how far the rates are used."""
        rates = self._rates(self._facts.workers[candidate.worker], candidate)
        said = [f"{said}: {window.used} of {rate.count} started" for said, rate, window, _ in rates]
        return "; ".join(said) or "it has none"

    def shared_open(self, candidate: Candidate) -> str:
        """Say how far the limits that the worker shares are used."""
        shared = self._shared(self._facts.workers[candidate.worker])
        said = [f"limit {x.name}: {len(x.active)} of {x.max_running}" for x in shared if x.max_running is not None]
        return "; ".join(said) or "it has none"

    def _shared(self, worker: WorkerFacts) -> Iterator[LimitFacts]:
        for name in worker.config.limits:
            if name in self._facts.limits:
                yield self._facts.limits[name]

    def _key(self, candidate: Candidate) -> KeyFacts:
        keys = self._facts.workers[candidate.worker].keys
        return keys.get(candidate.limit_key, _NO_KEY) if candidate.limit_key is not None else _NO_KEY

    def _rates(self, worker: WorkerFacts, candidate: Candidate) -> Iterator[tuple[str, Rate, Window, int]]:
        """Yield the rates that a start counts in: how each is called, what its window holds, what this pass started."""
        config = worker.config
        rate, per_key = rates_of(config)
        evenly = ", evenly" if config.smooth else ""
        if rate is not None:
            yield f"rate {config.rate}{evenly}", rate, worker.window, self._started["rate", config.name]
        if per_key is not None and candidate.limit_key is not None:
            said = f"rate {config.rate_per_key}{evenly} of {show_key(config, candidate.limit_key)}"
            started = self._started["key", config.name, candidate.limit_key]
            yield said, per_key, self._key(candidate).window, started
        for limit in self._shared(worker):
            shared = rate_of(limit.rate)
            if shared is not None:
                said = f"limit {limit.name}, rate {limit.rate}"
                yield said, shared, limit.window, self._started["limit", limit.name]

    def opens_at(self) -> datetime | None:
        """Return when the first of the rates opens that are shut; None if none is."""
        workers = self._facts.workers.values()
        windows = [worker.window for worker in workers] + [limit.window for limit in self._facts.limits.values()]
        windows += [key.window for worker in workers for key in worker.keys.values()]
        return min((window.opens_at for window in windows if window.opens_at is not None), default=None)


def show_key(config: WorkerConfig, value: str) -> str:
    """Return `key customer=42`."""
    return f"key {config.limit_key}={value}"


def _held_by(active: Sequence[ActiveRun]) -> str:
    """Name the first two of the runs that hold a limit: `, held by runs 812, 815 and 2 more`."""
    if not active:
        return ""
    ids = [str(run.id) for run in active]
    if len(ids) == 1:
        return f", held by run {ids[0]}"
    more = f" and {len(ids) - 2} more" if len(ids) > 2 else ""
    return f", held by runs {', '.join(ids[:2])}{more}" if more else f", held by runs {' and '.join(ids)}"


def fair_places(worker: WorkerFacts, candidates: Iterable[Candidate]) -> dict[int | None, _Order]:
    """Return the places in starting order of a fair worker's runs that differ from their own, by id.

    Among themselves, those of one priority take turns: the key that started longest ago goes first. So as a whole they
    stand where they stood, and it matters to no other worker.
    """
    levels: defaultdict[int, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        levels[candidate.priority].append(candidate)
    places: dict[int | None, _Order] = {}
    for level in levels.values():
        by_age = sorted(level, key=lambda candidate: candidate.order)
        taken: Counter[str | None] = Counter()
        rank = {}
        for candidate in by_age:
            last = worker.keys.get(candidate.limit_key, _NO_KEY).last_started_at if candidate.limit_key else None
            turn = taken[candidate.limit_key]
            rank[candidate] = (turn, last is not None, last or NO_STARTS, candidate.order)
            taken[candidate.limit_key] += 1
        in_turn = sorted(by_age, key=lambda candidate: rank[candidate])
        for place, candidate in zip((each.order for each in by_age), in_turn, strict=True):
            places[candidate.id] = place
    return places


def starting_order(facts: Facts, due: Sequence[Candidate]) -> Callable[[Candidate], _Order]:
    """Return the key to sort candidates by: each one's own order, but for those of workers that are fair."""
    fair = [name for name, worker in facts.workers.items() if worker.config.fair]
    places = {name: fair_places(facts.workers[name], [c for c in due if c.worker == name]) for name in fair}
    return lambda candidate: places.get(candidate.worker, {}).get(candidate.id, candidate.order)
