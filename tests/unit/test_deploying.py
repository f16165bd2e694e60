"""docs/deploying.md: its numbers are the code's, and what stops a node waits long enough."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from typer.main import get_command

from jobrunner.cli.main import app
from jobrunner.config import Settings
from jobrunner.runtime.executors.code import LONGEST_GRACE_SECONDS
from jobrunner.runtime.node import STOP_GRACE_SECONDS

TEXT = (Path(__file__).resolve().parents[2] / "docs/deploying.md").read_text()
LONGEST = Settings().drain_timeout + LONGEST_GRACE_SECONDS + STOP_GRACE_SECONDS
MOMENTS = 3 * STOP_GRACE_SECONDS  # the tick at hand, the ends that are written, and the node's leave


def numbers(pattern: str) -> set[float]:
    found = {float(number) for number in re.findall(pattern, TEXT)}
    assert found, pattern
    return found


def test_its_numbers_are_those_of_the_code():
    assert numbers(r"`JOBRUNNER_DRAIN_TIMEOUT`: (\d+) s") == {Settings().drain_timeout}
    assert numbers(r"\| (\d+) s; with processes") == {STOP_GRACE_SECONDS}
    assert numbers(r"commands among it (\d+) s") == {LONGEST_GRACE_SECONDS + STOP_GRACE_SECONDS}
    assert numbers(r"SIGKILL after (\d+) s") == {LONGEST_GRACE_SECONDS}
    assert numbers(r"after the lease, (\d+) s") == {Settings().lease}


def test_what_stops_a_node_waits_long_enough_for_all_that_it_does():
    for wait in ("stop_grace_period: ", "docker stop -t ", "terminationGracePeriodSeconds: ", "TimeoutStopSec="):
        assert min(numbers(rf"{re.escape(wait)}(\d+)")) >= LONGEST + MOMENTS, wait
    assert max(numbers(r"fits `--drain-timeout (\d+)`")) + LONGEST_GRACE_SECONDS + STOP_GRACE_SECONDS < 10


def test_the_commands_that_it_shows_are_the_program_s():
    shown = [shlex.split(line) for line in re.findall(r"bin/jobrunner (run .*)", TEXT)]
    shown += [re.findall(r'"(.*?)"', line)[1:] for line in re.findall(r"command: \[(.*)\]", TEXT)]
    assert len(shown) == 3
    for arguments in shown:
        get_command(app).commands["run"].make_context("run", arguments[1:], resilient_parsing=False)
