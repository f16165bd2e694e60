"""Parts of the console that need no server: vendored files, forms of schemas, verbs, links, documents."""

from __future__ import annotations

import hashlib
import tomllib
from datetime import UTC, datetime, timedelta
from importlib import resources
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobrunner.errors import InvalidPayload
from jobrunner.web.api.table import ROUTES
from jobrunner.web.pages.links import own_base
from jobrunner.web.pages.payload_form import inputs_of, payload_of
from jobrunner.web.pages.render import environment, show_document
from jobrunner.web.pages.verbs import VERBS, buttons

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
STATIC = resources.files("jobrunner.web") / "static"
WORKER: dict[str, Any] = {
    "name": "mail",
    "is_enabled": True,
    "circuit_state": "closed",
    "consecutive_failures": 0,
    "paused_until": None,
    "paused_by": None,
    "disabled_reason": None,
    "disabled_actor": None,
    "running_runs": 0,
    "pending_runs": 0,
    "execution_mode": "scheduled",
    "nodes": ["n1"],
    "overrides": {},
}


def test_the_vendored_files_are_those_of_their_package():
    said = tomllib.loads((STATIC / "VENDORED.toml").read_text())
    sums = said["htmx"]["sha256"]
    assert {name: hashlib.sha256((STATIC / name).read_bytes()).hexdigest() for name in sums} == sums
    scripts = {file.name for file in STATIC.iterdir() if file.name.endswith(".js")}
    assert scripts == {name for name in sums if name.endswith(".js")} | {"console.js"}


def test_no_template_and_no_script_of_ours_needs_what_the_policy_forbids():
    templates = resources.files("jobrunner.web") / "templates"
    for file in templates.iterdir():
        text = file.read_text()
        assert " style=" not in text, file.name
        assert "<style" not in text, file.name
        assert "<script>" not in text, file.name
        assert "hx-on" not in text, file.name
        assert " onclick" not in text, file.name
        assert "| safe" not in text, file.name
        assert "://" not in text.replace("http://www.w3.org/2000/svg", ""), file.name
    script = (STATIC / "console.js").read_text()
    assert "eval(" not in script
    assert "innerHTML =" not in script


def test_every_verb_has_its_route_in_the_api():
    posts = {route.path.removeprefix("/api") for route in ROUTES if route.method == "POST"}
    assert {verb.path for verb in VERBS} == posts - {"/bulk"}


@pytest.mark.parametrize(
    ("changed", "possible"),
    [
        ({}, {"disable", "pause", "trigger", "set"}),
        ({"is_enabled": False}, {"enable", "pause", "trigger", "set"}),
        ({"consecutive_failures": 2}, {"enable", "disable", "pause", "trigger", "set"}),
        ({"paused_until": NOW + timedelta(hours=1)}, {"disable", "pause", "resume", "trigger", "set"}),
        ({"paused_until": NOW - timedelta(hours=1)}, {"disable", "pause", "trigger", "set"}),
        ({"overrides": {"cron": None}}, {"disable", "pause", "trigger", "set", "unset"}),
    ],
)
def test_only_what_the_state_allows_can_be_pressed(changed, possible):
    found = buttons("worker", {**WORKER, **changed}, NOW)
    assert {each.verb.name for each in found if each.why_not is None} == possible
    assert all(each.why_not for each in found if each.verb.name not in possible)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "It runs at the next time of its schedule"),
        ({"is_enabled": False, "disabled_actor": "bob", "disabled_reason": "no"}, "It was disabled by bob: no."),
        ({"pending_runs": 2}, "2 runs that wait may start at once."),
        ({"nodes": []}, "No live node has its code"),
        ({"paused_until": NOW}, "It stays paused"),
    ],
)
def test_enabling_says_what_it_leads_to(changed, said):
    (verb,) = [verb for verb in VERBS if verb.name == "enable"]
    assert said in verb.asks({**WORKER, **changed})


@pytest.mark.parametrize(
    ("path", "base"), [("/", "./"), ("/runs", "./"), ("/runs/8", "../"), ("/runs/8/cancel", "../../")]
)
def test_the_way_home_is_as_long_as_the_path(path, base):
    assert own_base(path) == base


SCHEMA = {
    "type": "object",
    "properties": {
        "to": {"type": "string", "description": "to whom"},
        "order": {"type": "integer", "default": 0},
        "price": {"anyOf": [{"type": "number"}, {"type": "null"}]},
        "urgent": {"type": "boolean"},
        "size": {"enum": ["s", "m"]},
        "lines": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["to"],
}


def test_a_form_is_made_from_a_schema_and_gives_a_payload_of_its_types():
    inputs = inputs_of(SCHEMA, {"order": 7})
    assert inputs is not None
    assert [(each.name, each.kind, each.is_required) for each in inputs] == [
        ("to", "text", True),
        ("order", "number", False),
        ("price", "number", False),
        ("urgent", "flag", False),
        ("size", "choice", False),
        ("lines", "json", False),
    ]
    assert inputs[1].value == "7"
    typed = {"to": "17", "order": "3", "price": "", "urgent": "true", "size": "m", "lines": '["a"]'}
    payload = payload_of(inputs, {f"payload.{name}": value for name, value in typed.items()})
    assert payload == {"to": "17", "order": 3, "urgent": True, "size": "m", "lines": ["a"]}
    with pytest.raises(InvalidPayload, match="order must be a number, not 'many'"):
        payload_of(inputs, {"payload.order": "many"})
    assert payload_of(inputs, {}) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON, JSON)
def test_no_schema_is_too_strange_for_a_form(schema, values):
    inputs_of(schema, values)
    inputs_of({"properties": schema}, values)
    inputs_of({"properties": {"a": schema}, "required": values}, values)


@given(st.text())
def test_what_is_shown_holds_no_markup_and_no_control_characters(text):
    shown = environment().from_string("{{ text }}").render(text=text)
    assert "<" not in shown
    assert all(character.isprintable() or character in "\n\t" for character in shown)


@given(JSON)
def test_every_document_can_be_shown(value):
    assert isinstance(show_document(value), str)
