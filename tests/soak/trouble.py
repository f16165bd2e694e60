"""What goes wrong in a soak: one thing after the other on each set, chosen at random."""

from __future__ import annotations

import contextlib
import random
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping

import psutil
from sqlalchemy.engine import make_url

from tests.soak.bad_rows import BadRows
from tests.soak.clock import set_offset
from tests.soak.feeder import Operator
from tests.soak.stage import LEASE_SECONDS, Node, Set

STEPS_SECONDS = (2.0, 30.0, 300.0, 3600.0, 3 * 3600.0, 26 * 3600.0)
AFTERMATH_SECONDS = 10.0
RESTARTS_ALWAYS = "pg-2"  # all others are restarted in the first quarter only, so that their memory can be judged
MACHINES = {
    "step_the_clock": 8, "stop_for_a_while": 3, "stall": 4, "cut": 2, "hold_the_lock": 4, "kill_a_child": 5,
    "kill_a_command": 4, "kill_the_watcher": 3, "kill_the_node": 1, "terminate_the_node": 1,
}  # fmt: skip
PEOPLE = {"write_bad_rows": 1, "operate": 1}
NEEDS_A_PROXY, NEEDS_A_FILE = {"stall", "cut"}, {"hold_the_lock"}
WATCHER, COMMAND = "killpg", "soak-command"  # what shows in their command lines


class Troublemaker:
    """Makes trouble from `start` to `stop`, of machines and of people at the same time; `made` counts it by kind."""

    def __init__(
        self,
        where: Set,
        random_: random.Random,
        bad_rows: BadRows,
        operator: Operator,
        seconds: float,
        without: Collection[str] = (),
    ) -> None:
        self.made: Counter[str] = Counter()
        self.errors: list[str] = []
        self._where, self._random, self._bad_rows, self._operator = where, random_, bad_rows, operator
        self._over = threading.Event()
        self._restarts_until = time.monotonic() + seconds / 4
        self._machines = threading.Thread(target=self._go_on, args=(self._wanted(MACHINES, without), 1.0, 5.0))
        self._people = threading.Thread(target=self._go_on, args=(self._wanted(PEOPLE, without), 0.5, 3.0))

    def _wanted(self, weights: Mapping[str, int], without: Collection[str]) -> dict[str, int]:
        elsewhere = NEEDS_A_PROXY if self._where.server is None else NEEDS_A_FILE
        return {kind: weight for kind, weight in weights.items() if kind not in {*elsewhere, *without}}

    def start(self) -> None:
        self._machines.start()
        self._people.start()

    def stop(self) -> None:
        """End the trouble, and all that is left of it."""
        self._over.set()
        self._machines.join()
        self._people.join()
        self._where.calm_down()

    def _go_on(self, weights: Mapping[str, int], shortest: float, longest: float) -> None:
        while weights and not self._over.wait(self._random.uniform(shortest, longest)):
            kind = self._random.choices(list(weights), list(weights.values()))[0]
            try:
                getattr(self, kind)(self._random.choice(self._where.nodes))
                self.made[kind] += 1
            except Exception as error:
                self.errors.append(f"{kind}: {error!r}")

    def _disturb(self, seconds: float) -> None:
        self._where.disturb(seconds + AFTERMATH_SECONDS)

    # --- kinds ----------------------------------------------------------------------------------------------------

    def step_the_clock(self, node: Node) -> None:
        seconds = self._random.uniform(4.0, 15.0)
        self._disturb(seconds)
        self._where.steps += 1
        set_offset(node.clock, self._random.choice((-1, 1)) * self._random.choice(STEPS_SECONDS))
        self._over.wait(seconds)
        set_offset(node.clock, 0.0)

    def stop_for_a_while(self, node: Node) -> None:
        seconds = self._random.uniform(1.0, LEASE_SECONDS / 3)
        self._disturb(seconds)
        process = node.process
        process.send_signal(signal.SIGSTOP)
        self._over.wait(seconds)
        process.send_signal(signal.SIGCONT)

    def stall(self, node: Node) -> None:
        seconds = self._random.choice((2.0, LEASE_SECONDS / 2, LEASE_SECONDS * 1.5, LEASE_SECONDS * 2.5))
        self._disturb(seconds)
        if seconds > LEASE_SECONDS / 2:  # with code that does not stop it has to leave
            node.excused_until = time.monotonic() + seconds + LEASE_SECONDS
        assert node.proxy is not None
        node.proxy.stall()
        self._over.wait(seconds)
        if self._random.random() < 0.5:
            node.proxy.cut()
        node.proxy.resume()

    def cut(self, node: Node) -> None:
        self._disturb(1.0)
        assert node.proxy is not None
        node.proxy.cut()

    def hold_the_lock(self, node: Node) -> None:
        seconds = self._random.choice((1.0, 4.0, LEASE_SECONDS / 2))
        self._disturb(seconds)
        with contextlib.closing(sqlite3.connect(str(make_url(self._where.url).database), timeout=30)) as connection:
            connection.isolation_level = None
            connection.execute("BEGIN IMMEDIATE")
            self._over.wait(seconds)
            connection.execute("ROLLBACK")

    def kill_a_child(self, node: Node) -> None:
        self._kill_one(node, lambda line: WATCHER not in line and COMMAND not in line)

    def kill_a_command(self, node: Node) -> None:
        self._kill_one(node, lambda line: COMMAND in line)

    def kill_the_watcher(self, node: Node) -> None:
        self._kill_one(node, lambda line: WATCHER in line)

    def _kill_one(self, node: Node, is_wanted: Callable[[str], bool]) -> None:
        """SIGKILL one of the node's descendants; psutil makes sure that the number is still that process."""
        found = []
        for process in node.descendants():
            with contextlib.suppress(psutil.Error):
                if is_wanted(" ".join(process.cmdline())):
                    found.append(process)
        if found:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._random.choice(found).kill()

    def kill_the_node(self, node: Node) -> None:
        self._end(node, signal.SIGKILL)

    def terminate_the_node(self, node: Node) -> None:
        self._end(node, signal.SIGTERM)

    def _end(self, node: Node, number: signal.Signals) -> None:
        if node.name == RESTARTS_ALWAYS or time.monotonic() < self._restarts_until:
            self._disturb(LEASE_SECONDS)
            node.end(number)

    def write_bad_rows(self, node: Node) -> None:
        for _ in range(self._random.randrange(1, 6)):
            self._bad_rows.write()

    def operate(self, node: Node) -> None:
        self._operator.act()
