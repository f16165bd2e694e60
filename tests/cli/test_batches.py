"""`jobrunner batches`, `trigger --batch`, and what `explain --run` says of a step."""

from __future__ import annotations

from tests.cli.conftest import triggered


def test_the_list_and_one_batch(cli):
    assert cli.ok("batches").out == "no batches\n"
    cli.register(triggered("mail"))
    cli.insert("batches", {"on_finish": "mail"})
    run_id = cli("trigger", "mail", "--batch", "1", "--json").json["run_id"]
    (row,) = cli("batches", "--json").json
    assert (row["id"], row["state"], row["live"], row["ended"], row["on_finish"]) == (1, "open", 1, 0, "mail")
    assert row["why"] == "batch 1 is not sealed"
    assert "batch 1 is not sealed" in cli.ok("batches").out
    assert cli("batches", "1", "--json").json == row
    cli.ok("admin", "cancel", str(run_id))
    assert cli("batches", "1", "--json").json["ended"] == 1
    assert "no batch 7" in cli.refused(3, "batches", "7")
    assert "--limit is for the list" in cli.refused(2, "batches", "1", "--limit", "3")


def test_a_trigger_into_a_finished_batch_is_refused_in_one_line(cli):
    cli.register(triggered("mail"))
    said = cli.refused(1, "trigger", "mail", "--batch", "9")
    assert said == "batch 9 does not exist, or has finished; begin another"
    assert cli.rows("runs") == []


def test_a_held_step_says_what_it_waits_for(cli):
    cli.register(triggered("mail"))
    first, second = [cli("trigger", "mail", "--json").json["run_id"] for _ in range(2)]
    cli.insert("run_after", {"run_id": second, "after_run_id": first})
    said = f"waits, and does not start now: waits for run {first} of its flow (mail)"
    assert said in cli.ok("explain", "--run", str(second)).out
