"""What limits held at a moment that is past, as far as the attempts that are known of a worker tell. Pure."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

from jobrunner.model.facts import KeyFacts, Window
from jobrunner.policy.gates import candidates_of
from jobrunner.policy.limit_gates import goes_by_key
from jobrunner.policy.rates import rates_of, window_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from jobrunner.model.facts import Candidate, WorkerFacts
    from jobrunner.model.past import Past
    from jobrunner.policy.rates import Rate


def with_limits_at(worker: WorkerFacts, past: Past, at: datetime, runs: Sequence[Candidate]) -> WorkerFacts:
    """Add to a worker's facts what its rates and its keys held at `at`; `runs` are all that waited then."""
    rate, per_key = rates_of(past.config)
    if rate is None and not goes_by_key(past.config):
        return worker
    started = [each for spells in past.spells.values() for each in spells if each.has_started(at)]
    if rate is not None:
        starts = [each.started_at for each in started if each.is_rated or not each.is_over(at)]
        worker = replace(worker, window=window_at(rate, starts, at))
    if not goes_by_key(past.config):
        return worker
    of_key: defaultdict[str | None, list[datetime]] = defaultdict(list)
    for each in started:
        if each.started_at is not None:
            of_key[each.limit_key].append(each.started_at)
    in_turn: defaultdict[str | None, list[int]] = defaultdict(list)
    for run in runs:
        if run.id is not None and (run.due_at <= at or run.has_started_before):
            in_turn[run.limit_key].append(run.id)
    keys = {
        key: KeyFacts(
            Window() if per_key is None else window_at(per_key, of_key[key], at),
            min(in_turn[key], default=None) if past.config.ordered else None,
            max(of_key[key], default=None),
        )
        for key in {each.limit_key for each in (*runs, *candidates_of(worker))}
        if key is not None
    }
    return replace(worker, keys=keys)


def window_at(rate: Rate, starts: Iterable[datetime | None], at: datetime) -> Window:
    """Return what a rate's window held at `at`, of these starts."""
    since = at - rate.window
    inside = sorted((each for each in starts if each is not None and since < each <= at), reverse=True)[: rate.count]
    return window_of(rate, len(inside), inside[-1] if inside else None)


def counted_since(past: Past, at: datetime) -> datetime | None:
    """Return when the longest of a worker's windows began; None if it has no rate."""
    return min((at - rate.window for rate in rates_of(past.config) if rate is not None), default=None)
