"""`jobrunner bulk`: it says how many before it does anything, and is never half understood."""

from __future__ import annotations

import pytest

from tests.cli.conftest import triggered
from tests.cli.test_dead_letters import letter


@pytest.fixture
def letters(cli):
    cli.register(triggered("mail"), triggered("fetch"))
    cli.insert("dead_letters", *(letter(number) for number in range(101, 108)), letter(108, worker="fetch"))
    return cli


def test_a_dry_run_says_how_many_and_changes_nothing(letters):
    said = letters.ok("bulk", "replay", "worker:mail", "--dry-run")
    assert "7 open letters fit worker:mail" in said.err
    assert letters("bulk", "replay", "worker:mail", "--dry-run", "--json").json["expected"] == 7
    assert {row["status"] for row in letters.rows("dead_letters")} == {"open"}
    assert letters.rows("bulk_operations") == []


def test_without_a_terminal_it_asks_for_yes_and_does_nothing(letters):
    said = letters.refused(2, "bulk", "replay", "worker:mail")
    assert said == (
        "this would replay 7 open letters at 100 a second, about 0.07 s, and there is nobody to ask; pass --yes"
    )
    assert letters.rows("bulk_operations") == []


def test_what_fits_is_replayed_and_summed_up(letters):
    done = letters.ok("bulk", "replay", "worker:ma*", "error:it broke", "--yes", "--actor", "ann", "--rate", "500")
    assert done.out == "bulk operation 1: done, 7 open letters replayed\n"
    assert sorted(row["worker"] for row in letters.rows("runs")) == ["mail"] * 7
    assert {row["actor"] for row in letters.audits()} == {"ann"}
    (row,) = letters("bulk", "list", "--json").json
    assert (row["filter"], row["state"], row["done"]) == ('worker:ma* error:"it broke"', "done", 7)
    assert "worker:ma*" in letters.ok("bulk", "show", "1").out


def test_detached_it_is_left_to_the_nodes_and_can_be_stopped(letters):
    row = letters("bulk", "discard", "worker:mail", "--yes", "--detach", "--json").json
    assert (row["state"], row["done"], row["expected"]) == ("running", 0, 7)
    assert "stopped, 0 open letters discarded" in letters.ok("bulk", "stop", "1").out
    assert "stopped already" in letters.refused(1, "bulk", "stop", "1")
    assert "no bulk operation 2" in letters.refused(3, "bulk", "show", "2")


def test_nothing_that_fits_is_no_operation(letters):
    assert "0 open letters fit" in letters.ok("bulk", "discard", "worker:nobody", "--yes").err
    assert letters.rows("bulk_operations") == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("mail",), "cannot be read at 'mail'"),
        (("worker:mail", "--rate", "0"), "the rate is a number a second"),
        (("status:discarded",), "only open letters"),
    ],
)
def test_a_filter_that_cannot_be_read_does_nothing(letters, words, said):
    assert said in letters.refused(2, "bulk", "replay", *words, "--yes")
    assert letters.rows("bulk_operations") == []
