"""The independent checker's part of promise 3 that is about limits: keys, rates, and limits that workers share.

It is taken for granted, as in `checker`, that definitions are what they were when the runs started. A limit is told
once, at its first start too many. Of two starts in one moment a forced one is taken to be the later.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.support.checker import Tables

Row = dict[str, Any]
Act = tuple[datetime, bool, datetime | None, int, str | None]  # start, forced, end, run, key
UNITS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def limits_kept(tables: Tables) -> Iterator[str]:
    """Yield a line for each limit that was passed."""
    acts: defaultdict[str, list[Act]] = defaultdict(list)
    for row in tables.attempts:
        acts[row["worker"]].append(
            (row["started_at"], row["is_forced"], row["finished_at"], row["run_id"], row.get("limit_key"))
        )
    for run in tables.active:
        acts[run["worker"]].append((run["started_at"], run["is_forced"], None, run["id"], run.get("limit_key")))
    for worker in tables.workers:
        yield from _of_worker(worker, acts[worker["name"]])
    for limit in tables.limits:
        sharing = [edge["worker"] for edge in tables.worker_limits if edge["limit_name"] == limit["name"]]
        together = [act for name in sharing for act in acts[name]]
        yield from _crowded(f"limit {limit['name']}", limit["max_running"], together)
        yield from _hasty(f"limit {limit['name']}", limit["rate"], together)


def _of_worker(worker: Row, acts: list[Act]) -> Iterator[str]:
    name, is_smooth = worker["name"], bool(worker.get("smooth"))
    yield from _hasty(name, worker.get("rate"), acts, is_smooth=is_smooth)
    if worker.get("limit_key") is None:
        return
    most = 1 if worker.get("ordered") else worker.get("max_running_per_key")
    for key in sorted({act[4] for act in acts if act[4] is not None}):
        own = [act for act in acts if act[4] == key]
        yield from _crowded(f"{name}, key {key}", most, own)
        yield from _hasty(f"{name}, key {key}", worker.get("rate_per_key"), own, is_smooth=is_smooth)


def _crowded(what: str, most: int | None, acts: list[Act]) -> Iterator[str]:
    """Walk through all starts and ends in the order of time; what ends in a moment makes room for what starts in it."""
    if most is None:
        return
    changes: list[tuple[datetime, int, int]] = []
    for start, _, end, run_id, _ in acts:
        if end is None or end > start:
            changes.append((start, 1, run_id))
        if end is not None and end > start:
            changes.append((end, -1, run_id))
    held = 0
    for at, change, run_id in sorted(changes):
        held += change
        if held > most:
            yield f"{what}: {held} of at most {most} ran when run {run_id} started at {at:%H:%M:%S.%f}"
            return


def _hasty(what: str, rate: str | None, acts: list[Act], *, is_smooth: bool = False) -> Iterator[str]:
    """Hold each start that was not forced against the one that came as many places before it as the rate allows."""
    if rate is None:
        return
    count, window = _read(rate)
    if is_smooth:
        count, window = 1, window / count
    starts = sorted((start, bool(forced), run_id) for start, forced, _, run_id, _ in acts)
    for (before, *_), (start, is_forced, run_id) in zip(starts, starts[count:], strict=False):
        if start - before < window and not is_forced:
            seconds = window.total_seconds()
            yield f"{what}: more than {count} started within {seconds:g} s, run {run_id} at {start:%H:%M:%S.%f}"
            return


def _read(rate: str) -> tuple[int, timedelta]:
    """Read `100/1m`; only what the tests write, one number and one unit."""
    found = re.fullmatch(r"(\d+)/([\d.]*)([a-z]*)", rate)
    assert found is not None, rate
    return int(found[1]), timedelta(seconds=float(found[2] or 1) * UNITS[found[3]])
