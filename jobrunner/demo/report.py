"""What the demo asks of the tables at the end: each question with its SQL, which is run, and its answer.

The claims at the very end are questions, too: if one of them is answered with no, the demo says so and fails.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from jobrunner.demo.file import read

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

QUESTIONS = (
    (
        "The workers, and how they stand",
        """
SELECT name, execution_mode AS mode, is_enabled AS enabled, total_runs AS runs, total_failures AS failed,
       consecutive_failures AS streak, last_run_outcome AS last, disabled_reason
FROM worker_status ORDER BY name""",
    ),
    (
        "The history, by outcome",
        """
SELECT worker, outcome, count(*) AS attempts, count(ends_run) AS runs_ended, round(avg(duration_ms)) AS average_ms
FROM run_history WHERE outcome <> 'missed' GROUP BY worker, outcome ORDER BY worker, outcome""",
    ),
    (
        "Runs that failed first and then recovered",
        """
SELECT worker, run_id, attempt AS succeeded_at_attempt
FROM run_history WHERE outcome = 'succeeded' AND attempt > 1 ORDER BY id""",
    ),
    (
        "The dead letters: runs whose attempts are used up, kept with payload and error",
        """
SELECT id, worker, attempts, payload, error FROM dead_letters WHERE status = 'open' ORDER BY id""",
    ),
    (
        "What was due, and missed: broken-import was still waiting for its retry",
        """
SELECT worker, reason, sum(occurrences) AS times, min(scheduled_for) AS first, max(due_at) AS last
FROM run_history WHERE outcome = 'missed' GROUP BY worker, reason ORDER BY worker, reason""",
    ),
    (
        "Who decided what",
        "\nSELECT at, actor, action, worker, detail FROM audit_log ORDER BY id",
    ),
    (
        "What the workers made of what they fetched: tables of the application, in the same file",
        "\nSELECT sensor, readings, lowest, average, highest FROM demo_summary ORDER BY sensor",
    ),
)

CLAIMS = (
    (
        "fetch-data fetched over HTTP and stored what it got",
        "SELECT count(*) >= 3 FROM run_history WHERE worker = 'fetch-data' AND outcome = 'succeeded'",
    ),
    (
        "process-data ran, never before fetch-data had succeeded",
        """SELECT count(*) >= 2 AND min(started_at) >= (
            SELECT min(finished_at) FROM run_history WHERE worker = 'fetch-data' AND outcome = 'succeeded'
        ) FROM run_history WHERE worker = 'process-data' AND outcome = 'succeeded'""",
    ),
    (
        "cleanup ran, and never beside process-data",
        """SELECT count(*) >= 2 AND NOT EXISTS (
            SELECT 1 FROM run_history AS a JOIN run_history AS b ON a.started_at < b.finished_at
                AND b.started_at < a.finished_at WHERE a.worker = 'cleanup' AND b.worker = 'process-data'
        ) FROM run_history WHERE worker = 'cleanup' AND outcome = 'succeeded'""",
    ),
    (
        "flaky-report failed, was tried again, and recovered",
        """SELECT count(*) >= 1 FROM run_history
            WHERE worker = 'flaky-report' AND ends_run = 'succeeded' AND attempt > 1""",
    ),
    (
        "broken-import failed three times in a row and was disabled by its circuit",
        """SELECT count(*) = 1 FROM worker_status WHERE name = 'broken-import' AND NOT is_enabled
            AND disabled_by = 'circuit' AND consecutive_failures = 3""",
    ),
    (
        "each of these three runs is kept as a dead letter",
        "SELECT count(*) = 3 FROM dead_letters WHERE worker = 'broken-import' AND attempts = 2",
    ),
    (
        "send-email sent every letter once, also the one that was asked for twice with one key",
        "SELECT count(*) = 9 AND count(DISTINCT run_id) = 9 FROM demo_outbox",
    ),
    (
        "its two payloads that did not fit are dead letters that name the field",
        "SELECT count(*) = 2 FROM dead_letters WHERE worker = 'send-email' AND error LIKE 'to: %'",
    ),
    (
        "watch-queue ran round and round",
        "SELECT count(*) >= 5 FROM run_history WHERE worker = 'watch-queue' AND trigger = 'continuous'",
    ),
)


def is_told(path: Path) -> bool:
    """Say whether all that the demo claims has happened."""
    return all(_answer(path, sql) for _, sql in CLAIMS)


def _answer(path: Path, sql: str) -> bool:
    (row,) = read(path, sql)
    return bool(next(iter(row.values())))


def show(console: Console, path: Path, *, was_stopped: bool) -> bool:
    """Print every question, its SQL and its answer, and whether the claims hold; return whether all do."""
    show_answers(console, path)
    console.print(Text("\nWhat was promised, asked of the same tables", style="bold"))
    answers = [(claim, _answer(path, sql)) for claim, sql in CLAIMS]
    for claim, is_true in answers:
        word, style = ("yes", "green") if is_true else ("not yet", "yellow") if was_stopped else ("NO", "bold red")
        console.print(Text.assemble((f"  {word:<7}  ", style), claim))
    is_told = all(is_true for _, is_true in answers)
    if not is_told and not was_stopped:
        console.print(Text("\nNot all of it happened: the machine is too slow, or jobrunner is broken.", "bold red"))
    show_what_next(console, path)
    return is_told


def show_answers(console: Console, path: Path) -> None:
    """Print every question, its SQL and its answer."""
    for title, sql in QUESTIONS:
        console.print(Text(f"\n{title}", style="bold"))
        console.print(Text(f"{sql.strip()};", style="dim cyan"), soft_wrap=True)
        _show_rows(console, read(path, sql))


def _show_rows(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        console.print(Text("none", style="dim"))
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title, value in rows[0].items():
        is_number = isinstance(value, int | float)
        table.add_column(Text(title), overflow="fold", justify="right" if is_number else "left")
    for row in rows:
        table.add_row(*(Text("" if value is None else str(value)) for value in row.values()))
    console.print(table)


def show_what_next(console: Console, path: Path) -> None:
    """Print what to do with the file."""
    program = f"{_program()} --database-url {shlex.quote(f'sqlite:///{path}')}"
    query = '"SELECT worker, outcome, error FROM run_history ORDER BY id DESC LIMIT 10"'
    lines = [
        f"\nAll of it is in {path.resolve()}; have a look yourself:",
        f"  sqlite3 {shlex.quote(str(path))} {query}",
        f"  {program} status",
        f"  {program} explain broken-import",
        f"  {program} dead-letters show 1",
    ]
    if shutil.which("sqlite3") is None:
        lines.append("(The program sqlite3 is not installed here; any other that opens SQLite files will do.)")
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def _program() -> str:
    """Return how `jobrunner` was called, so that the lines can be copied."""
    called = Path(sys.argv[0])
    if called.name != "jobrunner":
        return f"{Path(sys.executable).name} -m jobrunner"
    if shutil.which("jobrunner") == str(called.absolute()):
        return "jobrunner"
    return str(called.relative_to(Path.cwd()) if called.is_absolute() and called.is_relative_to(Path.cwd()) else called)
