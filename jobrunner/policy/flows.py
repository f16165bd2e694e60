"""Flows: in which order steps are written, and what becomes of those that wait when others have ended. Pure."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jobrunner.errors import InvalidFlow
from jobrunner.model.flow import CANCEL, RUN
from jobrunner.model.run import EndsRun
from jobrunner.policy.dependencies import find_cycle
from jobrunner.policy.near import near_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from jobrunner.model.flow import Step

MOST_STEPS = 10_000
MOST_BEFORE = 1000
"""So many steps a step may wait for: the results of all are read before it starts."""

_HOW = {
    EndsRun.EXHAUSTED: "exhausted its attempts",
    EndsRun.DISCARDED: "was discarded",
    EndsRun.CANCELLED: "was cancelled",
}


@dataclass(frozen=True, slots=True)
class Edge:
    """Run `run_id` waits for run `after_run_id`, which is live, or has ended as `ends_run` says.

    `ends_run` is None for one that is live, and for one whose history was pruned: that kept nobody from starting.
    """

    run_id: int
    after_run_id: int
    if_failed: str
    is_live: bool
    ends_run: EndsRun | None = None
    name: str = ""
    """Of the step before."""


@dataclass(frozen=True, slots=True)
class Followed:
    """What becomes of waiting steps: those `released`, and those `cancelled`, each with why. The others wait on."""

    released: tuple[int, ...] = ()
    cancelled: Mapping[int, str] = field(default_factory=dict)


def follow(edges: Iterable[Edge], names: Mapping[int, str]) -> Followed:
    """Decide what becomes of the steps that wait.

    A step is cancelled as soon as one before it has ended otherwise than well, on an edge that says `cancel`; that ends
    the step, so that those after it are judged by it. It is released when none before it is live any more.

    Args:
        edges: all edges to each of the steps to be judged.
        names: what these are called, by their runs.
    """
    before: defaultdict[int, list[Edge]] = defaultdict(list)
    after: defaultdict[int, list[int]] = defaultdict(list)
    for edge in edges:
        before[edge.run_id].append(edge)
        after[edge.after_run_id].append(edge.run_id)
    cancelled: dict[int, str] = {}
    left = sorted(before, reverse=True)
    while left:
        run_id = left.pop()
        if run_id in cancelled:
            continue
        why = _why_cancelled(before[run_id], cancelled, names)
        if why is not None:
            cancelled[run_id] = why
            left += after[run_id]
    released = tuple(
        run_id
        for run_id in sorted(before)
        if run_id not in cancelled and not any(e.is_live and e.after_run_id not in cancelled for e in before[run_id])
    )
    return Followed(released, cancelled)


def _why_cancelled(before: Sequence[Edge], cancelled: Mapping[int, str], names: Mapping[int, str]) -> str | None:
    for edge in sorted(before, key=lambda edge: edge.after_run_id):
        is_cancelled = edge.after_run_id in cancelled
        how = _HOW.get(EndsRun.CANCELLED if is_cancelled else edge.ends_run or EndsRun.SUCCEEDED)
        if edge.if_failed == CANCEL and how is not None:
            name = names.get(edge.after_run_id, edge.name) if is_cancelled else edge.name
            return f"step {name} (run {edge.after_run_id}) of its flow {how}"
    return None


def in_order(steps: Sequence[Step]) -> list[Step]:
    """Return the steps so that each comes after all that it waits for; else in the order given.

    The first is one that others wait for, if any is.

    Raises:
        InvalidFlow: there is none, two have one name, one waits for a name that is none, or they wait in a circle.
    """
    if not steps:
        raise InvalidFlow("a flow has at least one step")
    if len(steps) > MOST_STEPS:
        raise InvalidFlow(f"a flow has at most {MOST_STEPS:,} steps, not {len(steps):,}")
    by_name: dict[str, Step] = {}
    for step in steps:
        if step.name in by_name:
            raise InvalidFlow(f"two steps are called {step.name!r}; give each a name of its own, as name=")
        by_name[step.name] = step
    for step in steps:
        _check_step(step, by_name)
    cycle = find_cycle({step.name: step.after for step in steps})
    if cycle is not None:
        raise InvalidFlow(f"steps wait for each other in a circle: {' -> '.join(cycle)}; take one `after` away")
    return _sorted(steps)


def _check_step(step: Step, by_name: Mapping[str, Step]) -> None:
    if step.if_failed not in (CANCEL, RUN):
        raise InvalidFlow(f"step {step.name!r}: if_failed is 'cancel' or 'run', not {step.if_failed!r}")
    if len(step.after) > MOST_BEFORE:
        raise InvalidFlow(f"step {step.name!r} waits for {len(step.after):,} steps; the most is {MOST_BEFORE:,}")
    for name in step.after:
        if name not in by_name:
            near = near_name(name, (other for other in by_name if other != step.name))
            more = "" if near is None else f"; did you mean {near!r}?"
            raise InvalidFlow(f"step {step.name!r} waits for {name!r}, which is no step of the flow{more}")


def _sorted(steps: Sequence[Step]) -> list[Step]:
    waits = {step.name: len(step.after) for step in steps}
    after: defaultdict[str, list[Step]] = defaultdict(list)
    for step in steps:
        for name in step.after:
            after[name].append(step)
    free = [step for step in steps if not step.after]
    free.sort(key=lambda step: not after[step.name])
    for step in free:  # it grows meanwhile
        for later in after[step.name]:
            waits[later.name] -= 1
            if not waits[later.name]:
                free.append(later)
    return free


def why_held(before: Sequence[tuple[int, str]]) -> str:
    """Say which live runs, each with the name of its step, a step waits for."""
    (run_id, name), *more = before
    others = "" if not more else f", and for {len(more):,} more"
    return f"waits for run {run_id} of its flow ({name}){others}"
