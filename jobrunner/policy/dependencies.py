"""Dependencies between workers: which names are unknown, and which wait for each other in a circle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobrunner.errors import DependencyCycle, InvalidWorker
from jobrunner.policy.near import near_name

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from jobrunner.model.worker import WorkerConfig


def named_elsewhere(configs: Mapping[str, WorkerConfig]) -> dict[str, tuple[str, str]]:
    """Return the workers that `configs` relate to and do not contain, each with one that names it and how."""
    mentioned: dict[str, tuple[str, str]] = {}
    for config in configs.values():
        mentioned |= {edge.depends_on: (config.name, "depends on") for edge in config.depends_on}
        mentioned |= dict.fromkeys(config.blocks, (config.name, "blocks"))
    return {name: mentioned[name] for name in sorted(mentioned) if name not in configs}


def refuse_unknown(named: Mapping[str, tuple[str, str]], known: Collection[str], in_code: Iterable[str]) -> None:
    """Raise `InvalidWorker` for the first of `named_elsewhere` that is not among the workers known otherwise.

    It names the one of those in code that was probably meant.
    """
    for name, (worker, how) in named.items():
        if name not in known:
            near = near_name(name, (other for other in in_code if other != worker))
            more = "" if near is None else f"; did you mean {near!r}?"
            raise InvalidWorker(worker, f"{how} {name!r}, which is known neither in code nor in the database{more}")


def find_cycle(edges: Mapping[str, Iterable[str]], through: Iterable[str] | None = None) -> tuple[str, ...] | None:
    """Return one cycle as a path whose first name is repeated at the end, or None.

    `edges` maps a worker to the workers it depends on. With `through`, only what these depend on is looked at.
    Deterministic: names are visited in sorted order.
    """
    done: set[str] = set()
    for root in sorted(edges if through is None else through):
        path: list[str] = []
        on_path: set[str] = set()
        # An explicit stack, since a chain of workers may be longer than Python's recursion limit.
        stack: list[tuple[str, bool]] = [(root, False)]
        while stack:
            name, is_leaving = stack.pop()
            if is_leaving:
                on_path.discard(path.pop())
                done.add(name)
            elif name in on_path:
                return (*path[path.index(name) :], name)
            elif name not in done:
                path.append(name)
                on_path.add(name)
                stack.append((name, True))
                stack.extend((other, False) for other in sorted(edges.get(name, ()), reverse=True))
    return None


def refuse_cycles(edges: Mapping[str, Iterable[str]], registered: Collection[str] | None = None) -> None:
    """Raise `DependencyCycle` with its path if workers wait for each other in a circle.

    With `registered`, a circle of others is passed over: it was written into the tables by hand, and is not theirs.
    """
    cycle = find_cycle(edges, registered)
    while cycle is not None:
        if registered is None or not set(cycle).isdisjoint(registered):
            raise DependencyCycle(cycle)
        edges = {**edges, cycle[0]: [other for other in edges[cycle[0]] if other != cycle[1]]}
        cycle = find_cycle(edges, registered)
