"""A payload against what its handler's node has said of it, where the code is elsewhere: the command line, HTTP.

`workers.payload_schema` is JSON Schema, which a node writes when it registers the handler. It may say less than the
handler checks, and never more: what is refused here, the handler would refuse. So only those keywords count of which
that is sure; what a schema says in others (`pattern`, `format`, `maxLength`) is for whoever makes a form of it. A
schema that cannot be read refuses nothing.
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

from jobrunner.errors import InvalidPayload
from jobrunner.model.unreadable import Unreadable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_SURE = (
    "$ref",
    "additionalProperties",
    "anyOf",
    "exclusiveMaximum",
    "exclusiveMinimum",
    "items",
    "maximum",
    "minItems",
    "minLength",
    "minimum",
    "prefixItems",
    "properties",
    "required",
    "type",
)
_MOST_PROBLEMS = 5
_KINDS = {
    "array": "a list",
    "boolean": "true or false",
    "integer": "a whole number",
    "null": "null",
    "number": "a number",
    "object": "an object",
    "string": "text",
}
_BOUNDS = {
    "minimum": "at least",
    "maximum": "at most",
    "exclusiveMinimum": "more than",
    "exclusiveMaximum": "less than",
}


def check_fits(worker: str, payload: Mapping[str, Any], schema: object) -> None:
    """Pass a payload that the worker's handler may take.

    Raises:
        InvalidPayload: the handler would refuse it; the message names each field that is wrong, and why.
    """
    if not schema or not isinstance(schema, dict) or isinstance(payload, Unreadable):
        return
    try:
        problems = _first(_problems(payload, schema), _MOST_PROBLEMS + 1)
    except Exception:  # noqa: BLE001 - a schema that anybody may have written: what cannot be read refuses nothing
        return
    if problems:
        shown = "; ".join(problems[:_MOST_PROBLEMS]) + ("; and more" if len(problems) > _MOST_PROBLEMS else "")
        raise InvalidPayload(f"{shown} (the payload does not fit the handler of {worker!r})")


def _first(problems: Iterator[str], most: int) -> list[str]:
    """Return the first that differ, and look for no more than these: a long list may have one in each element."""
    found: dict[str, None] = {}
    for problem in problems:
        found[problem] = None
        if len(found) == most:
            break
    return list(found)


def _problems(payload: Mapping[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    import referencing  # noqa: PLC0415 - a tenth of a second, with the next, that only checked payloads need

    nothing_else: Any = referencing.Registry()  # a reference to another document is not followed
    for error in _validator()(schema, registry=nothing_else).iter_errors(payload):
        yield from _sentences(error)


@functools.cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator, validators  # noqa: PLC0415 - as above

    known = Draft202012Validator.VALIDATORS
    rules = {name: known[name] for name in _SURE}
    rules |= {"oneOf": known["anyOf"], "enum": _enum, "const": _const}
    rules["maxItems"] = _unless("uniqueItems", known["maxItems"])  # a set is counted without what is there twice
    rules["type"] = _unless("const", _unless("enum", known["type"]))  # these say what it may be
    checker = Draft202012Validator.TYPE_CHECKER
    return validators.create(Draft202012Validator.META_SCHEMA, rules, type_checker=checker)


def _enum(_validator: Any, allowed: Any, value: Any, _schema: Any) -> Iterator[Any]:
    """As Python compares, to which `true` is 1: so does an enum's own lookup."""
    from jsonschema import ValidationError  # noqa: PLC0415 - as above

    if all(value != each for each in allowed):
        yield ValidationError("none of what it may be")


def _const(validator: Any, allowed: Any, value: Any, schema: Any) -> Iterator[Any]:
    yield from _enum(validator, [allowed], value, schema)


def _unless(keyword: str, rule: Any) -> Any:
    """Let a rule hold only where the schema has no such keyword beside it."""

    def check(validator: Any, said: Any, value: Any, schema: Any) -> Iterator[Any]:
        if keyword not in schema:
            yield from rule(validator, said, value, schema) or ()

    return check


def _sentences(error: Any) -> Iterator[str]:
    """Say what is wrong, by field. The value is not shown: it may be what nobody is to see."""
    path = [str(part) for part in error.absolute_path]
    if error.validator == "required":
        for name in error.validator_value:
            if name not in error.instance:
                yield f"{'.'.join([*path, name])}: is missing"
    elif error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        for name in error.instance:
            if name not in known:
                yield f"{'.'.join([*path, str(name)])}: is not known"
    else:
        yield f"{'.'.join(path) or 'payload'}: must be {_wanted(error)}"


def _wanted(error: Any) -> str:
    """Say what a value must be that breaks a rule."""
    rule, said = error.validator, error.validator_value
    if rule == "type":
        return " or ".join(_KINDS[kind] for kind in ([said] if isinstance(said, str) else said))
    if rule in _BOUNDS:
        return f"{_BOUNDS[rule]} {said}"
    if rule in {"enum", "const"}:
        return "one of " + ", ".join(json.dumps(value) for value in ([said] if rule == "const" else said))
    if rule in {"minItems", "maxItems"}:
        return f"a list of at {'least' if rule == 'minItems' else 'most'} {said}"
    if rule == "minLength":
        return f"at least {said} characters"
    if rule in {"anyOf", "oneOf"} and not any(each.relative_path for each in error.context):
        return " or ".join(dict.fromkeys(_wanted(each) for each in error.context))
    return "what the handler's annotation says"
