"""Worker definitions: the defaults, what is refused and in which words, and how overrides are laid over code."""

from __future__ import annotations

import json
from typing import Any

import pytest

from jobrunner.errors import InvalidPayload, InvalidWorker
from jobrunner.model.worker import (
    Dependency,
    DependencyCondition,
    Isolation,
    JobPriority,
    Misfire,
    WorkerConfig,
    WorkerExecutionMode,
)
from jobrunner.policy.definitions import (
    MAX_PAYLOAD_BYTES,
    OVERRIDABLE,
    check_definition,
    check_name,
    check_payload,
    definition_hash,
    from_document,
    parse_priority,
    to_document,
)

OFTEN: Any = "often"  # code that does not check its types may say anything


def checked(**fields):
    return check_definition(WorkerConfig(**{"name": "a", **fields}))


def refused(**fields) -> str:
    with pytest.raises(InvalidWorker) as caught:
        checked(**fields)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- defaults -----------------------------------------------------------------------------------------------------


def test_the_defaults_are_those_of_the_design():
    config = checked()
    assert config.execution_mode is WorkerExecutionMode.SCHEDULED
    assert config.interval_seconds == 300
    assert config.timeout_seconds == 60
    assert config.max_retries == 3
    assert config.priority is JobPriority.NORMAL
    assert config.max_consecutive_failures == 5
    assert config.max_running == 1
    assert (config.retry_delay_seconds, config.retry_backoff, config.retry_max_delay_seconds) == (5, 2, 3600)
    assert config.misfire is Misfire.RUN_ONCE
    assert (config.timezone, config.jitter_seconds, config.cooldown_seconds) == ("UTC", 0, None)


def test_a_continuous_worker_pauses_one_second_unless_told():
    assert checked(execution_mode="continuous").interval_seconds == 1
    assert checked(execution_mode="continuous", interval_seconds=0).interval_seconds == 0


def test_a_triggered_worker_has_no_interval():
    assert checked(execution_mode="triggered").interval_seconds is None


def test_a_cron_takes_the_place_of_the_interval():
    config = checked(cron="*/5 * * * *", timezone="Europe/Berlin")
    assert (config.cron, config.interval_seconds) == ("*/5 * * * *", None)


def test_seconds_may_be_fractions():
    assert checked(interval_seconds=0.25, timeout_seconds=0.5, retry_delay_seconds=0.1).interval_seconds == 0.25


def test_the_priorities_are_ordered():
    assert [int(p) for p in (JobPriority.LOW, JobPriority.NORMAL, JobPriority.HIGH, JobPriority.CRITICAL)] == [
        0,
        1,
        2,
        3,
    ]


@pytest.mark.parametrize("given", [JobPriority.HIGH, 2, "HIGH", "high"], ids=["member", "number", "name", "any-case"])
def test_a_priority_may_be_a_member_a_number_or_a_name(given):
    assert checked(priority=given).priority is JobPriority.HIGH


def test_values_are_read_into_their_own_types():
    config = checked(execution_mode="continuous", misfire="skip", isolation="process", timeout_seconds=30)
    assert config.misfire is Misfire.SKIP
    assert config.isolation is Isolation.PROCESS
    assert isinstance(config.timeout_seconds, float)


def test_dependencies_may_be_names_or_edges_and_are_kept_once_and_sorted():
    config = checked(depends_on=["c", Dependency("b", "fresh", 60), "c"])  # type: ignore[arg-type]
    assert config.depends_on == (Dependency("b", DependencyCondition.FRESH, 60.0), Dependency("c"))


def test_blocks_are_kept_once_and_sorted():
    assert checked(blocks=["c", "b", "c"]).blocks == ("b", "c")


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "fetch-data", "A.b_c-9", "x" * 200])
def test_a_name_of_letters_digits_dots_underscores_and_hyphens_is_accepted(name):
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "a b", "a/b", "ä", "a\n", "x" * 201, None, 5, "a\0"])
def test_another_name_is_refused(name):
    with pytest.raises(InvalidWorker, match="a name is 1 to 200 letters, digits"):
        check_name(name)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"interval_seconds": 0}, "interval_seconds must be at least 0.001, not 0"),
        ({"interval_seconds": -5}, "interval_seconds must be at least 0.001, not -5"),
        ({"interval_seconds": "60"}, "interval_seconds must be a number, not '60'"),
        ({"interval_seconds": True}, "interval_seconds must be a number, not True"),
        ({"interval_seconds": float("nan")}, "interval_seconds must be a number, not nan"),
        ({"interval_seconds": float("inf")}, "interval_seconds must be a number, not inf"),
        ({"interval_seconds": 1e12}, "interval_seconds must be at most"),
        ({"execution_mode": "continuous", "interval_seconds": -1}, "interval_seconds must be at least 0, not -1"),
        ({"interval_seconds": 5, "cron": "* * * * *"}, "has both interval_seconds and cron; keep one"),
        ({"execution_mode": "triggered", "interval_seconds": 5}, "is triggered, so it takes no interval_seconds"),
        ({"execution_mode": "triggered", "cron": "* * * * *"}, "is triggered, so it takes no interval_seconds"),
        ({"execution_mode": "continuous", "cron": "* * * * *"}, "is continuous, so it takes no cron"),
        ({"cron": "61 * * * *"}, "61 * * * *"),
        ({"ping": "hc.example.org/x"}, "ping must be a URL that begins with https:// or http://"),
        ({"ping": "https://user:hush@hc.example.org/x"}, "ping: a URL with a user or password is not stored"),
        ({"ping": "https://hc.example.org/x?api_key=hush"}, "ping: a URL with api_key= is not stored"),
        ({"cron": "nonsense"}, "nonsense"),
        ({"timezone": "Mars/Olympus"}, "Mars/Olympus"),
        ({"max_retries": -1}, "max_retries must be 0 to 2147483647, not -1"),
        ({"max_retries": 2**31}, "max_retries must be 0 to 2147483647, not 2147483648"),
        ({"max_retries": 1.5}, "max_retries must be a whole number, not 1.5"),
        ({"max_retries": True}, "max_retries must be a whole number, not True"),
        ({"timeout_seconds": 0}, "timeout_seconds must be more than 0, not 0"),
        ({"retry_delay_seconds": -1}, "retry_delay_seconds must be at least 0, not -1"),
        ({"retry_backoff": 0.5}, "retry_backoff must be at least 1, not 0.5"),
        ({"retry_max_delay_seconds": -1}, "retry_max_delay_seconds must be at least 0"),
        ({"jitter_seconds": -1}, "jitter_seconds must be at least 0"),
        ({"max_consecutive_failures": 0}, "max_consecutive_failures must be 1 to"),
        ({"cooldown_seconds": 0}, "cooldown_seconds must be more than 0"),
        ({"max_running": 0}, "max_running must be 1 to"),
        ({"memory_limit_mb": 0}, "memory_limit_mb must be 1 to"),
        ({"execution_mode": "sometimes"}, "execution_mode 'sometimes' is none of scheduled, triggered, continuous"),
        ({"misfire": "panic"}, "misfire 'panic' is none of run_once, run_all, skip"),
        ({"isolation": "vm"}, "isolation 'vm' is none of inline, thread, process, command"),
        ({"priority": 4}, "priority 4 is none of LOW (0), NORMAL (1), HIGH (2), CRITICAL (3)"),
        ({"priority": "urgent"}, "priority 'urgent' is none of"),
        ({"priority": True}, "priority True is none of"),
        ({"depends_on": ["a"]}, "depends on itself"),
        ({"depends_on": "b"}, "depends_on must be a list of worker names, not 'b'"),
        ({"depends_on": ["b c"]}, "a name is 1 to 200"),
        ({"depends_on": [Dependency("b", max_age_seconds=0)]}, "max_age_seconds must be more than 0"),
        ({"depends_on": [Dependency("b", OFTEN)]}, "condition 'often' is none of succeeded, fresh"),
        ({"blocks": ["a"]}, "blocks itself; one run at a time is max_running=1, the default"),
        ({"blocks": "b"}, "blocks must be a list of worker names, not 'b'"),
        ({"blocks": ["b/c"]}, "a name is 1 to 200"),
        ({"description": None}, "description must be text"),
        ({"payload": [1]}, "the payload must be a JSON object, not a list"),
    ],
)
def test_a_bad_value_is_refused_in_one_line_that_says_what_is_wrong(fields, message):
    assert message in refused(**fields)


def test_a_refusal_names_the_worker():
    assert refused(max_retries=-1).startswith("worker 'a': ")


# --- payloads -----------------------------------------------------------------------------------------------------


def test_no_payload_is_an_empty_one():
    assert check_payload(None) == {}


@pytest.mark.parametrize(
    ("payload", "kind"),
    [([1], "a list"), ("x", "text"), (5, "a number"), (5.5, "a number"), (True, "true or false"), (b"", "bytes")],
)
def test_a_payload_that_is_no_object_is_refused(payload, kind):
    with pytest.raises(InvalidPayload, match=f"must be a JSON object, not {kind}$"):
        check_payload(payload)


@pytest.mark.parametrize(
    "payload", [{"a": object()}, {"a": float("nan")}, {"a": float("inf")}, {"a": {1, 2}}, {"a": "\ud800"}, {1: 2}]
)
def test_a_payload_that_json_cannot_say_is_refused(payload):
    with pytest.raises(InvalidPayload) as caught:
        check_payload(payload)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("payload", [{"a": "x\0y"}, {"a\0": 1}, {"a": ["\\\0"]}])
def test_a_payload_with_a_nul_character_is_refused(payload):
    with pytest.raises(InvalidPayload, match="NUL"):
        check_payload(payload)


def test_a_payload_that_only_mentions_the_escape_is_accepted():
    assert check_payload({"a": "\\u0000"}) == {"a": "\\u0000"}


def test_a_payload_of_one_mebibyte_is_accepted_and_a_larger_one_refused():
    frame = len(json.dumps({"a": ""}))
    check_payload({"a": "x" * (MAX_PAYLOAD_BYTES - frame)})
    with pytest.raises(InvalidPayload, match="the most is 1,048,576"):
        check_payload({"a": "x" * (MAX_PAYLOAD_BYTES - frame + 1)})


def test_the_size_of_a_payload_is_counted_in_bytes():
    with pytest.raises(InvalidPayload, match="1 MiB"):
        check_payload({"a": "ä" * (MAX_PAYLOAD_BYTES // 2)})


def test_a_payload_that_is_nested_without_end_is_refused():
    payload: dict = {}
    payload["a"] = payload
    with pytest.raises(InvalidPayload):
        check_payload(payload)


def test_a_priority_in_words_is_read_in_any_case():
    assert parse_priority("a", "Critical") is JobPriority.CRITICAL


# --- documents and overrides --------------------------------------------------------------------------------------


def whole() -> WorkerConfig:
    return checked(
        handler="m:f",
        cron="0 3 * * *",
        timezone="Europe/Berlin",
        priority="HIGH",
        isolation="thread",
        payload={"x": [1, None]},
        depends_on=[Dependency("b", DependencyCondition.FRESH, 60.0)],
        blocks=["c"],
        cooldown_seconds=30,
    )


def test_a_definition_survives_its_document():
    document = json.loads(json.dumps(to_document(whole())))
    assert from_document("a", document, {}) == whole()


def test_the_hash_of_a_definition_is_stable_and_sees_every_change():
    document = to_document(whole())
    again = json.loads(json.dumps(document))
    assert definition_hash(again) == definition_hash(document)
    changed = {**document, "blocks": ["c", "d"]}
    assert definition_hash(changed) != definition_hash(document)


def test_overrides_win_over_what_code_said():
    merged = from_document("a", to_document(whole()), {"max_retries": 9, "priority": "low"})
    assert (merged.max_retries, merged.priority, merged.cron) == (9, JobPriority.LOW, "0 3 * * *")


def test_an_override_of_the_interval_takes_the_place_of_a_cron_and_the_other_way_round():
    assert from_document("a", to_document(whole()), {"interval_seconds": 30}).cron is None
    merged = from_document("a", to_document(checked(interval_seconds=5)), {"cron": "0 0 * * *"})
    assert merged.interval_seconds is None


def test_an_override_that_does_not_fit_is_refused():
    with pytest.raises(InvalidWorker, match="max_retries"):
        from_document("a", to_document(whole()), {"max_retries": -1})
    with pytest.raises(InvalidWorker, match="is triggered"):
        from_document("a", to_document(checked(execution_mode="triggered")), {"interval_seconds": 5})


def test_what_another_version_wrote_and_this_one_does_not_know_is_passed_over():
    assert from_document("a", {**to_document(whole()), "colour": "green"}, {"shape": "round"}) == whole()


def test_relations_mode_and_handler_cannot_be_overridden():
    assert not {"depends_on", "blocks", "execution_mode", "handler", "name", "isolation"} & set(OVERRIDABLE)
