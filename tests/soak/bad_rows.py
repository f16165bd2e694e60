"""Rows that no client of ours would write, and any client may. Only `victim-…` workers get them.

Each is one statement. What the database refuses is counted as refused at the door. A run it takes must end, or lie in
the future, or wait for a reason that `explain` says; a definition or a state it takes may stop its own worker only.
Left alone is what `db verify` would rightly find: the streak, the number of the attempt, history.
"""

from __future__ import annotations

import json
import random
import string
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.soak.stage import Set, jobrunner
from tests.support.cluster import Row

VICTIMS = ("victim-run", "victim-state", "victim-definition", "victim-loop", "victim-edge", "victim-command")
UNTOLD = {"gone", "untold"}
_DEEP = "[" * 900 + "]" * 900
_DEEPER = "[" * 100_000 + "]" * 100_000
_LONG_NUMBER = "9" * 5000
_PAYLOADS = [
    '{"unknown": 1}', "[]", "7", "not json", f'{{"a": {_DEEP}}}', f'{{"a": {_DEEPER}}}', f'{{"a": {_LONG_NUMBER}}}',
    '{"a": 1e999}', '{"a": "\\ud800"}', '{"a": "\\u0000"}', '{"a": NaN}', '{"a": 1, "a": 2}', '{"": {"": null}}',
]  # fmt: skip
_TIMES = {
    "postgres": [
        "infinity", "-infinity", "0044-03-15 BC", "4713-01-01 BC", "294276-12-31", "9999-12-31 23:59:59.999999+00",
        "10000-01-01", "0001-01-01 00:00+14",
    ],
    "sqlite": [
        "9999-19-39 29:69:69.999999", "0000-00-00 00:00:00.000000", "2026-02-31 12:00:00.000000",
        "0001-01-01 00:00:00.000000", "9999-12-31 23:59:59.999999", "2026-01-01 24:00:00.000000", "soon",
    ],
}  # fmt: skip
_NUMBERS = {"postgres": ["'NaN'", "'Infinity'", "1e300", "5e-324"], "sqlite": ["1e999", "1e300", "'many'", "5e-324"]}
_LARGEST = 2**63 - 1


@dataclass
class BadRows:
    """Writes them, one at a time, and remembers what became of each."""

    where: Set
    random: random.Random
    refused: int = 0
    taken: Counter[str] = field(default_factory=Counter)
    runs: dict[int, str] = field(default_factory=dict)  # by id: what is wrong with it

    def write(self) -> None:
        """Write one, of any kind."""
        sql = self.random.choice([self._run, self._run, self._state, self._definition, self._other])()
        try:
            rows = self.where.rows(sql)
        except Exception:  # whatever a driver makes of a refusal
            self.refused += 1
            return
        self.taken[sql.split()[2 if sql.startswith("INSERT") else 1].removeprefix("{p}")] += 1
        self.runs.update((row["id"], sql) for row in rows if "id" in row)

    def _run(self) -> str:
        worker = self.random.choice(["victim-run", "victim-run", "victim-loop", "victim-command", "victim-edge"])
        column, value = self.random.choice(
            [
                ("payload", self._payload()),
                ("payload", self._payload()),
                ("due_at", self._time()),
                ("scheduled_for", self._time()),
                ("created_at", self._time()),
                ("cancel_requested_at", self._time()),
                ("first_started_at", self._time()),
                ("key", self.random.choice(["''", f"'{'k' * 100_000}'", "'\t\n'", "x'ff00'"])),
                ("replay_of", self.random.choice(["-1", str(_LARGEST), "'none'"])),
                ("lost_in_a_row", self.random.choice(["-5", "2147483647", "'no'"])),
                ("progress", self.random.choice(["'[]'", "'7'", f"'{_DEEP}'", "'not json'"])),
                ("output", "'\x01\x1b[31m'"),
                ("priority", self.random.choice(["9", "'HIGH'"])),
                ("is_forced", self.random.choice(["'maybe'", "7"])),
                ("trigger", "'continuous'"),
            ]
        )
        return f"INSERT INTO {{p}}runs (worker, {column}) VALUES ('{worker}', {value}) RETURNING id"

    def _state(self) -> str:
        column, value = self.random.choice(
            [
                *[(name, self._time()) for name in ("next_run_at", "last_due_at", "last_success_at", "last_ended_at")],
                *[(name, self._time()) for name in ("paused_until", "probe_at", "circuit_opened_at", "last_run_at")],
                ("cooldown_current_seconds", self._number()),
                ("probe_run_id", "-1"),
                ("circuit_state", "'half_open'"),
                ("circuit_state", "'open'"),
                ("last_run_outcome", "'so so'"),
                ("last_duration_ms", str(-_LARGEST)),
                ("total_runs", str(_LARGEST)),
                ("last_error", f"'{'e' * 100_000}'"),
            ]
        )
        worker = self.random.choice(["victim-state", "victim-loop", "victim-run"])
        return f"UPDATE {{p}}worker_state SET {column} = {value} WHERE worker = '{worker}'"

    def _definition(self) -> str:
        column, value = self.random.choice(
            [
                ("interval_seconds", self._number()),
                ("jitter_seconds", self._number()),
                ("timeout_seconds", self._number()),
                ("retry_delay_seconds", self._number()),
                ("retry_backoff", self._number()),
                ("cooldown_seconds", self._number()),
                ("timezone", self.random.choice(["'Mars/Olympus'", "''", "'../../etc/passwd'"])),
                ("interval_seconds", "NULL, cron = '61 * * * *'"),
                ("interval_seconds", "NULL, cron = '0 0 30 2 *'"),
                ("definition", self.random.choice(["'[]'", "'7'", '\'{"max_retries": "x"}\'', f"'{_DEEP}'"])),
                ("overrides", self.random.choice(["'[]'", "'{\"no_such\": 1}'", '\'{"interval_seconds": "x"}\''])),
                ("max_retries", "2147483647"),
                ("payload", self._payload()),
                ("isolation", "'command'"),
                ("handler", self.random.choice(["''", "'{}'", "'[1, 2]'", "'no.such:code'"])),
                ("description", f"'{'d' * 100_000}'"),
            ]
        )
        worker = self.random.choice(["victim-definition", "victim-definition", "victim-command"])
        return f"UPDATE {{p}}workers SET {column} = {value} WHERE name = '{worker}'"

    def _other(self) -> str:
        name = "".join(self.random.choices(string.ascii_lowercase, k=8))
        node = (
            "INSERT INTO {p}nodes (id, hostname, pid, boot_id, process_started_at, started_at, heartbeat_at, beat,"
            f" max_concurrent, version) VALUES ('bad-{name}', '\x01', {self.random.choice(('-1', '0', '2147483647'))},"
            f" '', {self._time()}, {self._time()}, {self._time()}, {_LARGEST}, -1, '')"
        )
        age = (
            "INSERT INTO {p}worker_dependencies (worker, depends_on, max_age_seconds)"
            " VALUES ('victim-loop', 'victim-run', {})"
        )
        return self.random.choice(
            [
                node,
                f"INSERT INTO {{p}}audit_log (actor, action, worker, detail) VALUES ('', '', '{name}', '[]')",
                "INSERT INTO {p}worker_dependencies (worker, depends_on) VALUES ('victim-state', 'victim-edge')",
                age.replace("{}", self._number()),
                "INSERT INTO {p}worker_blocks (worker, blocks) VALUES ('victim-loop', 'victim-run')",
            ]
        )

    def _time(self) -> str:
        return f"'{self.random.choice(_TIMES[self.where.name])}'"

    def _number(self) -> str:
        return self.random.choice(_NUMBERS[self.where.name])

    def _payload(self) -> str:
        return f"'{self.random.choice(_PAYLOADS)}'"

    def fates(self) -> tuple[Counter[str], list[str]]:
        """Return what became of the runs that were taken, counted, and those that nothing came of."""
        now = "now()" if self.where.name == "postgres" else "strftime('%Y-%m-%d %H:%M:%f', 'now') || '000'"
        ended = {
            row["run_id"]: row["ends_run"]
            for row in self.where.rows("SELECT run_id, ends_run FROM {p}run_history WHERE ends_run IS NOT NULL")
        }
        live = {
            row["id"]: row
            for row in self.where.rows(
                f"SELECT id, worker, due_at > {now} AS is_later FROM {{p}}runs WHERE worker LIKE 'victim%'"
            )
        }
        is_said = {worker: self._is_said(worker) for worker in {row["worker"] for row in live.values()}}
        fates = {run_id: ended.get(run_id) or _fate(live.get(run_id), is_said) for run_id in self.runs}
        return Counter(fates.values()), [self.runs[run_id] for run_id, fate in fates.items() if fate in UNTOLD]

    def _is_said(self, worker: str) -> bool:
        """Say whether `explain` names a gate that is shut: then whoever asks why nothing starts is told."""
        done = jobrunner(self.where.url, "explain", worker, "--json")
        try:
            return not all(gate["open"] for gate in json.loads(done.stdout)["gates"])
        except (ValueError, KeyError):
            return False


def _fate(row: Row | None, is_said: Mapping[str, bool]) -> str:
    if row is None:
        return "gone"
    if row["is_later"]:
        return "in the future"
    return "waiting, explained" if is_said[row["worker"]] else "untold"
