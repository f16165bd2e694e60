"""`jobrunner show RUN`: all there is about a run, live or ended, and the way from a letter to its replay and back."""

from __future__ import annotations

from datetime import timedelta

import pytest

from jobrunner.cli.status import part_of
from tests.cli.conftest import NODE, NOW, scheduled, triggered
from tests.cli.test_dead_letters import letter
from tests.cli.test_reads import ended

TRACEBACK = "\n".join(
    ["Traceback (most recent call last):", *(f'  File "{n}.py"' for n in range(40)), "ValueError: no"]
)
FAILED = {"outcome": "failed", "error_type": "ValueError", "error": "no\nreally not", "traceback": TRACEBACK}


@pytest.fixture
def exhausted(cli):
    """Run 4711 of `mail`, given up after two attempts."""
    cli.join("mail")
    start = NOW - timedelta(hours=2)
    attempt = {**FAILED, "worker": "mail", "run_id": 4711, "trigger": "manual", "node_id": NODE.id, "started_at": start}
    attempt |= {"payload": {"to": "ann"}, "due_at": start, "scheduled_for": start, "finished_at": start}
    said = "\n".join(f"line {n}" for n in range(50))
    cli.insert(
        "run_history",
        ended(4711, **{**attempt, "fence": 1, "ends_run": None}),
        ended(4711, **{**attempt, "fence": 2, "attempt": 2, "ends_run": "exhausted", "output": said}),
    )
    cli.insert("dead_letters", letter(4711, "mail", attempts=2, key="order-1", priority=2))
    return cli


def test_an_ended_run_tells_its_attempts_its_errors_and_its_letter(exhausted):
    out = exhausted.ok("show", "4711").out
    lines = out.splitlines()
    assert lines[0].startswith("run 4711 of mail failed, its attempts are used up, ")
    assert lines[0].endswith("UTC (2 h ago)")
    for words in (
        "key            order-1",
        "priority       HIGH",
        'payload        {"to": "ann"}',
        "  ValueError: no",
        "  really not",
        "  traceback, the last 12 of 42 lines; --full shows all:",
        "  traceback: the same as that of the attempt before",
        "  output, the last 20 of 50 lines; --full shows all:",
        "    line 49",
    ):
        assert words in lines
    assert "    line 3" not in lines
    (first, second) = [line for line in lines if line.startswith("attempt")]
    assert first.startswith("attempt 1: failed after 12 ms; started ")
    assert first.endswith("on node node-one (host, pid 4711)")
    assert second.startswith("attempt 2: ")
    assert lines[-1] == (
        "dead letter 1: open; `jobrunner dead-letters replay 1` makes a new run of it, "
        "`jobrunner dead-letters discard 1` closes it"
    )


def test_full_shows_every_line(exhausted):
    lines = exhausted.ok("show", "4711", "--full").lines
    assert [line for line in lines if line.startswith("    line ")] == [f"    line {n}" for n in range(50)]
    assert '      File "0.py"' in lines


def test_for_programs_a_run_is_an_object_with_its_attempts_as_rows_of_history(exhausted):
    found = exhausted("show", "4711", "--json").json
    assert (found["id"], found["worker"], found["state"], found["key"]) == (4711, "mail", "exhausted", "order-1")
    assert [row["attempt"] for row in found["attempts"]] == [1, 2]
    rows = exhausted("history", "--run", "4711", "--json").json
    assert found["attempts"] == rows[::-1]
    assert (found["letter"]["id"], found["replay"], found["replay_of"]) == (1, None, None)
    assert found["has_more_attempts"] is False


def test_a_letter_leads_to_its_replay_and_the_replay_back_to_it(exhausted):
    exhausted.ok("dead-letters", "replay", "1", "--actor", "ann")
    run = exhausted.row("runs")["id"]
    last = exhausted.ok("show", "4711").lines[-1]
    assert last.startswith("dead letter 1: replayed by ann ")
    assert last.endswith(f"as run {run}, which waits")
    assert "trigger        replay of dead letter 1, of run 4711" in exhausted.ok("show", str(run)).lines
    assert exhausted("show", str(run), "--json").json["replay_of"] == {
        "letter_id": 1,
        "run_id": 4711,
        "worker": "mail",
    }


def test_a_replay_that_has_ended_knows_its_letter_and_the_letter_how_it_ended(exhausted):
    closed = {"status": "replayed", "resolved_at": NOW, "resolved_by": "ann", "replay_run_id": 5000}
    exhausted.insert("dead_letters", letter(4700, "mail", **closed), letter(5000, "mail"))
    exhausted.insert(
        "run_history",
        ended(4700, "mail", outcome="failed", ends_run="exhausted"),
        ended(5000, "mail", trigger="replay", outcome="failed", ends_run="exhausted"),
    )
    assert "as run 5000, which failed, its attempts are used up: dead letter 3" in exhausted.ok("show", "4700").out
    assert "replay of dead letter 2, of run 4700" in exhausted.ok("show", "5000").out


def test_a_run_that_waits_says_why(cli):
    cli.ok("admin", "disable", "mail", "--reason", "API is down")
    run = cli("trigger", "mail", "--payload", '{"to": "bob"}', "--force", "--json").json["run_id"]
    other = cli("trigger", "mail", "--key", "k", "--priority", "LOW", "--json").json["run_id"]
    forced, waits = cli.ok("show", str(run)).lines, cli.ok("show", str(other)).lines
    assert "trigger        manual, forced" in forced
    assert 'payload        {"to": "bob"}' in forced
    assert "no node is running" in forced[0]
    assert waits[0].startswith(f"run {other} of mail waits, due ")
    assert "API is down" in waits[0]
    assert "priority       LOW" in waits
    assert "API is down" in cli("show", str(other), "--json").json["why"]


def test_a_run_that_runs_shows_progress_and_what_it_has_said_so_far(cli):
    cli.join("mail")
    claim = {"state": "running", "slot": 0, "fence": 1, "node_id": NODE.id, "started_at": NOW}
    more = {"progress": {"fraction": 0.4, "message": "of 10 files"}, "output": "one\ntwo\n", "output_lines": 2}
    cli.insert("runs", {"worker": "mail", "trigger": "manual", **claim, **more})
    lines = cli.ok("show", "1").lines
    assert lines[0].startswith("run 1 of mail is running, attempt 1, started ")
    assert "progress       40 % of 10 files" in lines
    assert lines[-3:] == ["  output so far:", "    one", "    two"]


def test_a_success_shows_its_result_and_a_cancelled_run_its_reason(cli):
    cli.register(scheduled("berlin", timezone="Europe/Berlin"))
    cli.insert(
        "run_history",
        ended(1, "berlin", started_at=NOW, result={"rows": 12}),
        ended(2, outcome="cancelled", ends_run="cancelled", reason="wrong address", duration_ms=None),
    )
    lines = cli.ok("show", "1").lines
    assert 'result         {"rows": 12}' in lines
    assert "CET" in lines[0] or "CEST" in lines[0]
    first, *_, last = cli.ok("show", "2").lines
    assert first.startswith("run 2 of fetch was cancelled, ")
    assert first.endswith(": wrong address")
    assert last == "  wrong address"


def test_of_many_attempts_the_last_are_shown(cli, monkeypatch):
    monkeypatch.setattr("jobrunner.storage.reading.story.read_story.__defaults__", (3,))
    rows = [ended(1, fence=n, outcome="snoozed", ends_run=None, attempt=1, reason=f"nap {n}") for n in range(1, 6)]
    cli.insert("run_history", *rows, ended(1, fence=6))
    found = cli("show", "1", "--json").json
    assert [row["fence"] for row in found["attempts"]] == [4, 5, 6]
    assert found["has_more_attempts"] is True
    assert "`jobrunner history --run 1` shows all" in cli.ok("show", "1").out


def test_an_unknown_run_is_exit_code_3(cli):
    cli.register(triggered("x"))
    assert cli.refused(3, "show", "99") == "no run 99, neither live nor in the history"
    cli.refused(2, "show", "x")
    cli.refused(2, "show")


def test_what_others_have_written_reaches_no_terminal_as_control_characters(cli):
    evil = "\x1b[31mred\x07"
    cli.insert(
        "run_history",
        ended(1, outcome="failed", ends_run="exhausted", error=evil, traceback=evil, output=evil, reason=evil),
    )
    cli.insert("run_history", ended(2, outcome="cancelled", ends_run="cancelled", reason=evil, duration_ms=None))
    for run in ("1", "2"):
        out = cli.ok("show", run).out
        assert "red" in out
        assert "\x1b" not in out
        assert "\x07" not in out


def test_a_key_of_a_limit_a_batch_and_a_step_are_told_of_runs_that_have_them(cli):
    cli.join("mail")
    part = {"limit_key": "ada", "batch_id": 7, "flow_id": 3, "step": "load"}
    cli.insert("run_history", ended(4712, worker="mail", run_id=4712, finished_at=NOW, started_at=NOW, **part))
    cli.insert("run_history", ended(4713, worker="mail", run_id=4713, finished_at=NOW, started_at=NOW))
    lines = [line.split(maxsplit=1) for line in cli.ok("show", "4712").out.splitlines()]
    assert ["limit", "key      ada"] in lines
    assert ["batch", "7"] in lines
    assert ["flow", "3, step load"] in lines
    assert "limit key" not in cli.ok("show", "4713").out
    assert part_of(part) == "limit key ada, batch 7, flow 3, step load"
    assert part_of(dict.fromkeys(part)) is None
