"""Forms of the verbs: a page each, which asks before it does; in a dialog where the page's script shows it there.

What a form takes, and what is done with it, are those of the API's route of the same path: the same function, the same
row in the audit log, the same level. What is refused comes back with what was typed, and why.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from starlette.routing import Route as Path

from jobrunner.errors import InvalidPayload, InvalidSetting, JobrunnerError
from jobrunner.policy.arguments import check_text, read_id
from jobrunner.policy.definitions import OVERRIDABLE
from jobrunner.policy.named_limits import FIELDS
from jobrunner.storage import bulk
from jobrunner.storage.reading import status as reading
from jobrunner.storage.reading.enabled import with_next_once_enabled
from jobrunner.storage.reading.named_limits import read_limit
from jobrunner.storage.reading.story import read_story
from jobrunner.storage.runs import dead_letters
from jobrunner.web.answers import Forbidden, told
from jobrunner.web.api import fields as f
from jobrunner.web.api.ask import Ask, raw_body
from jobrunner.web.api.fields import read_fields
from jobrunner.web.api.table import ROUTES
from jobrunner.web.pages import once, payload_form
from jobrunner.web.pages.page import COMMON
from jobrunner.web.pages.render import show_document
from jobrunner.web.pages.responses import back_to, html
from jobrunner.web.pages.tails import difference
from jobrunner.web.pages.verbs import VERBS, place_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.requests import Request
    from starlette.responses import Response

    from jobrunner.web.access import Level
    from jobrunner.web.api.fields import Field
    from jobrunner.web.api.table import Route
    from jobrunner.web.desk import Desk
    from jobrunner.web.pages.page import Render
    from jobrunner.web.pages.tails import Change
    from jobrunner.web.pages.verbs import Verb

    Endpoint = Callable[[Request], Awaitable[Response]]

_KINDS = {
    id(f.FLAG): "flag",
    id(f.OBJECT): "json",
    id(f.NUMBER): "text",
    id(f.TEXTS): "several",
}
_SHOW = "show"
"""The button that shows what was changed is called so, and changes nothing."""
_OURS = ("tz", _SHOW, once.FIELD)
_OF_PROGRAMS = frozenset({"create"})
"""Fields that a form does not offer: it is of something that is there."""
_HINTS = {id(f.TIME): "such as 2026-03-02 12:00"}
_ROUTES = {route.path.removeprefix("/api"): route for route in ROUTES if route.method == "POST"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One field of a form: its `kind` is `text`, `flag`, `json`, `several` or `choice`."""

    name: str
    kind: str
    about: str
    hint: str
    value: str
    choices: tuple[str, ...]
    is_required: bool


class Forms:
    """The forms' routes."""

    def __init__(self, desk: Desk, render: Render, wake: Callable[[], None]) -> None:
        """Make them; `render` fills a template, `wake` tells open pages that something was done."""
        self._desk = desk
        self._once = once.Once()
        self._render = render
        self._wake = wake

    def paths(self, behind: Callable[[Level, Endpoint], Endpoint]) -> list[Path]:
        """Return the routes: each form, and what it sends."""
        made = []
        for verb in VERBS:
            route = _ROUTES[verb.path]
            made.append(Path(verb.path, behind(route.level, self._show(verb, route)), methods=["GET"]))
            made.append(Path(verb.path, behind(route.level, self._do(verb, route)), methods=["POST"]))
        return made

    def _show(self, verb: Verb, route: Route) -> Endpoint:
        async def show(request: Request) -> Response:
            known = {field.name for field in route.fields} | {field.name for field in COMMON}
            given = {name: value for name, value in request.query_params.items() if name in known}
            return await self._form(verb, route, request, given)

        return show

    async def _form(
        self,
        verb: Verb,
        route: Route,
        request: Request,
        given: Mapping[str, str],
        refused: tuple[int, str] | None = None,
        *,
        shows_difference: bool = False,
    ) -> Response:
        """Answer with the form, filled with what was given; with how the payload differs from the one stored."""
        ask = self._ask(request)
        row = await self._subject(verb, ask)
        named = row.get("name") or row.get("worker") or row["id"]
        why_not = verb.why_not(row, ask.now)
        inputs = self._inputs(verb, row, given)
        changes = None
        if shows_difference:
            try:
                changes = _changes(row, given)
            except InvalidPayload as raised:
                refused = told(raised)
        status, message = refused or (200, None)
        facts = {
            "changes": changes,
            "can_differ": verb.name == "replay",
            "title": f"{verb.label.rstrip('…')}: {named}",
            "named": named,
            "verb": verb,
            "row": row,
            "why_not": why_not,
            "place": verb.place(row),
            "once": once.new_token(),
            "back": place_of(verb.subject, row),
            "asks": verb.asks(row),
            "entries": [
                self._entry(verb, field, row, given) for field in route.fields if field.name not in _OF_PROGRAMS
            ],
            "inputs": inputs,
            "commands": (verb.command(row),),
            "api": f"api/{verb.place(row)}",
            "refused": message,
        }
        body = await self._render("form.html", request, facts, given={k: v for k, v in given.items() if k == "tz"})
        return html(body, status)

    def _inputs(self, verb: Verb, row: Mapping[str, Any], given: Mapping[str, str]) -> list[payload_form.Input] | None:
        """Return the inputs for a payload, filled with what was typed, or with what the worker has."""
        if verb.name == "set":
            return [
                payload_form.Input(name, "setting", "", given.get(f"values.{name}", ""), False, (_now_is(row, name),))
                for name in (FIELDS if verb.subject == "limit" else OVERRIDABLE)
            ]
        if verb.name != "trigger":
            return None
        made = payload_form.inputs_of(row.get("payload_schema"), row.get("payload"))
        if made is None or not any(name.startswith(payload_form.PREFIX) for name in given):
            return made
        typed = {name.removeprefix(payload_form.PREFIX): value for name, value in given.items()}
        return [_typed(each, typed.get(each.name, "")) for each in made]

    def _entry(self, verb: Verb, field: Field, row: Mapping[str, Any], given: Mapping[str, str]) -> Entry:
        value = given.get(field.name)
        if value is None:
            value = _first_value(verb, field, row)
        choices = field.choices
        kind = "choice" if choices and not field.kind.is_several else _KINDS.get(id(field.kind), "text")
        if verb.name == "unset":
            choices = tuple(row.get("overrides") or ())
        return Entry(field.name, kind, field.about, _HINTS.get(id(field.kind), ""), value, choices, field.is_required)

    def _do(self, verb: Verb, route: Route) -> Endpoint:
        async def do(request: Request) -> Response:
            given = await _typed_in(request)
            ask = self._ask(request)
            row = await self._subject(verb, ask)
            typed = _single(given)
            if typed.pop(_SHOW, None) is not None and verb.name == "replay":
                return await self._form(verb, route, request, typed, shows_difference=True)
            token = typed.get(once.FIELD)
            async with self._once.turn(token and f"{verb.place(row)} {token}") as turn:
                if turn.said is None:
                    try:
                        wanted = self._wanted(verb, row, given)
                        fields = read_fields(route.fields, wanted, ask.now)
                        answer = await route.do(Ask(ask.desk, ask.level, ask.actor, ask.path, fields, ask.now))
                    except (JobrunnerError, Forbidden) as raised:
                        return await self._form(verb, route, request, _single(given), told(raised))
                    turn.said = _said(verb, row, answer)
            self._wake()
            return await self._answer(request, turn.said, place_of(verb.subject, row))

        return do

    async def _answer(self, request: Request, said: Mapping[str, str], place: str) -> Response:
        """Answer that it is done: to the page's script in a sentence, else by going back."""
        if "hx-request" in request.headers:
            body = await self._render("said.html", request, {"said": {"place": "", **said}})
            return html(
                body, headers={"HX-Retarget": "#said", "HX-Reswap": "innerHTML", "HX-Trigger": "jobrunner-done"}
            )
        return back_to(request, place, said)

    def _wanted(self, verb: Verb, row: Mapping[str, Any], given: list[tuple[str, str]]) -> dict[str, Any]:
        """Return the fields for the route from what was typed."""
        typed = _single(given)
        wanted: dict[str, Any] = {
            name: value for name, value in typed.items() if value.strip() and "." not in name and name not in _OURS
        }
        if verb.name == "replay" and _is_as_stored(row, wanted.get("payload")):
            del wanted["payload"]  # nobody edited it
        if verb.name == "unset":
            wanted["fields"] = [value for name, value in given if name == "fields"]
            if not wanted["fields"]:
                raise InvalidSetting("choose at least one field")
        if verb.name == "set":
            wanted["values"] = {
                name.removeprefix("values."): _setting(value)
                for name, value in typed.items()
                if name.startswith("values.") and value.strip()
            }
        if verb.name == "trigger" and "payload" not in wanted:
            inputs = payload_form.inputs_of(row.get("payload_schema"), row.get("payload"))
            payload = payload_form.payload_of(inputs, typed) if inputs is not None else None
            if payload is not None:
                wanted["payload"] = payload
        return wanted

    def _ask(self, request: Request) -> Ask:
        named = request.path_params
        path = {name: read_id(name, said) if name == "id" else check_text(name, said) for name, said in named.items()}
        return Ask(self._desk, request.state.level, request.state.actor, path, {}, self._desk.now())

    async def _subject(self, verb: Verb, ask: Ask) -> dict[str, Any]:
        """Return the row of what a verb is done to, as this one may see it."""
        if verb.subject == "run":
            async with ask.desk.database() as db:
                story = await read_story(db, ask.path["id"], ask.now, 1, says_why=False)
                async with db.read() as conn:
                    (shown,) = await ask.shown(conn, [story])
            return shown
        async with ask.desk.reading() as conn:
            if verb.subject == "worker":
                found = with_next_once_enabled(await reading.read_worker(conn, ask.path["name"]), ask.now)
            elif verb.subject == "limit":
                return await read_limit(conn, ask.path["name"])
            elif verb.subject == "letter":
                found = dict(await dead_letters.read_letter(conn, ask.path["id"]))
            else:
                return ask.published(await bulk.read_operation(conn, ask.path["id"]))
            (shown,) = await ask.shown(conn, [found])
        return shown


def _offered(route: Route) -> list[Field]:
    return [field for field in route.fields if field.name not in _OF_PROGRAMS]


def _said(verb: Verb, row: Mapping[str, Any], answer: Any) -> dict[str, str]:
    """Return what was done, and where it can be seen."""
    told_of = answer if isinstance(answer, dict) else {}
    place = {} if verb.shows is None or not told_of else {"place": verb.shows(told_of)}
    return {"text": verb.done(row, told_of), **place}


def _now_is(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    return "unset" if value is None else str(value)


def _typed(each: payload_form.Input, value: str) -> payload_form.Input:
    return payload_form.Input(each.name, each.kind, each.about, value, each.is_required, each.choices, each.is_whole)


def _first_value(verb: Verb, field: Field, row: Mapping[str, Any]) -> str:
    """Return what stands in a field of a form that was just opened."""
    if field.name == "payload" and verb.name == "replay":
        return show_document(row.get("payload"))
    return str(field.default) if field.choices and field.default else ""


def _changes(row: Mapping[str, Any], given: Mapping[str, str]) -> list[Change]:
    """Return how the payload that was typed differs from the one stored. Raises `InvalidPayload`."""
    typed = _json_of(given.get("payload", ""))
    return [] if _is_same(row, typed) else difference(show_document(row.get("payload")), show_document(typed))


def _is_as_stored(row: Mapping[str, Any], typed: str | None) -> bool:
    """Say whether the payload that was typed is the one stored."""
    try:
        return typed is not None and _is_same(row, _json_of(typed))
    except InvalidPayload:  # the route says what is wrong with it
        return False


def _is_same(row: Mapping[str, Any], typed: Any) -> bool:
    """Compare as text, since 1 and true are equal as values; the order of fields is the database's."""
    stored = _json_of(show_document(row.get("payload")))
    return json.dumps(stored, sort_keys=True) == json.dumps(typed, sort_keys=True)


def _json_of(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidPayload(f"the payload is no JSON: {error}") from None


def _setting(text: str) -> Any:
    """Return a value as it was typed: a number or another JSON value, else the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text.strip()


async def _typed_in(request: Request) -> list[tuple[str, str]]:
    """Return what a form has sent. Raises `TooLarge`."""
    given = parse_qsl((await raw_body(request)).decode("utf-8", "replace"), keep_blank_values=True)
    return [(name, value.replace("\r\n", "\n")) for name, value in given]  # browsers end the lines of a form so


def _single(given: list[tuple[str, str]]) -> dict[str, str]:
    return dict(given)
