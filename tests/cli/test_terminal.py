"""Tables on a real terminal: whatever its width, no name or id is broken, and why and errors are there."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from datetime import timedelta
from pathlib import Path

import pytest

from jobrunner.storage import nodes
from tests.cli.conftest import NOW, Cli, scheduled, triggered
from tests.cli.test_dead_letters import letter
from tests.cli.test_reads import ended

ROOT = Path(__file__).resolve().parents[2]
IMPORT = "nightly-import-of-all-customers-in-europe"
MAIL = "send-the-confirmation-of-an-order-by-mail"
NODE_ID = "6f1c0d52-9f2e-4c55-8d0b-0c6b9a1f7e3d"
HOST = "ip-10-20-30-40.eu-central-1.internal"
ACTOR = "christina.operator@desk-in-the-third-floor"
KEY = "order-2026-11-27-000000000000000000004711"
ERROR = (
    "the server at smtp.eu-central-1.example.org:587 closed the connection before it had answered to the greeting "
    "that was sent to it"
)
REASON = "the provider moves its machines until Monday and asked everybody to send nothing before that, says Kim"
RUN_ALL = """
import json, sys
from jobrunner.cli.main import main
for words in json.loads(sys.argv[1]):
    print("\\n#", *words, flush=True)
    code = main(words)
    sys.stdout.flush()
    assert code == 0, (words, code)
"""


def typed(answer: str, command: str) -> tuple[str, int]:
    """Run a command on a terminal and type the answer to its question; return what the terminal shows."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "jobrunner", *command.split()],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    os.write(ours, f"{answer}\n".encode())
    text = read_all(ours)
    return text, process.wait(60)


def read_all(terminal: int) -> str:
    """Read what is shown until the other end is closed."""
    chunks = []
    with contextlib.suppress(OSError):  # so Linux says that it is
        while chunk := os.read(terminal, 65536):
            chunks.append(chunk)
    os.close(terminal)
    return b"".join(chunks).decode().replace("\r\n", "\n")


def on_a_terminal(columns: int, commands: list[list[str]]) -> dict[str, list[str]]:
    """Run the commands on a terminal of that many columns; return the lines each has printed."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 25, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES", "NO_COLOR"}}
    process = subprocess.Popen(
        [sys.executable, "-c", RUN_ALL, json.dumps(commands)],
        env={**environment, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    text = read_all(ours)
    assert process.wait(60) == 0, text
    assert "\x1b[1m" in text, "titles are bold on a terminal"
    text = re.sub(r"\x1b\[[\d;]*m", "", text)
    assert "\x1b" not in text
    parts = [part.split("\n") for part in text.split("\n# ")[1:]]
    assert len(parts) == len(commands), text
    return {" ".join(words): part[1:] for words, part in zip(commands, parts, strict=True)}


@pytest.fixture
def full(cli: Cli) -> Cli:
    """A database of long names, ids and errors."""
    cli.register(
        scheduled(IMPORT, cron="*/5 3-23 * * *", timezone="Europe/Berlin", description=REASON),
        triggered(MAIL, max_running=3),
        triggered("idle"),
    )
    node = nodes.NodeIdentity(NODE_ID, HOST, 4194303, "boot", NOW, "0.1.0", 5, lease_seconds=1e9)
    cli.join(IMPORT, MAIL, node=node)
    claim = {"state": "running", "slot": 0, "fence": 1, "node_id": NODE_ID, "started_at": NOW}
    claim["progress"] = {"fraction": 0.4, "message": "of the customers whose names begin with a letter from A to K"}
    cli.insert(
        "runs",
        {"worker": IMPORT, "trigger": "schedule", **claim},
        {"worker": MAIL, "trigger": "manual", "key": KEY, "due_at": NOW + timedelta(days=40), "attempt": 2},
    )
    failed = {"outcome": "failed", "error": ERROR, "error_type": "ConnectionResetError"}
    cli.insert(
        "run_history",
        ended(4_000_001, IMPORT, node_id=NODE_ID),
        ended(4_000_002, MAIL, **failed, ends_run=None),
        ended(4_000_003, MAIL, **failed, ends_run="exhausted", finished_at=NOW - timedelta(days=3)),
        ended(
            None, IMPORT, fence=None, outcome="missed", ends_run=None, occurrences=7, reason=REASON, duration_ms=None
        ),
    )
    attempt = {"attempt": 1, **failed, "finished_at": NOW.isoformat()}
    cli.insert(
        "dead_letters",
        letter(4_000_003, MAIL, error=ERROR, errors=[attempt]),
        letter(4_000_004, IMPORT, error=ERROR, errors=[attempt], trigger="schedule"),
    )
    cli.ok("admin", "disable", "fetch", "--actor", "ann")
    cli.ok("admin", "disable", MAIL, "--reason", REASON, "--actor", ACTOR)
    cli.ok("admin", "pause", IMPORT, "--reason", REASON, "--actor", ACTOR)
    return cli


TABLES = {
    "status": ([IMPORT, MAIL, "idle", "paused", "disabled"], [REASON]),
    "runs": ([IMPORT, MAIL, "running", "pending"], ["names begin with a letter from A to K"]),
    "history": ([IMPORT, MAIL, "4000001", "failed", "missed"], [f"ConnectionResetError: {ERROR[:60]}", REASON]),
    "upcoming": ([IMPORT, "fetch"], [REASON]),
    f"explain {MAIL}": (["enabled", "shut"], [REASON]),
    f"status {MAIL}": ([MAIL, "triggered"], [REASON]),
    "dead-letters list": ([IMPORT, MAIL, "1", "2"], [f"ValueError: {ERROR[:60]}", '{"to": "person 4000003"}']),
    "dead-letters show 1": (["failed"], [f"ConnectionResetError: {ERROR[:60]}"]),
    f"admin show {IMPORT}": ([IMPORT], [REASON, NODE_ID]),
    "admin list": ([IMPORT, MAIL, "idle", "paused", "disabled"], []),
    "admin nodes": ([NODE_ID, HOST, "active"], []),
    "admin audit": ([ACTOR, MAIL, IMPORT, "pause", "disable"], [REASON]),
}


@pytest.mark.parametrize("columns", [80, 120, 160])
def test_a_table_fits_the_terminal_and_breaks_no_name_and_drops_no_error(full, columns):
    commands = [[*words.split(), "--database-url", full.url] for words in TABLES]
    shown = dict(zip(TABLES, on_a_terminal(columns, commands).values(), strict=True))
    for table, (names, texts) in TABLES.items():
        lines = shown[table]
        words = " ".join(lines).split()
        flat = " ".join(words)
        assert [line for line in lines if len(line) > columns] == [], (table, lines)
        for name in names:
            assert name in words, (table, name, lines)
        for text in texts:
            assert text in flat, (table, text, lines)
        is_dated = any(re.fullmatch(r"\d\d:\d\d(:\d\d)?", word) for word in words)
        assert is_dated == any(word.rstrip(":;,") == "UTC" for word in words), (table, lines)


def test_one_long_name_costs_the_others_no_column(cli):
    long = "the-nightly-import-of-all-customers-and-contracts"
    cli.register(triggered(long), triggered("sync"))
    cli.ok("trigger", "sync", "--in", "3h")
    cli.ok("trigger", long)
    cli.insert("run_history", ended(1, "sync"))
    cli.use(
        lambda db, conn: conn.exec_driver_sql(
            f"UPDATE {db.schema_prefix}worker_state SET last_run_outcome = 'failed', last_error = 'no luck', "
            f"consecutive_failures = 3, last_run_at = next_run_at WHERE worker = 'fetch'"
        )
    )
    shown = on_a_terminal(80, [[words, "--database-url", cli.url] for words in ("status", "runs")])
    status, runs = shown.values()
    titles = " ".join(status[:2]).split()
    assert {"NEXT", "RUN", "LAST", "STREAK", "RUNNING", "WAITING"} <= set(titles), status
    assert long in status
    titles = " ".join(runs[:2]).split()
    assert {"ATTEMPT", "DUE", "STATE", "TRIGGER"} <= set(titles), runs
    assert [line for line in (*status, *runs) if len(line) > 80] == []
    assert [line for line in runs if line.strip().startswith("why: ")] == [
        "    why: no node is running; `jobrunner run MODULE` starts one"
    ]


def test_on_a_terminal_upcoming_shows_a_few_times_of_each_worker(cli):
    cli.register(scheduled("tick", interval_seconds=5), scheduled("nightly", cron="0 3 * * *"))
    for hours in range(1, 6):
        cli.ok("trigger", "mail", "--in", f"{hours}h")
    end = ["--database-url", cli.url]
    commands = [["upcoming", *end], ["upcoming", "tick", *end], ["upcoming", "--limit", "40", *end]]
    few, one, limited = (
        [line for line in lines if re.match(r"\d\d:\d\d:\d\d|\d\d-\d\d ", line)]
        for lines in on_a_terminal(80, commands).values()
    )
    for name, times in (("tick", 3), ("fetch", 3), ("mail", 3), ("nightly", 1)):
        assert sum(name in line for line in few) == times, (name, few)
    assert len(one) == 100
    assert len(limited) == 40
    assert all("tick" in line or "fetch" in line for line in limited)
    (said,) = [" ".join(lines) for lines in on_a_terminal(80, commands[:1]).values()]
    assert (
        "and more than 100 more of fetch, 2 more of mail, more than 100 more of tick; `jobrunner upcoming WORKER` or "
        "--limit shows them"
    ) in said
    assert len(cli("upcoming", "--json", "--limit", "200").json) == 200
    assert len(cli.ok("upcoming").lines) == 101


def test_on_a_terminal_a_replay_of_old_firings_asks(cli):
    firings = [letter(number, "fetch", trigger="schedule") for number in (1, 2, 3)]
    cli.insert("dead_letters", *firings)
    command = f"dead-letters replay --worker fetch --database-url {cli.url}"
    said, code = typed("n", command)
    assert "This replays 3 firings of the schedule of fetch; `jobrunner dead-letters replay 3` replays the" in said
    assert (code, cli.rows("runs")) == (130, [])
    said, code = typed("y", command)
    assert (code, said.count("replayed letter")) == (0, 3)


def test_on_a_terminal_what_a_trigger_says_and_an_error_are_folded_on_words(cli):
    cli.ok("admin", "disable", "mail", "--reason", REASON)
    command = f"--database-url {cli.url}"
    said, code = typed("", f"trigger mail --wait --wait-timeout 0 {command}")
    assert code == 1
    assert REASON in " ".join(said.split())
    assert "error: run 1 of mail has not ended after 0 s, and stays: `jobrunner runs" in said
    long = "such-a-worker-" * 10
    for words in (f"trigger {long}", "trigger mail --in 1h --wait --wait-timeout 0"):
        more, _ = typed("", f"{words} {command}")
        said += more
    assert [line for line in said.splitlines() if len(line) > 80] == []


def test_on_a_terminal_a_change_of_many_workers_asks_and_says_which(cli):
    command = f"admin disable * --reason moving --database-url {cli.url}"
    said, code = typed("n", command)
    assert "Disable 2 workers: fetch, mail? [y/N]" in said
    assert (code, cli.audits()) == (130, [])
    said, code = typed("y", command)
    assert (code, said.count("disabled 2 workers: fetch, mail")) == (0, 1)
    assert len(cli.audits()) == 2


def test_on_a_terminal_status_shows_a_screenful_of_the_worst(cli):
    cli.register(*(triggered(f"w{number:02}") for number in range(40)))
    cli.ok("admin", "disable", "w39")
    (lines,) = on_a_terminal(80, [["status", "--database-url", cli.url]]).values()
    names = [line.split()[0] for line in lines if re.match(r"(w\d\d|fetch|mail) ", line)]
    assert len(names) == 25
    assert names[0] == "w39"
    assert "25 of 42 workers are shown, the worst first; --limit shows more" in lines
