"""A form made from a handler's JSON Schema, and the payload that comes back from it. Pure.

Fields of the simple kinds (text, number, yes or no, one of several) have an input each; any other is written as JSON.
What is left empty is left out, so that the handler's own default holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobrunner.errors import InvalidPayload

PREFIX = "payload."
MOST_INPUTS = 40
_KINDS = {"string": "text", "integer": "number", "number": "number", "boolean": "flag"}
_FLAGS = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class Input:
    """One input: `kind` is `text`, `number`, `flag`, `choice` or `json`; `value` what stands in it."""

    name: str
    kind: str
    about: str
    value: str
    is_required: bool
    choices: tuple[str, ...] = ()
    is_whole: bool = False


def inputs_of(schema: object, values: object) -> list[Input] | None:
    """Return the inputs for what a schema says, filled with values; None: it says nothing that a form could be of."""
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    if not isinstance(schema, Mapping) or not isinstance(properties, Mapping) or not properties:
        return None
    if len(properties) > MOST_INPUTS:
        return None
    given = values if isinstance(values, Mapping) else {}
    required = schema.get("required")
    needed = {each for each in required if isinstance(each, str)} if isinstance(required, list) else set()
    return [_input(str(name), said, given, is_required=name in needed) for name, said in properties.items()]


def _input(name: str, said: object, given: Mapping[str, Any], *, is_required: bool) -> Input:
    whole = said if isinstance(said, Mapping) else {}
    plain = _without_null(whole)
    choices = plain.get("enum")
    about = str(whole.get("description") or "")
    if "default" in whole:
        about = f"{about}; else {json.dumps(whole['default'], ensure_ascii=False)}".removeprefix("; ")
    if isinstance(choices, list) and choices and all(isinstance(each, str) for each in choices):
        value = given.get(name)
        return Input(name, "choice", about, value if isinstance(value, str) else "", is_required, tuple(choices))
    kind = _KINDS.get(str(plain.get("type")), "json")
    value = given.get(name)
    shown = "" if name not in given else value if kind == "text" and isinstance(value, str) else _json(value)
    if name in given and kind == "text" and not isinstance(value, str):
        kind = "json"
    return Input(name, kind, about, shown, is_required, is_whole=plain.get("type") == "integer")


def _without_null(said: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a field may be beside null."""
    either = said.get("anyOf")
    if isinstance(either, list):
        others = [each for each in either if isinstance(each, Mapping) and each.get("type") != "null"]
        return others[0] if len(others) == 1 else {}
    return said


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def payload_of(inputs: list[Input], given: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the payload that was filled in; None: nothing was.

    Raises:
        InvalidPayload: an input holds what it cannot.
    """
    payload: dict[str, Any] = {}
    for each in inputs:
        text = given.get(PREFIX + each.name, "")
        if text == "":
            continue
        payload[each.name] = _read(each, text)
    return payload or None


def _read(each: Input, text: str) -> Any:
    if each.kind in {"text", "choice"}:
        return text
    if each.kind == "flag" and text in _FLAGS:
        return _FLAGS[text]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        what = "a number" if each.kind == "number" else "true or false" if each.kind == "flag" else "JSON"
        raise InvalidPayload(f"{each.name} must be {what}, not {text[:100]!r}") from None
