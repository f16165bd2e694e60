"""The soak's own judgement: it must see what it is there to see. That it plays is shown by a short one."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobrunner.runtime.clock import SystemClock
from tests.soak.clock import SteppedClock, set_offset
from tests.soak.judge import NEVER_STARTS_DURING, in_real_time
from tests.soak.measure import Look, growth
from tests.soak.proxy import Proxy
from tests.soak.stage import Set
from tests.support.cluster import ROOT, until

LOOK = Look(0.0, rss=100 * 2**20, uss=80 * 2**20, descriptors=20, threads=8, children=4, connections=6)
# They have tests of their own; here a fault of theirs would only make it long.
WITHOUT = [f"--without={kind}" for kind in ("write_bad_rows", "forks", "odd-result")]


class NoNodes(Set):
    """A set of which only the notes are there."""

    def __init__(self, notes: Path) -> None:
        self.notes, self.nodes = notes, []


def noted(folder: Path, *spans: tuple[str, int, float, float]) -> NoNodes:
    notes = folder / "notes"
    lines = [
        f"{what} {worker} {run} 1 77 {at}"
        for worker, run, start, end in spans
        for what, at in (("start", start), ("end", end))
    ]
    notes.write_text("\n".join(lines) + "\n")
    return NoNodes(notes)


@pytest.mark.parametrize(
    ("change", "grown"),
    [
        ({}, []),
        ({"rss": 114 * 2**20}, []),
        ({"rss": 116 * 2**20}, ["rss from 100 to 116 MiB"]),
        ({"threads": 11}, []),
        ({"threads": 12}, ["threads from 8 to 12"]),
        ({"descriptors": 24, "connections": 10}, ["descriptors from 20 to 24", "connections from 6 to 10"]),
    ],
)
def test_what_grows_by_more_than_memory_breathes_is_told(change, grown):
    assert growth(LOOK, dataclasses.replace(LOOK, **change)) == grown


def test_runs_that_only_follow_each_other_are_in_order(tmp_path):
    assert in_real_time(noted(tmp_path, ("left", 1, 0, 1), ("right", 2, 1, 2), ("source", 3, 2, 4))) == []


@pytest.mark.parametrize(("one", "other"), NEVER_STARTS_DURING)
def test_a_start_while_the_other_ran_is_told(tmp_path, one, other):
    (said,) = in_real_time(noted(tmp_path, (other, 1, 0, 2), (one, 2, 1, 3)))
    assert said == f"{one} 2 started while {other} 1 ran, by their own notes"


def test_what_others_depend_on_may_start_while_they_run(tmp_path):
    assert in_real_time(noted(tmp_path, ("sink", 1, 0, 2), ("source", 2, 1, 3))) == []


def test_too_many_at_once_are_told(tmp_path):
    (said,) = in_real_time(noted(tmp_path, ("alone", 1, 0, 2), ("alone", 2, 1, 3)))
    assert said == "alone: 2 of at most 1 ran at once, by their own notes"


def test_a_stepped_clock_is_wrong_by_what_its_file_says(tmp_path):
    clock = SteppedClock(tmp_path / "offset")
    assert abs((clock.now() - SystemClock().now()).total_seconds()) < 60
    set_offset(tmp_path / "offset", -3600)
    until(lambda: -3660 < (clock.now() - SystemClock().now()).total_seconds() < -3540)


async def test_a_proxy_holds_back_what_is_stalled_and_cuts_what_is_cut():
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    proxy = Proxy(server.sockets[0].getsockname()[1])
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"one")
        assert await reader.read(100) == b"one"
        assert proxy.connections == 1
        proxy.stall()
        writer.write(b"two")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(100), 0.3)
        proxy.resume()
        assert await asyncio.wait_for(reader.read(100), 30) == b"two"
        proxy.cut()
        with pytest.raises((ConnectionError, EOFError)):
            await asyncio.wait_for(reader.readexactly(1), 30)
        writer.close()
        await asyncio.to_thread(until, lambda: proxy.connections == 0)
    finally:
        proxy.close()
        server.close()
        await server.wait_closed()


@pytest.mark.slow
@pytest.mark.crash
@pytest.mark.postgres
@pytest.mark.timeout(400)
def test_a_short_soak_plays_to_its_end():
    """On whatever it finds it has a last word; nothing is left running, and the figures are there."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "--soak", "--minutes=0.3", "--seed=1", *WITHOUT],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=390,
    )
    if kept := re.search(r"the logs are kept in (\S+)", done.stdout):
        shutil.rmtree(kept[1])  # it may have found something; that it plays and judges is what is asked here
    assert done.returncode in {0, 1}, done.stderr
    assert "Traceback" not in done.stderr
    for where in ("postgres", "sqlite"):
        assert f"{where}: quick, asked to start: calm p50" in done.stdout
        assert f"{where}: db verify: 0 violations" in done.stdout
    assert time.monotonic() - began > 18
