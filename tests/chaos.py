"""Chaos on PostgreSQL: three nodes, steady triggers, and something that goes wrong. `scripts/chaos` runs it.

Each case runs on a server and a database of its own on the loopback interface, and lasts about 35 seconds: steady work,
the trouble, and recovery. It prints one line: runs a second before, during and after; runs lost; runs with two owners
at once; outcomes written by a stale claim; seconds until the rate was back at 95 %. The last word is `ok`, or what was
wrong, found by `jobrunner db verify` or an independent check of the tables, and then the exit code is 1. Only processes
started here are signalled, by their pid.

`scripts/chaos --soak` is another program: half an hour of everything at once, on both databases;
`scripts/chaos --soak --help` says more. `scripts/chaos --limits` is a third: 20,000 runs under limits of every kind on
eight nodes, some killed or stopped all the time, on both databases; `scripts/chaos --limits --help` says more.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import asyncpg
from sqlalchemy.engine import make_url

from jobrunner.storage.schema.migrate import upgrade_database
from tests.soak.main import main as soak
from tests.support.checker import check
from tests.support.cluster import ROOT, Cluster, NodeProcess, cluster, executions, moment
from tests.support.limited_load import main as limits
from tests.support.postgres import LocalPostgres, take_all_connections

NODES = 3
TRIGGERS_A_SECOND = 60
STEADY_SECONDS, TROUBLE_SECONDS, RECOVERY_SECONDS = 6.0, 8.0, 30.0
ENOUGH = 0.95


@dataclass
class Scene:
    """What a case may use."""

    server: LocalPostgres
    url: str
    cluster: Cluster
    is_over: threading.Event = field(default_factory=threading.Event)
    dead_at: dict[int, float] = field(default_factory=dict)  # by pid: from when on nothing of it ran
    stopped: dict[int, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))

    def victim(self) -> NodeProcess:
        return random.choice([node for node in self.cluster.nodes if node.process.poll() is None])

    def kill(self) -> None:
        node = self.victim()
        node.kill()
        self.dead_at[node.pid] = time.monotonic()


def kill_one(scene: Scene) -> None:
    scene.kill()
    scene.is_over.wait(TROUBLE_SECONDS)
    scene.cluster.start(1)


def kill_again_and_again(scene: Scene) -> None:
    while not scene.is_over.wait(1.5):
        scene.kill()
        scene.cluster.start(1)


def restart_the_server(scene: Scene) -> None:
    scene.server.stop("immediate")
    scene.is_over.wait(3.0)
    scene.server.start()


def kill_connections(scene: Scene) -> None:
    while not scene.is_over.wait(0.5):
        scene.server.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'jobrunner'"
        )


def use_up_connections(scene: Scene) -> None:
    async def hog() -> None:
        url = make_url(scene.url).set(drivername="postgresql").render_as_string(False)
        held: list[asyncpg.Connection] = []
        try:
            while not scene.is_over.is_set():
                await take_all_connections(url, held)
                await asyncio.sleep(0.2)
        finally:
            for connection in held:
                connection.terminate()

    asyncio.run(hog())


def stop_past_the_lease(scene: Scene) -> None:
    node = scene.victim()
    began = time.monotonic()
    node.signal(signal.SIGSTOP)
    scene.is_over.wait(TROUBLE_SECONDS)
    scene.stopped[node.pid].append((began, time.monotonic()))
    node.signal(signal.SIGCONT)


CASES: dict[str, Callable[[Scene], None]] = {
    "SIGKILL of a node": kill_one,
    "repeated SIGKILL": kill_again_and_again,
    "server restart, immediate": restart_the_server,
    "pg_terminate_backend twice a second": kill_connections,
    "connections used up": use_up_connections,
    "SIGSTOP past the lease, then SIGCONT": stop_past_the_lease,
}


class Feeder(threading.Thread):
    """Triggers steadily; remembers which runs the database accepted."""

    def __init__(self, c: Cluster) -> None:
        super().__init__(daemon=True)
        self.accepted: list[int] = []
        self._cluster = c
        self._stop_asked = threading.Event()
        self._count = 0

    def run(self) -> None:
        due = time.monotonic()
        while not self._stop_asked.is_set():
            due = max(due + 0.1, time.monotonic() - 1.0)
            self._stop_asked.wait(max(0.0, due - time.monotonic()))
            with contextlib.suppress(Exception):  # the server may be away: what it did not accept is not ours to keep
                self._feed(TRIGGERS_A_SECOND // 10)

    def _feed(self, count: int) -> None:
        rows = []
        for _ in range(count):
            self._count += 1
            worker = "stubborn" if self._count % 20 == 0 else "alone" if self._count % 30 == 1 else "work"
            rows.append(f"('{worker}', '{{\"seconds\": {random.choice((0.01, 0.05, 0.2))}}}')")
        sql = f"INSERT INTO {{p}}runs (worker, payload) VALUES {', '.join(rows)} RETURNING id"
        self.accepted += [row["id"] for row in self._cluster.rows(sql)]

    def stop(self) -> None:
        self._stop_asked.set()
        self.join()


@dataclass
class Report:
    """What came of a case."""

    before: float
    during: float
    after: float
    lost: int
    doubled: int
    stale: int
    seconds: float | None
    problems: list[str]

    @property
    def is_ok(self) -> bool:
        return not (self.lost or self.doubled or self.stale or self.problems or self.seconds is None)

    def line(self, name: str) -> str:
        recovered = f"{self.seconds:5.1f}" if self.seconds is not None else " none"
        verdict = "ok" if self.is_ok else "; ".join(["FAILED", *self.problems[:3]])
        return (
            f"{name:37}  before {self.before:5.1f}/s  during {self.during:5.1f}/s  after {self.after:5.1f}/s"
            f"  lost {self.lost}  doubled {self.doubled}  stale {self.stale}  recovered in {recovered} s  {verdict}"
        )


def play(name: str, lease: float) -> Report:
    """Play one case from start to end."""
    with _scene(lease) as scene, tempfile.TemporaryDirectory() as other:
        del other
        feeder = Feeder(scene.cluster)
        feeder.start()
        time.sleep(2.0)
        steady_from = datetime.now(UTC)
        time.sleep(STEADY_SECONDS)
        trouble_from = datetime.now(UTC)
        ending = threading.Timer(TROUBLE_SECONDS, scene.is_over.set)
        ending.start()
        CASES[name](scene)
        ending.cancel()
        trouble_to = datetime.now(UTC)
        seconds = _recovery(scene, feeder, (trouble_from - steady_from).total_seconds(), steady_from, trouble_from)
        feeder.stop()
        problems = _drain(scene)
        ends = _ends(scene)
        return Report(
            before=_rate(ends, steady_from, trouble_from),
            during=_rate(ends, trouble_from, trouble_to),
            after=_rate(ends, trouble_to, ends[-1]) if ends and ends[-1] > trouble_to else 0.0,
            lost=_lost(scene, feeder.accepted),
            doubled=_doubled(scene),
            stale=_stale(scene),
            seconds=seconds,
            problems=problems + check(scene.url, accepted=feeder.accepted)[:3] + _verify(scene) + _dead(scene),
        )


@contextlib.contextmanager
def _scene(lease: float) -> Iterator[Scene]:
    with tempfile.TemporaryDirectory(prefix="jobrunner-chaos-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        server = LocalPostgres()
        stack.callback(server.close)
        url = server.create_database()
        upgrade_database(url)
        options = {"lease": lease, "tick_interval": 1, "max_concurrent": 10, "elsewhere": True}
        c = stack.enter_context(cluster(url, folder, notes=folder / "notes", **options))
        c.start(NODES)
        scene = Scene(server, url, c)
        yield scene


def _ends(scene: Scene) -> list[datetime]:
    rows = scene.cluster.rows("SELECT finished_at FROM {p}run_history WHERE ends_run = 'succeeded'")
    return sorted(moment(row["finished_at"]) for row in rows)


def _rate(ends: list[datetime], start: datetime, end: datetime) -> float:
    seconds = (end - start).total_seconds()
    return (bisect_left(ends, end) - bisect_left(ends, start)) / seconds if seconds > 0 else 0.0


def _recovery(
    scene: Scene, feeder: Feeder, _steady: float, steady_from: datetime, trouble_from: datetime
) -> float | None:
    """Wait until two seconds in a row have the rate of before, and nothing is left of the backlog's age."""
    began, began_at = time.monotonic(), datetime.now(UTC)
    wanted: float | None = None
    while time.monotonic() - began < RECOVERY_SECONDS:
        time.sleep(0.25)
        now = datetime.now(UTC)
        with contextlib.suppress(Exception):
            ends = _ends(scene)
            wanted = wanted or ENOUGH * min(_rate(ends, steady_from, trouble_from), TRIGGERS_A_SECOND)
            window = max(0.0, (now - began_at).total_seconds())
            start = datetime.fromtimestamp(now.timestamp() - min(2.0, window), UTC)
            if window >= 1.0 and _rate(ends, start, now) >= wanted:
                time.sleep(3.0)  # the rate after
                return time.monotonic() - began - 3.0
    return None


def _drain(scene: Scene) -> list[str]:
    """Let everything that was accepted end, however slow the machine, as long as it goes on."""
    least, since = sys.maxsize, time.monotonic()
    while time.monotonic() - since < RECOVERY_SECONDS:
        left = scene.cluster.value("SELECT count(*) FROM {p}runs")
        if left == 0:
            return []
        if left < least:
            least, since = left, time.monotonic()
        time.sleep(0.2)
    return [f"{least} runs have not ended"]


def _lost(scene: Scene, accepted: list[int]) -> int:
    known = {
        row["run_id"] for row in scene.cluster.rows("SELECT run_id FROM {p}run_history WHERE ends_run IS NOT NULL")
    }
    known |= {row["id"] for row in scene.cluster.rows("SELECT id FROM {p}runs")}
    return len(set(accepted) - known)


def _doubled(scene: Scene) -> int:
    """Count executions of one run that overlap: by the claims in history, and by what the handlers themselves noted."""
    owners = scene.cluster.rows(
        "SELECT a.run_id FROM {p}run_history a JOIN {p}run_history b ON b.run_id = a.run_id AND b.fence > a.fence"
        " WHERE b.started_at < a.finished_at"
    )
    runs: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for execution in executions(next(iter(scene.cluster.nodes)).log_path.parent / "notes"):
        end = execution.end if execution.end is not None else scene.dead_at.get(execution.pid, float("inf"))
        for stop_from, stop_to in scene.stopped.get(execution.pid, ()):
            if execution.start <= stop_from < end <= stop_to + 1.0:
                end = stop_from  # while it was stopped it did nothing; on going on it was told to end
        runs[execution.run_id].append((execution.start, end))
    overlapping = 0
    for spans in runs.values():
        spans.sort()
        overlapping += sum(later[0] < earlier[1] for earlier, later in pairwise(spans))
    return len(owners) + overlapping


def _stale(scene: Scene) -> int:
    """Count outcomes that came after a newer claim of the same run had begun: fences must grow with the rows."""
    return len(
        scene.cluster.rows(
            "SELECT a.id FROM {p}run_history a JOIN {p}run_history b ON b.run_id = a.run_id"
            " WHERE b.id > a.id AND b.fence < a.fence"
        )
    )


def _verify(scene: Scene) -> list[str]:
    """Ask `jobrunner db verify`, too: what it prints, the violations first, unless its exit code is 0."""
    command = [sys.executable, "-m", "jobrunner", "db", "verify", "--database-url", scene.url]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    said = [*done.stdout.splitlines()[:2], *done.stderr.splitlines()[-1:]]
    return [] if done.returncode == 0 else [f"db verify exits {done.returncode}: {' / '.join(said)}"]


def _dead(scene: Scene) -> list[str]:
    """Name the nodes that ended although nobody killed them."""
    return [
        f"{node.name} ended by itself with {node.process.returncode}: {node.log[-300:]}"
        for node in scene.cluster.nodes
        if node.process.poll() is not None and node.pid not in scene.dead_at
    ]


def main() -> None:
    if "--soak" in sys.argv[1:]:
        soak([word for word in sys.argv[1:] if word != "--soak"])
    if "--limits" in sys.argv[1:]:
        limits([word for word in sys.argv[1:] if word != "--limits"])
    parser = argparse.ArgumentParser(
        prog="scripts/chaos", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--lease", type=float, default=3.0, help="seconds; 3 unless given")
    parser.add_argument("--times", type=int, default=1, help="play every case so often")
    parser.add_argument("cases", nargs="*", help="parts of the names of the cases to play; all unless given")
    options = parser.parse_args()
    chosen = [name for name in CASES if not options.cases or any(part in name for part in options.cases)]
    is_ok = True
    for _ in range(options.times):
        for name in chosen:
            report = play(name, options.lease)
            is_ok &= report.is_ok
            print(report.line(name), flush=True)
    sys.exit(0 if is_ok else 1)


if __name__ == "__main__":
    main()
