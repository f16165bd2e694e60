"""A soak: two nodes on PostgreSQL and one on SQLite run all kinds of handlers, and everything goes wrong.

Clock steps from seconds to a day, stalled and cut connections, stopped nodes, a held write lock, SIGKILL of children,
commands, watchers and nodes, rows that make no sense, operators: at random, from a seed that is printed. After
`--minutes`, the last tenth of them calm, it says what was done and how late; each minute, what the processes take.
The last word is `ok`, or what was wrong, and then the exit code is 1 and the logs are kept. Everything is on loopback
and in a temporary folder; only processes started here are signalled, by their pid.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.soak import judge
from tests.soak.bad_rows import VICTIMS, BadRows
from tests.soak.feeder import PER_SECOND, Feeder, Operator
from tests.soak.measure import Meter
from tests.soak.stage import LEASE_SECONDS, Set, end_what_is_left, sets
from tests.soak.trouble import MACHINES, PEOPLE, Troublemaker
from tests.support.cluster import until

CALM_SHARE, SHORTEST_CALM_SECONDS = 0.1, 30.0
DRAIN_SECONDS, LEAVING_SECONDS = 60.0, 60.0


@dataclass
class Play:
    """One set with all that acts on it."""

    where: Set
    feeder: Feeder
    operator: Operator
    bad_rows: BadRows
    trouble: Troublemaker

    @classmethod
    def begin(cls, where: Set, options: argparse.Namespace) -> Play:
        draw = [
            random.Random(f"{options.seed} {where.name} {part}") for part in ("feeder", "operator", "rows", "trouble")
        ]
        operator, bad_rows = Operator(where, draw[1]), BadRows(where, draw[2])
        play = cls(
            where, Feeder(where, draw[0], options.rate, options.without), operator, bad_rows,
            Troublemaker(where, draw[3], bad_rows, operator, options.minutes * 60, options.without),
        )  # fmt: skip
        play.feeder.start()
        play.trouble.start()
        return play

    def drain(self) -> list[str]:
        """Let what was fed end; what waits for a time to come is left."""
        now = "now()" if self.where.server else "strftime('%Y-%m-%d %H:%M:%f', 'now') || '000'"
        due = (
            "SELECT r.worker, count(*) AS n FROM {p}runs r JOIN {p}worker_state s ON s.worker = r.worker"
            " WHERE r.worker NOT LIKE 'victim%' AND r.trigger IN ('manual', 'replay') AND s.is_enabled"
            f" AND (r.state <> 'pending' OR r.due_at <= {now}) GROUP BY r.worker"
        )
        try:
            until(lambda: not self.where.rows(due), DRAIN_SECONDS)
        except AssertionError:
            left = ", ".join(f"{row['n']} of {row['worker']}" for row in self.where.rows(due))
            return [f"fed runs have not ended within {DRAIN_SECONDS:g} s: {left}"] if left else []
        return []


def soak(options: argparse.Namespace, folder: Path) -> list[str]:
    """Play it; print the figures and return what was wrong."""
    seconds = options.minutes * 60
    calm_seconds = min(max(CALM_SHARE * seconds, SHORTEST_CALM_SECONDS), seconds / 2)
    with sets(folder) as both:
        for where in both:
            _wait_ready(where)
        meter = Meter(both)
        meter.start()
        plays = [Play.begin(where, options) for where in both]
        time.sleep(seconds - calm_seconds)
        for play in plays:
            play.trouble.stop()
        calm_at = time.monotonic()
        for play in plays:
            play.operator.say("admin", "enable", "steered", "fails", "--yes")
            play.operator.say("admin", "resume", "steered")
        time.sleep(calm_seconds)
        calm_until = time.monotonic()
        meter.stop()
        wrong: list[str] = []
        for play in plays:
            play.feeder.stop()
        for play in plays:
            found = play.drain() + _after(play, calm_at + calm_seconds / 2, calm_until)
            wrong += [f"{play.where.name}: {line}" for line in found]
        wrong += end_what_is_left(folder)
        said, grown = meter.judge(seconds)
        print("\n".join(["medians of the second and the last quarter of each process's life:", *said]), flush=True)
        return wrong + grown


def _wait_ready(where: Set) -> None:
    for node in where.nodes:
        until(lambda: " runs " in node.log_path.read_text() or node.process.poll() is not None, 90, what=node.name)
        assert node.process.poll() is None, node.log_path.read_text()


def _after(play: Play, alive_since: float, calm_until: float) -> list[str]:
    """Say what a set did, stop its nodes, and return what was wrong."""
    where = play.where
    bad, wrong = judge.untold(play.bad_rows)
    for victim in VICTIMS:
        play.operator.say("status", victim)
    for node in where.nodes:
        code = node.stop(LEAVING_SECONDS)
        wrong += [f"{node.name} exits {code} on SIGTERM"] * (code != 0)
        wrong += [f"{node.name} ended by itself, {count} x {how}" for how, count in node.ended_by_itself.items()]
    silent, no_longer = judge.silence(where, alive_since, calm_until)
    verified, beside = judge.verify(where, set(play.bad_rows.runs))
    wrong += no_longer + verified + judge.independent(where, play.feeder) + judge.in_real_time(where)
    wrong += [f"a traceback in a log: {line}" for line in judge.tracebacks(where)]
    wrong += [f"a traceback from the command line: {line}" for line in play.operator.tracebacks]
    wrong += [f"the soak itself: {line}" for line in sorted(set(play.trouble.errors))]
    made = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in play.trouble.made.most_common())
    codes = ", ".join(f"{count} exit {code}" for code, count in sorted(play.operator.codes.items()))
    for title, text in [
        ("trouble", made),
        ("done", judge.done(where)),
        ("quick, asked to start", judge.lateness(where, play.feeder)),
        ("longest without a start", ", ".join(silent)),
        ("fed", f"{len(play.feeder.accepted)} runs; refused: {dict(play.feeder.refused) or 'none'}"),
        ("operators", codes),
        ("bad rows", bad),
        ("db verify", f"{len(verified)} violations; {beside}"),
    ]:
        print(f"{where.name}: {title}: {text}", flush=True)
    return wrong


def main(words: list[str]) -> None:
    """Read the options, play, say the last word, and exit."""
    parser = argparse.ArgumentParser(
        prog="scripts/chaos --soak", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="30 unless given")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000), help="random unless given")
    parser.add_argument("--rate", type=float, default=1.0, help="how often runs are triggered; 1 is about 10 a second")
    kinds = [*MACHINES, *PEOPLE, *PER_SECOND]
    without = "a kind of trouble or a worker to leave out, may be repeated: " + ", ".join(kinds)
    parser.add_argument("--without", action="append", default=[], choices=kinds, metavar="KIND", help=without)
    options = parser.parse_args(words)
    folder = Path(tempfile.mkdtemp(prefix="jobrunner-soak-"))
    print(f"{options.minutes:g} minutes, seed {options.seed}, lease {LEASE_SECONDS:g} s, in {folder}", flush=True)
    wrong = [f"the soak itself broke off in {folder}"]
    try:
        wrong = soak(options, folder)
    finally:
        if wrong:
            print(f"the logs are kept in {folder}")
        else:
            shutil.rmtree(folder)
    print("\n".join(["FAILED", *wrong]) if wrong else "ok", flush=True)
    sys.exit(1 if wrong else 0)
