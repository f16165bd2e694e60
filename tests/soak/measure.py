"""What the nodes take of the machine, looked at every few seconds, and whether it stays the same."""

from __future__ import annotations

import statistics
import threading
import time
from collections import defaultdict
from dataclasses import dataclass

import psutil

from tests.soak.stage import Node, Set

LOOK_SECONDS, SAY_SECONDS = 5.0, 60.0
JUDGED_SHARE, SHORTEST_SECONDS = 0.3, 60.0  # of the soak: a process that lived for less says nothing about leaks
FEWEST_LOOKS = 8
MORE_BYTES, MORE_SHARE, MORE_THINGS = 15 * 2**20, 1.10, 3


@dataclass(frozen=True)
class Look:
    """What one process took at one moment; `rss` and `uss` in bytes, `connections` through its proxy."""

    at: float
    rss: int
    uss: int
    descriptors: int
    threads: int
    children: int
    connections: int

    def __str__(self) -> str:
        return (
            f"rss {self.rss / 2**20:.0f} uss {self.uss / 2**20:.0f} MiB, fds {self.descriptors},"
            f" threads {self.threads}, children {self.children}, connections {self.connections}"
        )


class Meter(threading.Thread):
    """Looks until `stop`, and says a line a minute; `looks` by node's name and pid."""

    def __init__(self, sets: list[Set]) -> None:
        super().__init__(daemon=True)
        self.looks: defaultdict[tuple[str, int], list[Look]] = defaultdict(list)
        self.connections: defaultdict[str, list[int]] = defaultdict(list)  # by application_name
        self._sets = sets
        self._began = time.monotonic()
        self._over = threading.Event()

    def run(self) -> None:
        say_at = self._began + SAY_SECONDS
        while not self._over.wait(LOOK_SECONDS):
            for node in [node for each in self._sets for node in each.nodes]:
                try:
                    look = _look(node)
                except psutil.Error:
                    continue  # it has just ended
                self.looks[node.name, node.pid].append(look)
            self._count_connections()
            if time.monotonic() >= say_at:
                say_at += SAY_SECONDS
                self.say()

    def stop(self) -> None:
        self._over.set()
        self.join()

    def _count_connections(self) -> None:
        sql = (
            "SELECT coalesce(nullif(application_name, ''), 'others') AS name, count(*) AS n FROM pg_stat_activity"
            " WHERE datname = current_database() GROUP BY 1"
        )
        for each in self._sets:
            try:
                counted = {row["name"]: row["n"] for row in each.rows(sql)} if each.server else {}
            except Exception:  # a server that does not answer is looked at again
                continue
            for name, count in counted.items():
                self.connections[name].append(count)

    def say(self) -> None:
        """Print how things are."""
        parts = [f"{name} ({pid}): {looks[-1]}" for (name, pid), looks in self._alive().items() if looks]
        parts += [f"PostgreSQL has {counts[-1]} of {name!r}" for name, counts in self.connections.items()]
        print(f"[{(time.monotonic() - self._began) / 60:5.1f} min] " + "; ".join(parts), flush=True)

    def _alive(self) -> dict[tuple[str, int], list[Look]]:
        now = {(node.name, node.pid) for each in self._sets for node in each.nodes}
        return {key: looks for key, looks in self.looks.items() if key in now}

    def judge(self, seconds: float) -> tuple[list[str], list[str]]:
        """Return a line for each process that lived long enough, and what grew."""
        said, grown = [], []
        judged = set()
        for (name, pid), looks in sorted(self.looks.items()):
            lived = looks[-1].at - looks[0].at
            if lived < JUDGED_SHARE * seconds or len(looks) < FEWEST_LOOKS:
                continue
            judged.add(name)
            quarter = len(looks) // 4
            before, after = _median(looks[quarter : 2 * quarter]), _median(looks[-quarter:])
            said.append(f"{name} ({pid}), {lived / 60:.1f} min: {before}  ->  {after}")
            grown += [f"{name} ({pid}) grew: {what}" for what in growth(before, after)]
        if seconds < SHORTEST_SECONDS:
            return ["too short a time to judge what grows"], []
        if "sqlite-1" not in judged or not judged - {"sqlite-1"}:
            grown.append(f"no process lived long enough on both databases to be judged, only of {sorted(judged)}")
        return said, grown


def growth(before: Look, after: Look) -> list[str]:
    """Name what has grown by more than memory breathes, or than a pool does."""
    grown = []
    # Not `uss`: while a fork of the node lives, nearly nothing is the node's alone.
    if after.rss > max(before.rss * MORE_SHARE, before.rss + MORE_BYTES):
        grown.append(f"rss from {before.rss / 2**20:.0f} to {after.rss / 2**20:.0f} MiB")
    for name in ("descriptors", "threads", "children", "connections"):
        old, new = getattr(before, name), getattr(after, name)
        if new > old + MORE_THINGS:
            grown.append(f"{name} from {old} to {new}")
    return grown


def _look(node: Node) -> Look:
    process = psutil.Process(node.pid)
    with process.oneshot():
        memory = process.memory_full_info()
        connections = node.proxy.connections if node.proxy is not None else 0
        children = len(process.children(recursive=True))
        return Look(
            time.monotonic(), memory.rss, memory.uss, process.num_fds(), process.num_threads(), children, connections
        )


def _median(looks: list[Look]) -> Look:
    names = ("at", "rss", "uss", "descriptors", "threads", "children", "connections")
    return Look(**{name: int(statistics.median(getattr(look, name) for look in looks)) for name in names})
