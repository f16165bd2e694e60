from __future__ import annotations

import pytest

from jobrunner.policy.named_limits import check_limit
from jobrunner.storage.workers.definitions import register
from tests.cli.conftest import NOW, Cli, triggered


@pytest.fixture
def limited(cli: Cli) -> Cli:
    """A limit that code declares, named by 25 workers, of which one has 22 active runs."""

    async def write(db, conn):
        configs = [triggered(f"pay-{number:02}", limits=("stripe-api",), max_running=30) for number in range(25)]
        await register(conn, db.dialect, configs, None, NOW, [check_limit("stripe-api", 40, "100/1m")])

    cli.use(write)
    cli.join("pay-00")
    active = {"state": "running", "node_id": "node-one", "started_at": NOW, "first_started_at": NOW, "due_at": NOW}
    rows = [{"worker": "pay-00", "slot": n, "fence": n + 1, "scheduled_for": NOW, **active} for n in range(22)]
    cli.insert("runs", *({"priority": 1, "payload": {}, **row} for row in rows))
    return cli


def test_a_limit_is_shown_with_its_layers_its_holders_and_its_workers(limited):
    limited.ok("admin", "limit", "stripe-api", "max_running=30")
    said = limited.ok("admin", "limit", "stripe-api").out
    assert "max_running  30 (code: 40; set by operators: 30)" in said
    assert "rate         100/1m (code: 100/1m)" in said
    flat = " ".join(said.split())
    assert "running now run 1 of pay-00, run 2 of pay-00," in flat
    assert "run 20 of pay-00 and 2 more" in flat
    assert "pay-19 and 5 more" in flat
    assert "pay-20" not in flat
    found = limited("admin", "limit", "stripe-api", "--json").json
    assert (found["max_running"], found["definition"]["max_running"], found["overrides"]) == (
        30,
        40,
        {"max_running": 30},
    )
    assert (found["running"], len(found["holders"]), found["workers"], len(found["worker_names"])) == (22, 20, 25, 20)
    assert found["holders"][0] == {"run_id": 1, "worker": "pay-00"}


def test_a_limit_is_set_and_taken_back_and_both_are_audited(limited):
    words = ("--actor", "ann", "--reason", "they complain")
    said = limited.ok("admin", "limit", "stripe-api", "max_running=4", "rate=null", *words)
    assert said.lines == ["stripe-api: max_running is 4", "stripe-api: rate is no limit"]
    assert limited.ok("admin", "limit", "stripe-api", "--unset", "rate").lines == ["stripe-api: rate is 100/1m again"]
    row = limited.row("limits")
    assert (row["max_running"], row["rate"], row["overrides"]) == (4, "100/1m", {"max_running": 4})
    first, second = limited.audits()
    assert (first["action"], first["worker"], first["actor"]) == ("limit_set", None, "ann")
    assert first["detail"]["new"] == {"max_running": 4, "rate": None}
    assert first["detail"]["reason"] == "they complain"
    assert (second["action"], second["detail"]["old"]) == ("limit_unset", {"rate": None})
    assert "limit_set" in limited.ok("admin", "audit", "--action", "limit_set").out


def test_all_limits_are_listed(limited):
    limited.ok("admin", "limit", "disk", "max_running=0", "--create")
    rows = limited("admin", "limit", "--json").json
    assert [(row["name"], row["max_running"], row["running"], row["workers"]) for row in rows] == [
        ("disk", 0, 0, 0),
        ("stripe-api", 40, 22, 25),
    ]
    assert "max_running=0" in limited.ok("admin", "limit").out


def test_one_that_no_code_declares_is_made_only_on_request(cli):
    assert cli.ok("admin", "limit").out.startswith("no named limits")
    assert cli.refused(3, "admin", "limit", "disk", "max_running=1").startswith("no limit named 'disk'; ")
    made = cli.ok("admin", "limit", "disk", "max_running=1", "--create").lines
    assert made == ["made limit disk", "disk: max_running is 1"]
    assert cli("admin", "limit", "disk", "rate=5/s", "--create", "--json").json["rate"] == "5/s"  # it is there: set
    assert cli.refused(3, "admin", "limit", "dsik") == "no limit named 'dsik'; did you mean 'disk'?"


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (("max_running=many",), 2, "max_running must be a whole number, not 'many'"),
        (("max_running=-1",), 2, "max_running must be 0 to"),
        (("rate=often",), 2, "'often' is no rate"),
        (("rates=1/s",), 2, "'rates' cannot be set; did you mean rate?"),
        (("max_running",), 2, "is no assignment; write field=value, such as max_running=4"),
        (("rate=1/s", "rate=2/s"), 2, "rate is given twice"),
        (("rate=1/s", "--unset", "rate"), 2, "give FIELD=VALUE or --unset, not both"),
        (("--unset", "rate"), 1, "has no override of rate"),
        (("--create",), 2, "--create needs what the limit allows"),
    ],
)
def test_what_cannot_be_set_is_refused_in_one_line(limited, words, code, why):
    assert why in limited.refused(code, "admin", "limit", "stripe-api", *words)
    assert limited.row("limits")["overrides"] == {}


def test_a_limit_is_named_where_something_is_to_be_done_to_it(cli):
    assert "name the limit" in cli.refused(2, "admin", "limit", "--create")


def test_options_that_limit_a_worker_are_set_from_the_command_line(cli):
    cli.ok("admin", "set", "mail", "limit_key=to", "max_running_per_key=2", "fair=true", "rate=5 / 1s", "smooth=true")
    row = cli.row("workers", name="mail")
    assert (row["limit_key"], row["max_running_per_key"], row["fair"], row["smooth"]) == ("to", 2, True, True)
    assert row["rate"] == "5/1s"
    shown = cli("admin", "show", "mail", "--json").json
    assert (shown["rate"], shown["fair"], shown["ordered"]) == ("5/1s", True, False)
    assert "fair must be true or false, not 'yes'" in cli.refused(2, "admin", "set", "mail", "fair=yes")
    cli.ok("admin", "set", "mail", "rate=null", "smooth=false")
    assert cli.row("workers", name="mail")["rate"] is None
    assert "max_running_per_key goes by a key" in cli.refused(2, "admin", "set", "mail", "limit_key=null")
