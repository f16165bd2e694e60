"""`jobrunner watch`: on a terminal drawn in place until Ctrl-C, elsewhere block after block."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jobrunner.cli import watch
from jobrunner.policy.liveness import NodesHeard
from jobrunner.storage.reading.overview import Overview
from jobrunner.storage.reading.status import Totals
from jobrunner.storage.runs.dead_letters import OpenLetters
from tests.cli.conftest import NODE, NOW, Cli, scheduled, triggered
from tests.cli.program import ROOT, start_jobrunner
from tests.cli.test_reads import ended

FOOT = b"Ctrl-C ends it"
OTHER_SCREEN, BACK, CURSOR = b"\x1b[?1049h", b"\x1b[?1049l", b"\x1b[?25h"


@pytest.fixture
def full(cli: Cli) -> Cli:
    """A worker that fails, one that is off, a run under way and what has ended."""
    cli.register(scheduled("import", interval_seconds=3600), triggered("copy", max_running=9))
    cli.join("import", "copy", "fetch", "mail")
    cli.ok("admin", "disable", "mail", "--reason", "moving")
    claim = {"state": "running", "slot": 0, "fence": 1, "node_id": NODE.id, "started_at": NOW}
    progress = {"fraction": 0.4, "message": "of 10 files"}
    cli.insert("runs", {"worker": "copy", "trigger": "manual", **claim, "progress": progress})
    cli.insert("run_history", ended(1), ended(2, "import", outcome="failed", ends_run="exhausted", error="no luck"))
    return cli


class Terminal:
    """`jobrunner watch` on a terminal of its own."""

    def __init__(self, url: str, lines: int, columns: int, *options: str, **environment: str) -> None:
        self._ours, theirs = pty.openpty()
        self.shown = b""
        self.resize(lines, columns)
        env = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES", "NO_COLOR"}}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jobrunner", "watch", *options, "--database-url", url],
            env={**env, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", **environment},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)

    def resize(self, lines: int, columns: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(60)

    def until(self, words: bytes) -> list[str]:
        """Read until these words are shown anew; return the lines of the last picture."""
        seen = len(self.shown)
        while words not in self.shown[seen:]:
            self.shown += os.read(self._ours, 65536)
        return self.picture()

    def picture(self) -> list[str]:
        last = self.shown.split(b"\x1b[H")[-1].decode()
        return [line.rstrip() for line in re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", last).replace("\r", "").split("\n")]

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        with contextlib.suppress(OSError):  # so Linux says that the other end is closed
            while chunk := os.read(self._ours, 65536):
                self.shown += chunk
        os.close(self._ours)
        return self.process.wait(60)


@contextlib.contextmanager
def watching(full: Cli, folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run `jobrunner watch` where there is no terminal."""
    with start_jobrunner(
        shlex.join(["watch", "--every", "0.1", "--database-url", full.url, *options]), folder
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_on_a_terminal_all_is_drawn_in_place_and_the_terminal_is_left_as_it_was(full, number, code):
    with Terminal(full.url, 30, 80, "--every", "0.2") as terminal:
        terminal.until(FOOT)
        lines = terminal.until(FOOT)  # it is drawn again
        assert terminal.end(number) == code
    text = "\n".join(lines)
    assert re.match(r"\d\d:\d\d:\d\d UTC  4 workers, 1 running, 0 waiting; 1 live node", lines[0])
    names = [line.split()[0] for line in lines if re.match(r"(mail|copy|fetch|import) ", line)]
    assert names[0] == "mail"
    assert set(names) == {"mail", "copy", "fetch", "import"}
    for words in ("disabled", "40 % of 10 files", "no luck", "node-one", "moving"):
        assert words in text
    assert max(map(len, lines)) <= 80
    assert terminal.shown.count(OTHER_SCREEN) == 1
    assert terminal.shown.rindex(BACK) > terminal.shown.rindex(FOOT)
    assert terminal.shown.count(CURSOR) >= 1
    assert b"Traceback" not in terminal.shown


def test_a_terminal_may_be_small_and_may_change_its_size(full):
    with Terminal(full.url, 6, 40, "--every", "1h") as terminal:
        small = terminal.until(FOOT)
        terminal.resize(60, 100)  # room for the nodes, too, however much there is to say of the workers
        terminal.process.send_signal(signal.SIGWINCH)
        large = terminal.until(b"node-one")
        assert terminal.end(signal.SIGINT) == 130
    assert len(small) <= 6
    assert max(map(len, small)) <= 40
    assert any(line.startswith("mail") for line in small)
    assert any(line.startswith("RUNNING") for line in large)


def test_where_there_is_no_terminal_each_look_is_a_block(full, tmp_path):
    head = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC: 4 workers, 1 running", re.MULTILINE)
    with watching(full, tmp_path) as process:
        assert process.stdout is not None
        text = ""
        while len(head.findall(text)) < 2 and (line := process.stdout.readline()):
            text += line
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        text += out
    assert (process.returncode, err) == (130, "")
    assert "\x1b" not in text
    for title in ("workers:", "running:", "ended:", "next:", "nodes:"):
        assert f"\n{title}\n" in text


def test_for_programs_each_look_is_an_object_in_a_line(full, tmp_path):
    with watching(full, tmp_path, "--json") as process:
        assert process.stdout is not None
        seen = [json.loads(process.stdout.readline()) for _ in range(2)]
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert seen[0]["workers"][0]["name"] == "mail"
    assert seen[0]["workers"][0]["health"] == "disabled"
    assert [row["worker"] for row in seen[1]["running"]] == ["copy"]


def test_the_shortest_time_between_two_looks_is_a_tenth_of_a_second(sqlite_cli):
    assert "--every" in sqlite_cli.refused(2, "watch", "--every", "0.01")
    assert "--every" in sqlite_cli.refused(2, "watch", "--every", "often")


EMPTY = Overview(
    at=datetime(2026, 3, 2, 12, tzinfo=UTC),
    totals=Totals(0, 0, 0),
    letters=OpenLetters(0, 0),
    heard=NodesHeard(),
    workers=[],
    progress={},
    running=[],
    ended=[],
    upcoming=[],
    nodes=[],
)


def test_an_empty_database_and_one_that_went_away_are_drawn_too():
    assert watch.draw(EMPTY, EMPTY.at, 80, 24) == [
        "12:00:00 UTC  0 workers, 0 running, 0 waiting; 0 live nodes, 0 open dead letters",
        "times are UTC; Ctrl-C ends it",
    ]
    lines = watch.draw(EMPTY, EMPTY.at.replace(second=7), 80, 24, "the database is gone")
    assert lines[1] == "7 s old: the database is gone"
    for height in (1, 2, 3):
        assert len(watch.draw(EMPTY, EMPTY.at, 10, height, "trouble")) <= height


@pytest.mark.parametrize("room", range(40))
def test_the_parts_share_the_lines_there_are(room):
    wanted = [100, 3, 11, 0, 5]
    taken = watch._share(wanted, room)
    assert sum(taken) <= room
    assert all(lines <= asked + 1 for lines, asked in zip(taken, wanted, strict=True))
    assert taken[3] == 0
    if room >= 4:
        assert sum(taken) == room
        assert taken[0] >= room * 2 // 5
    if room >= 32:
        assert min(taken[place] for place in (1, 2, 4)) >= 4
