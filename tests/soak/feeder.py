"""The clients of the soak: triggers by plain SQL, steadily, and the commands of operators, now and then."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Collection

from tests.soak.stage import Set, jobrunner

BEAT_SECONDS = 0.5
MOST_WAITING = 300  # on a slow machine less is fed, rather than a backlog built up
PER_SECOND = {
    "quick": 3.0, "alone": 0.5, "threaded": 1.0, "chatty": 0.3, "apart": 0.7, "command": 0.3, "long-command": 0.1,
    "snoozes": 0.3, "again": 0.3, "books": 1.0, "gives-up": 0.1, "fails": 0.1, "odd-result": 0.3, "odd-error": 0.3,
    "too-long": 0.1, "too-long-thread": 0.1, "too-long-process": 0.1, "leaves": 0.1, "forks": 0.2, "picky": 0.1,
}  # fmt: skip
PAYLOADS = {"picky": '{"number": "not one"}', "chatty": '{"text": "ä\\n"}'}


class Feeder(threading.Thread):
    """Triggers steadily until `stop`; remembers which runs the database accepted, and when."""

    def __init__(self, where: Set, random_: random.Random, rate: float, without: Collection[str] = ()) -> None:
        super().__init__(daemon=True)
        self.accepted: dict[int, float] = {}  # by the run's id: the moment before it was asked for, monotonic
        self.refused: Counter[str] = Counter()
        self._where, self._random = where, random_
        self._expected = {name: n * rate * BEAT_SECONDS for name, n in PER_SECOND.items() if name not in without}
        self._stop_asked = threading.Event()

    def run(self) -> None:
        while not self._stop_asked.wait(BEAT_SECONDS):
            try:
                self._feed()
            except Exception as error:  # a database that is busy or stopped accepts nothing: ask again
                self.refused[type(error).__name__] += 1

    def _feed(self) -> None:
        (waiting,) = self._where.rows("SELECT count(*) AS n FROM {p}runs WHERE worker NOT LIKE 'victim%'")
        if waiting["n"] > MOST_WAITING:
            return
        rows = []
        for worker, expected in self._expected.items():
            count = int(expected) + (self._random.random() < expected % 1)
            rows += [f"('{worker}', '{PAYLOADS.get(worker, '{}')}', NULL)"] * count
        rows.append(f"('keyed', '{{}}', 'key-{time.monotonic():.6f}')")
        asked = time.monotonic()
        values = ", ".join(rows)
        sql = f"INSERT INTO {{p}}runs (worker, payload, key) VALUES {values} RETURNING id"
        self.accepted.update((row["id"], asked) for row in self._where.rows(sql))

    def stop(self) -> None:
        self._stop_asked.set()
        self.join()


class Operator:
    """Says something by the command line. What is refused is counted; a traceback is never an answer."""

    def __init__(self, where: Set, random_: random.Random) -> None:
        self.codes: Counter[int] = Counter()
        self.tracebacks: list[str] = []
        self._where, self._random = where, random_

    def act(self) -> None:
        """Do one thing, chosen at random."""
        letter, run = self._one("dead_letters", "status = 'open'"), self._one("runs", "worker NOT LIKE 'victim%'")
        interval = self._random.choice((1, 2, 3))
        self.say(
            *self._random.choice(
                [
                    ("admin", "disable", "steered", "--reason=soak"),
                    ("admin", "enable", "steered", "fails", "--yes"),
                    ("admin", "pause", "steered", "--for=5s"),
                    ("admin", "resume", "steered"),
                    ("admin", "set", "steered", f"interval_seconds={interval}"),
                    ("admin", "unset", "steered", "interval_seconds"),
                    ("admin", "cancel", run),
                    ("dead-letters", "replay", letter),
                    ("dead-letters", "discard", letter),
                    ("trigger", "quick", "--key=by-hand", "--priority=CRITICAL"),
                    ("trigger", "steered", "--force"),
                    ("explain", "fails"),
                    ("status",),
                    ("upcoming", "--for=10m"),
                ]
            )
        )

    def say(self, *words: str) -> int:
        """Run a command; return its exit code."""
        done = jobrunner(self._where.url, *words)
        self.codes[done.returncode] += 1
        if "Traceback" in done.stderr + done.stdout or done.returncode < 0:
            self.tracebacks.append(f"jobrunner {' '.join(words)}: {done.stderr.strip().splitlines()[-1:]}")
        return done.returncode

    def _one(self, table: str, condition: str) -> str:
        with contextlib.suppress(Exception):
            rows = self._where.rows(f"SELECT id FROM {{p}}{table} WHERE {condition} ORDER BY id DESC LIMIT 20")
            return str(self._random.choice(rows)["id"])
        return "1"
