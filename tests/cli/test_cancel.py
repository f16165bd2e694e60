"""`jobrunner admin cancel`: one run, several, or all of a worker; and what is said where code cannot be killed."""

from __future__ import annotations

from tests.cli.conftest import NOW, triggered


def trigger(cli, worker="mail", count=1):
    return [str(cli("trigger", worker, "--json").json["run_id"]) for _ in range(count)]


def start(cli, worker, slot=0):
    claim = {"state": "running", "slot": slot, "fence": slot + 1, "node_id": "node-one", "started_at": NOW}
    cli.insert("runs", {"worker": worker, "trigger": "manual", **claim})
    return str(cli.rows("runs")[-1]["id"])


def test_several_runs_are_cancelled_or_none(cli):
    first, second, third = trigger(cli, count=3)
    assert "77" in cli.refused(3, "admin", "cancel", first, "77")
    assert len(cli.rows("runs")) == 3
    assert cli.ok("admin", "cancel", first, third, first, "--reason", "wrong").lines == [
        f"cancelled run {first}",
        f"cancelled run {third}",
    ]
    assert [str(row["id"]) for row in cli.rows("runs")] == [second]
    assert {row["reason"] for row in cli.rows("run_history")} == {"wrong"}


def test_all_live_runs_of_a_worker_are_cancelled(cli, monkeypatch):
    monkeypatch.setattr("jobrunner.storage.reading.pages.PAGE_ROWS", 2)
    cli.join("mail", "fetch")
    running = start(cli, "mail")
    waiting = trigger(cli, count=5)
    other = trigger(cli, "fetch")
    said = cli.ok("admin", "cancel", "--worker", "mail", "--actor", "ann").lines
    assert sorted(said[:5]) == [f"cancelled run {run}" for run in waiting]
    assert said[5:] == [f"told run {running} to stop"]
    assert [str(row["id"]) for row in cli.rows("runs")] == [running, *other]
    assert cli.row("runs", worker="mail")["cancel_reason"] == "cancelled by ann"
    assert cli.ok("admin", "cancel", "--worker", "fetch").lines == [f"cancelled run {other[0]}"]
    assert cli.ok("admin", "cancel", "--worker", "fetch").lines == ["no run of fetch waits or runs"]
    assert "no worker named 'nobody'" in cli.refused(3, "admin", "cancel", "--worker", "nobody")
    assert "not both" in cli.refused(2, "admin", "cancel", "1", "--worker", "mail")
    assert "give the ids of runs" in cli.refused(2, "admin", "cancel")


def test_the_live_runs_of_the_workers_that_fit_a_pattern_are_cancelled(cli):
    cli.register(triggered("mail-too"))
    first, other, kept = trigger(cli), trigger(cli, "mail-too"), trigger(cli, "fetch")
    said = cli.refused(2, "admin", "cancel", "--worker", "ma*")
    assert said.startswith("this would cancel 2 runs of mail, mail-too")
    done = cli.ok("admin", "cancel", "--worker", "ma*", "--yes").lines
    assert sorted(done) == sorted(f"cancelled run {run}" for run in (*first, *other))
    assert [str(row["id"]) for row in cli.rows("runs")] == kept
    assert cli.ok("admin", "cancel", "--worker", "ma*").lines == ["no run of mail, mail-too waits or runs"]
    assert "no worker's name fits 'x*'" in cli.refused(3, "admin", "cancel", "--worker", "x*")


def test_whoever_cancels_a_thread_is_told_that_it_goes_on_and_what_to_do(cli):
    cli.register(triggered("slow", isolation="thread"), triggered("quick", isolation="inline"))
    cli.join("slow", "quick")
    run, other = start(cli, "slow"), start(cli, "quick")
    done = cli.ok("admin", "cancel", run, other)
    assert done.lines == [f"told run {run} to stop", f"told run {other} to stop"]
    assert done.err == (
        f"run {run} is a thread, which cannot be killed: it goes on and keeps its place until its code asks "
        "`run.should_stop` or ends. If it never does, stop its node (pid 4711 on host): the run then ends cancelled\n"
    )
