"""Which workers matter to each other, by dependencies, blocks and limits that they share. Pure."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jobrunner.model.facts import WorkerFacts
    from jobrunner.model.worker import WorkerConfig


class Related(Protocol):
    """What is asked of a worker here."""

    @property
    def config(self) -> WorkerConfig:
        """Its definition."""

    @property
    def counterparts(self) -> tuple[str, ...]:
        """Those it never runs beside."""


def related(name: str, workers: Mapping[str, Related]) -> frozenset[str]:
    """Return the worker and all that its dependencies and blocks lead to."""
    found, to_visit = {name}, [name]
    while to_visit:
        worker = workers[to_visit.pop()]
        new = {edge.depends_on for edge in worker.config.depends_on} | set(worker.counterparts)
        to_visit += new - found
        found |= new
    return frozenset(found)


def tied_groups(workers: Mapping[str, WorkerFacts]) -> dict[str, frozenset[str]]:
    """Return for each worker all that are connected with it, in any direction, or by a limit that they share."""
    near: dict[str, set[str]] = {name: set(worker.counterparts) for name, worker in workers.items()}
    sharing: defaultdict[str, list[str]] = defaultdict(list)
    for name, worker in workers.items():
        for edge in worker.config.depends_on:
            near[name].add(edge.depends_on)
            near[edge.depends_on].add(name)
        for limit in worker.config.limits:
            sharing[limit].append(name)
    for others in sharing.values():  # in a ring: that ties them all
        for one, other in zip(others, [*others[1:], others[0]], strict=True):
            near[one].add(other)
    found: dict[str, frozenset[str]] = {}
    for name in workers:
        if name in found:
            continue
        group, to_visit = {name}, [name]
        while to_visit:
            new = near[to_visit.pop()] - group
            group |= new
            to_visit += new
        found |= dict.fromkeys(group, frozenset(group))
    return found
