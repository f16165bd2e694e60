"""What becomes of incidents, and which channels a rule may name: pure decisions."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jobrunner.errors import InvalidSetting, NotSent
from jobrunner.model.alerts import AlertKind, AlertRule, Happened, Incident, MessageKind, Told
from jobrunner.policy import alerts, channels
from jobrunner.policy.alerts import Facts, Seen, decide

T0 = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
CALM = 30.0
SURE = 10.0
OPS = AlertRule("ops", frozenset(AlertKind), repeat_seconds=600)


def incident(kind: AlertKind = AlertKind.FAILING, **more: Any) -> Incident:
    return Incident(
        **{
            "id": 7,
            "kind": kind,
            "subject": "mail",
            "worker": "mail",
            "opened_at": T0,
            "last_at": T0,
            "count": 1,
            **more,
        }
    )


def facts(health: str = "failing", **more: Any) -> Facts:
    return Facts({"mail": Seen("mail", health, **more)}, suspected=long_suspected())


def long_suspected(seconds: float = SURE) -> dict[tuple[AlertKind, str], datetime]:
    return {(kind, "mail"): T0 - timedelta(seconds=seconds) for kind in AlertKind}


def told(seconds_ago: float, count: int = 1, *, is_waiting: bool = False) -> dict[str, Told]:
    return {"ops": Told(T0 - timedelta(seconds=seconds_ago), count, is_waiting)}


def decided(what: Incident, known: Facts, *, rules: list[AlertRule] | None = None) -> alerts.Decided:
    return decide([OPS] if rules is None else rules, [what], known, T0, CALM, SURE)


@pytest.mark.parametrize("health", ["failing", "stalled", "late", "slow", "no_node"])
def test_a_bad_health_opens_an_incident_of_its_own_kind_and_no_other(health: str):
    found = decide([OPS], [], facts(health), T0, CALM, SURE)
    assert [kind for kind, _ in found.opened] == [health]


@pytest.mark.parametrize("health", ["disabled", "paused", "degraded", "healthy", "unknown", "of a later release"])
def test_any_other_health_opens_none(health: str):
    assert decide([OPS], [], facts(health), T0, CALM, SURE).is_nothing


def test_what_no_rule_asks_for_is_not_opened():
    assert decide([replace(OPS, workers="other")], [], facts(), T0, CALM, SURE).is_nothing
    assert decide([replace(OPS, kinds=frozenset({AlertKind.SLOW}))], [], facts(), T0, CALM, SURE).is_nothing


@pytest.mark.parametrize(
    ("kind", "health", "is_over"),
    [
        (AlertKind.FAILING, "failing", False),
        (AlertKind.FAILING, "stalled", True),
        (AlertKind.FAILING, "healthy", True),
        (AlertKind.STALLED, "failing", False),  # behind it, nothing is known of the other
        (AlertKind.NO_NODE, "slow", False),
        (AlertKind.NO_NODE, "degraded", True),
        (AlertKind.SLOW, "unknown", True),
    ],
)
def test_an_incident_is_over_when_the_health_is_a_lesser_evil(kind: AlertKind, health: str, is_over: bool):
    found = decided(incident(kind, clear_since=T0 - timedelta(hours=1)), facts(health))
    assert bool(found.closed) is is_over


def test_a_circuit_that_disables_ends_no_incident_but_an_operator_does():
    long_clear = incident(clear_since=T0 - timedelta(hours=1))
    assert not decided(long_clear, facts("disabled", disabled_by="circuit")).closed
    (closed,) = decided(long_clear, facts("disabled", disabled_by="operator")).closed
    assert closed.summary == "somebody has disabled mail"


def test_an_incident_closes_only_when_it_has_been_over_for_a_while():
    first = decided(incident(), facts("healthy"))
    assert (first.cleared, first.closed) == ((alerts.Cleared(7, T0),), ())
    assert decided(incident(clear_since=T0 - timedelta(seconds=29)), facts("healthy")).is_nothing
    assert decided(incident(clear_since=T0 - timedelta(seconds=30)), facts("healthy")).closed
    assert decided(incident(clear_since=T0), facts("failing")).cleared == (alerts.Cleared(7, None),)


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        (incident(), MessageKind.OPEN),
        (incident(told=told(599)), None),
        (incident(told=told(600)), MessageKind.REPEAT),
        (incident(told=told(9999, is_waiting=True)), None),
        (incident(AlertKind.DEAD_LETTER, told=told(600)), None),  # it has not happened again
        (incident(AlertKind.DEAD_LETTER, told=told(600), count=2), MessageKind.REPEAT),
        (incident(AlertKind.DEAD_LETTER, told=told(599), count=2), None),
    ],
)
def test_what_is_told_of_an_incident_that_goes_on(what: Incident, kind: MessageKind | None):
    found = decided(what, facts()).messages
    assert [message.kind for message in found] == ([] if kind is None else [kind])


def test_what_is_over_for_now_is_not_told_again():
    seen = Facts({"mail": Seen("mail", "disabled", disabled_by="circuit")})
    assert decided(incident(told=told(9999)), seen).messages == ()


def test_a_backlog_is_judged_by_the_rule_that_minds_first():
    rules = [replace(OPS, backlog_runs=100), replace(OPS, name="few", workers="m*", backlog_runs=10)]
    assert alerts.backlog_limit(rules, "mail") == 10
    assert alerts.backlog_limit(rules, "other") == 100
    found = decide(rules, [], facts("healthy", waiting_runs=10), T0, CALM, SURE)
    assert [kind for kind, _ in found.opened] == [AlertKind.BACKLOG]


@pytest.mark.parametrize("health", ["paused", "disabled"])
def test_what_somebody_has_stopped_opens_nothing_that_is_over_at_once(health: str):
    seen = facts(health, waiting_runs=5000, disabled_by="operator")
    for kind, _ in decide([OPS], [], seen, T0, CALM, SURE).opened:
        assert not decided(incident(kind, clear_since=T0 - timedelta(hours=1)), seen).closed


@pytest.mark.parametrize(
    ("patterns", "name", "is_one"),
    [("*", "mail", True), ("send-*", "send-mail", True), ("send-*", "mail", False), ("a, m?il", "mail", True)],
)
def test_patterns(patterns: str, name: str, is_one: bool):
    assert alerts.fits(patterns, name) is is_one


def test_what_happens_many_times_is_one_with_its_number_what_came_last_and_when_it_began():
    times = [T0 + timedelta(seconds=seconds) for seconds in (5, 3, 9)]
    many = [Happened(AlertKind.DEAD_LETTER, name, name, at, at.isoformat()) for at in times for name in ("b", "a")]
    assert [(what.subject, what.at, count, first) for what, count, first in alerts.together(many)] == [
        ("a", times[2], 3, times[1]),
        ("b", times[2], 3, times[1]),
    ]


@pytest.mark.parametrize("health", ["stalled", "late", "slow", "no_node"])
def test_what_may_pass_opens_nothing_before_it_has_lasted(health: str):
    kind = AlertKind(health)
    first = decide([OPS], [], replace(facts(health), suspected={}), T0, CALM, SURE)
    assert (first.opened, first.suspected) == ((), {(kind, "mail"): T0})
    soon = decide([OPS], [], replace(facts(health), suspected=long_suspected(SURE - 1)), T0, CALM, SURE)
    assert (soon.opened, soon.suspected) == ((), {(kind, "mail"): T0 - timedelta(seconds=SURE - 1)})
    passed = decide([OPS], [], facts("healthy"), T0, CALM, SURE)
    assert (passed.opened, passed.suspected) == ((), {})


def test_a_failure_is_no_matter_of_time():
    assert decide([OPS], [], replace(facts(), suspected={}), T0, CALM, SURE).opened


@pytest.mark.parametrize("kind", sorted(alerts.OF_HEALTH | {AlertKind.BACKLOG}))
def test_every_lasting_kind_has_its_sentence(kind: AlertKind):
    said = alerts.summary_of(kind, Seen("mail", str(kind), 10_001, last_error="no luck", consecutive_failures=3))
    assert "mail" in said
    assert said != alerts.summary_of(AlertKind.BACKLOG, Seen("mail", "x", 10_001)) or kind is AlertKind.BACKLOG


def test_pauses_double_to_five_minutes():
    assert [alerts.pause_after(n, 0.0) for n in (1, 2, 3, 9, 10, 2000)] == [1, 2, 4, 256, 300, 300]
    assert alerts.pause_after(3, -0.2) == pytest.approx(3.2)


def test_links_go_to_the_worker_or_to_the_incidents():
    assert alerts.link_to(None, "mail") is None
    assert alerts.link_to("https://x.example/ops/", "mail") == "https://x.example/ops/workers/mail"
    assert alerts.link_to("https://x.example", None) == "https://x.example/alerts"


def test_of_an_output_the_last_lines_are_shown():
    assert alerts.tail(None) == []
    assert alerts.tail("\n".join(map(str, range(30))), 2) == ["28", "29"]
    assert len(alerts.tail("x" * 1000)[0]) == 500


@pytest.mark.parametrize(
    "url",
    [
        "ftp://x.example/a",
        "https://",
        "https://ann:hush@x.example/",
        "https://token@x.example/",
        "https://x.example/?token=hush",
        "https://x.example/?api_key=hush",
        "https://x.example/a b",
        "https://[",
        "env:",
        "env:1",
    ],
)
def test_a_url_that_cannot_be_kept_is_refused_without_being_repeated(url: str):
    with pytest.raises(InvalidSetting) as refused:
        channels.webhook(url)
    assert "hush" not in str(refused.value)
    assert "env:NAME" in str(refused.value)


def test_channels_hold_references_and_are_shown_with_them():
    hook = channels.webhook("env:HOOK", "env:SECRET")
    assert hook == {"type": "webhook", "url": "env:HOOK", "secret": "env:SECRET"}
    assert channels.show(hook) == "webhook env:HOOK, signed"
    assert channels.show(channels.webhook("https://x.example/hook")) == "webhook https://x.example/hook"
    assert channels.show(channels.command(["notify-send", "jobs"])) == "command notify-send jobs"
    assert channels.show(channels.apprise("env:TELL")) == "apprise env:TELL"
    assert channels.show({}) == "None ?"


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: channels.webhook("https://x.example/", "hush"), id="secret"),
        pytest.param(lambda: channels.apprise("slack://hush"), id="apprise"),
        pytest.param(lambda: channels.command([]), id="command"),
    ],
)
def test_a_secret_in_the_open_is_refused(make: Any):
    with pytest.raises(InvalidSetting) as refused:
        make()
    assert "hush" not in str(refused.value)


def test_references_are_resolved_where_a_message_is_sent():
    assert channels.resolve("env:HOOK", {"HOOK": " https://x.example/ "}) == "https://x.example/"
    assert channels.resolve("https://x.example/", {}) == "https://x.example/"
    with pytest.raises(NotSent, match="the environment variable HOOK is not set here"):
        channels.resolve("env:HOOK", {})
