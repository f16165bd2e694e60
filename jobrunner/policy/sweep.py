"""What history says about time: promises 3 and 4 of README.md, judged from the newest end back to the oldest.

Walking back in time an attempt appears at its end and vanishes at its start, so that only attempts that overlap the
moment are kept: memory grows with how many ran at once, not with how long history is. Two walks:

`Glance` is fed every attempt from the newest row on, which is nearly the order of their ends, and says which workers
may have had too many runs at once: those with too many, and those whose rows came so far out of order that one overlaps
a start that was judged already. It is as short as can be, since ten million rows go through it.

`Sweep` is fed the attempts of those workers, and of all that block or depend on others, in descending order of their
end; what runs now, which has no end yet, first. An attempt's start is judged when the walk comes to it: what is known
then is exactly what still ran at that moment or had started at it.

Whether a dependency had succeeded is known only further back, so such starts wait for the next end of the dependency's
runs. Likewise a run of the dependency that has a second or later attempt was waiting, between that start and the end
of the attempt before, to be tried again: a start in between is suspected, and the attempt before, if it is there,
makes it certain.

Times are whatever compares as time does; the database's own texts do. Intervals that only touch do not overlap.
"""

from __future__ import annotations

from bisect import insort
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from jobrunner.model.run import USES_UP_AN_ATTEMPT

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

Time = Any
_KEPT_AT_MOST = 10_000  # of one kind: beyond that, what is kept would be one violation told again and again
_SUSPECTED_AT_MOST = 8  # waiting retries that one start is held against


class Attempt(NamedTuple):
    """One row of history, or one run that runs now. `end` is as it counts: a tolerance makes it earlier."""

    worker: str
    run_id: int
    started: Time  # None for what ended before it started
    end: Time
    id: int
    attempt: int
    outcome: str
    ends_run: str | None
    is_forced: bool

    @property
    def is_tried_again(self) -> bool:
        """Say whether its run waited for a retry after it, for whoever depends on the worker."""
        return self.ends_run is None and (self.outcome in USES_UP_AN_ATTEMPT or self.attempt > 1)


@dataclass(frozen=True, slots=True)
class TooMany:
    """A start at which more runs of a worker were active than its `max_running`."""

    worker: str
    run_id: int
    at: Time
    active: int
    most: int


@dataclass(frozen=True, slots=True)
class Together:
    """A start while a blocked counterpart ran."""

    worker: str
    run_id: int
    at: Time
    other: str


@dataclass(frozen=True, slots=True)
class OutOfOrder:
    """A start while a dependency was not met: it was busy, or had last failed, or (neither) had never succeeded."""

    worker: str
    run_id: int
    at: Time
    depends_on: str
    is_busy: bool
    has_failed: bool


Fault = TooMany | Together | OutOfOrder


@dataclass(frozen=True, slots=True)
class Rule:
    """A worker's limit, and since when its definition is what it is."""

    name: str
    max_running: int
    changed: Time
    created: Time


class _Starts:
    """The starts of one worker's runs that are active where the walk is; `judged`: how far back it has come."""

    __slots__ = ("active", "changed", "judged", "most")

    def __init__(self, rule: Rule, never: Time) -> None:
        self.most, self.changed, self.judged = rule.max_running, rule.changed, never
        self.active: list[Any] = []  # ascending: the next to vanish is the last


class Glance:
    """The quick walk: `unsure` are the workers that must be looked at again.

    Args:
        rules: the workers.
        never: a time later than all others, the end of what has not ended.
    """

    def __init__(self, rules: Iterable[Rule], never: Time) -> None:
        self.unsure: set[str] = set()
        self._sure = {rule.name: _Starts(rule, never) for rule in rules}

    def add(self, rows: Iterable[Sequence[Any]]) -> None:
        """Take the next attempts: worker, start, end, and what follows."""
        sure = self._sure
        for worker, started, end, *_ in rows:
            starts = sure.get(worker)
            if starts is None or started is None or not starts.changed <= started < end:
                continue
            active = starts.active
            is_unsure = end > starts.judged
            while active and active[-1] >= end:
                is_unsure |= len(active) > starts.most
                starts.judged = active.pop()
            insort(active, started)
            if is_unsure or len(active) > starts.most + _KEPT_AT_MOST:
                self._doubt(worker)

    def close(self) -> None:
        """Take it that there are no more attempts."""
        for worker in [worker for worker, starts in self._sure.items() if len(starts.active) > starts.most]:
            self._doubt(worker)

    def _doubt(self, worker: str) -> None:
        self.unsure.add(worker)
        del self._sure[worker]


class _Limit:
    """The runs of one worker that are active where the walk is."""

    def __init__(self, rule: Rule) -> None:
        self._name, self._most, self._changed = rule.name, rule.max_running, rule.changed
        self._active: list[tuple[Time, int]] = []  # ascending: the next to vanish is the last

    def add(self, row: Attempt) -> Iterator[Fault]:
        if row.started is not None and self._changed <= row.started < row.end:
            while self._active and self._active[-1][0] >= row.end:
                yield from self._vanish()
            insort(self._active, (row.started, row.run_id))
            if len(self._active) > self._most + _KEPT_AT_MOST:
                yield from self._vanish()

    def close(self) -> Iterator[Fault]:
        while self._active:
            yield from self._vanish()

    def _vanish(self) -> Iterator[Fault]:
        count = len(self._active)
        at, run_id = self._active.pop()
        if count > self._most:
            yield TooMany(self._name, run_id, at, count, self._most)


@dataclass(slots=True)
class _Edge:
    """A dependency: the starts of `worker` that wait for news of how `other` had last ended."""

    worker: str
    other: str
    since: Time
    waiting: list[tuple[Time, int]] = field(default_factory=list)
    after_failure: list[tuple[Time, int, Time, int]] = field(default_factory=list)  # start, run, failure's end and id
    news: tuple[Time, int, bool] | None = None  # the last end seen, its id, was it a success: for starts at that moment


@dataclass(slots=True)
class _Retry:
    """A run of a dependency that started again, or is to, at `until`; who started before that may have been early."""

    until: Time
    suspects: list[tuple[_Edge, Time, int]] = field(default_factory=list)


class Sweep:
    """The exact walk. `workers`: those whose attempts it wants to see, all others it passes over.

    Args:
        rules: the workers.
        unsure: those whose limits are to be judged.
        blocks: pairs that never run at the same time.
        dependencies: pairs (worker, what it depends on).
        kept_since: what ended from here on has not been pruned.
    """

    def __init__(
        self,
        rules: Iterable[Rule],
        unsure: Collection[str],
        blocks: Iterable[Sequence[str]],
        dependencies: Iterable[Sequence[str]],
        kept_since: Time,
    ) -> None:
        self._rules = {rule.name: rule for rule in rules}
        self._limits = {name: _Limit(self._rules[name]) for name in unsure}
        self._kept_since = kept_since
        self._blocks: defaultdict[str, list[tuple[str, Time]]] = defaultdict(list)
        for one, other in {(min(pair), max(pair)) for pair in blocks if self._knows(pair)}:
            since = self._since(one, other)
            self._blocks[one].append((other, since))
            self._blocks[other].append((one, since))
        self._depends: defaultdict[str, list[_Edge]] = defaultdict(list)
        self._depended: defaultdict[str, list[_Edge]] = defaultdict(list)
        for worker, other in filter(self._knows, dependencies):
            edge = _Edge(worker, other, self._since(worker, other))
            self._depends[worker].append(edge)
            self._depended[other].append(edge)
        self._bound = frozenset(self._blocks) | frozenset(self._depends) | frozenset(self._depended)
        self.workers = self._bound | frozenset(unsure)
        self._active: list[tuple[Time, int, int, Attempt]] = []  # of those bound to others; ascending
        self._running: defaultdict[str, dict[int, Time]] = defaultdict(dict)  # worker: row's id: its start
        self._retries: defaultdict[str, dict[int, _Retry]] = defaultdict(dict)  # worker: run's id

    def _knows(self, pair: Sequence[str]) -> bool:
        """Say whether there are both: a bare SQLite shell can delete one."""
        return pair[0] in self._rules and pair[1] in self._rules

    def _since(self, one: str, other: str) -> Time:
        return max(self._rules[one].changed, self._rules[other].changed)

    def will_try_again(self, worker: str, run_id: int, never: Time) -> None:
        """Note a run that waits now to be tried again."""
        if worker in self._depended and len(self._retries[worker]) < _KEPT_AT_MOST:
            self._retries[worker][run_id] = _Retry(never)

    def add(self, row: Attempt) -> Iterator[Fault]:
        """Take the next attempt; yield what is certain by now."""
        if row.worker in self._limits:
            yield from self._limits[row.worker].add(row)
        if row.worker in self._bound:
            yield from self._add_bound(row)

    def close(self) -> Iterator[Fault]:
        """Take it that there are no more attempts."""
        for limit in self._limits.values():
            yield from limit.close()
        while self._active:
            yield from self._back_to(self._active[-1][0])
        for edge in [edge for edges in self._depended.values() for edge in edges]:
            yield from self._failed_before(edge)
            if self._rules[edge.other].created >= self._kept_since:
                for at, run_id in edge.waiting:
                    yield OutOfOrder(edge.worker, run_id, at, edge.other, is_busy=False, has_failed=False)

    # --- blocks and dependencies ----------------------------------------------------------------------------------

    def _add_bound(self, row: Attempt) -> Iterator[Fault]:
        yield from self._back_to(row.end)
        if row.worker in self._depended:
            yield from self._certain_retries(row)
            yield from self._certain_ends(row)
        if row.started is None:
            self._note_retry(row, row.end)
            return
        insort(self._active, (row.started, row.run_id, row.id, row))
        if row.end > row.started:
            self._running[row.worker][row.id] = row.started

    def _back_to(self, moment: Time) -> Iterator[Fault]:
        active = self._active
        while active and active[-1][0] >= moment:
            at = active[-1][0]
            first = len(active) - 1
            while first and active[first - 1][0] == at:
                first -= 1
            together = [entry[3] for entry in active[first:]]
            for row in together:  # a dependency that started at the same moment came first
                yield from self._judge_order(row, at)
            del active[first:]
            for row in reversed(together):
                yield from self._judge_blocks(row, at)
                self._running[row.worker].pop(row.id, None)
                self._note_retry(row, at)

    def _judge_blocks(self, row: Attempt, at: Time) -> Iterator[Fault]:
        if row.end <= at:
            return
        for other, since in self._blocks.get(row.worker, ()):
            running = self._running[other]
            if running and at >= since and any(start >= since for start in running.values()):
                yield Together(row.worker, row.run_id, at, other)

    def _judge_order(self, row: Attempt, at: Time) -> Iterator[Fault]:
        if row.is_forced:
            return
        for edge in self._depends.get(row.worker, ()):
            if at < edge.since:
                continue
            if any(start >= edge.since for start in self._running[edge.other].values()):
                yield OutOfOrder(row.worker, row.run_id, at, edge.other, is_busy=True, has_failed=False)
                continue
            for retry in islice(reversed(self._retries[edge.other].values()), _SUSPECTED_AT_MOST):
                if retry.until > at and len(retry.suspects) < _KEPT_AT_MOST:
                    retry.suspects.append((edge, at, row.run_id))
            if edge.news is not None and edge.news[0] == at:
                if not edge.news[2]:
                    edge.after_failure.append((at, row.run_id, *edge.news[:2]))
            elif len(edge.waiting) < _KEPT_AT_MOST:
                edge.waiting.append((at, row.run_id))

    def _note_retry(self, row: Attempt, at: Time) -> None:
        if row.attempt > 1 and row.worker in self._depended:
            self._retries[row.worker][row.run_id] = _Retry(at)

    def _certain_retries(self, row: Attempt) -> Iterator[Fault]:
        if not row.is_tried_again:
            return
        retry = self._retries[row.worker].pop(row.run_id, None)
        for edge, at, run_id in retry.suspects if retry is not None else ():
            if row.started is not None and row.started >= edge.since:
                yield OutOfOrder(edge.worker, run_id, at, edge.other, is_busy=True, has_failed=False)

    def _certain_ends(self, row: Attempt) -> Iterator[Fault]:
        for edge in self._depended[row.worker]:
            if row.ends_run == "exhausted":
                edge.after_failure += [(*start, row.end, row.id) for start in edge.waiting]
                edge.waiting.clear()
                if edge.news is None or edge.news[0] != row.end:
                    edge.news = (row.end, row.id, False)
            elif row.ends_run == "succeeded":
                # Of two ends within a moment, the order of the ids is that of their commits.
                edge.after_failure = [x for x in edge.after_failure if x[2] > row.end and x[3] > row.id]
                yield from self._failed_before(edge)
                edge.waiting.clear()
                edge.news = (row.end, row.id, True)

    def _failed_before(self, edge: _Edge) -> Iterator[Fault]:
        for at, run_id, failed_at, _ in edge.after_failure:
            if failed_at >= self._kept_since:
                yield OutOfOrder(edge.worker, run_id, at, edge.other, is_busy=False, has_failed=True)
        edge.after_failure.clear()
