"""JSON Schema of a handler's payload that says no more than is sure.

It is made by pydantic, from the model that checks the payload before an attempt (`handlers.py`), as far as it is sure
what that check lets pass. What it cannot be sure of is left open, and so passes until the attempt:

- validators of the program's own, before, around or in place of pydantic's: they may take anything;
- what a type says of itself in JSON Schema (`WithJsonSchema`, `json_schema_extra`): its validator may do otherwise;
- limits that are checked after a validator of the program's own has changed the value;
- fields that may be given by several names.

Nothing in it depends on where and when the program runs, or each start would be a new definition: no default is told
(it may be the machine's name, the time, or a secret).
"""

from __future__ import annotations

from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

if TYPE_CHECKING:
    from collections.abc import Mapping

_SURE = frozenset(
    {
        *("any", "bool", "bytes", "date", "datetime", "decimal", "enum", "float", "int", "literal", "none", "str"),
        *("time", "timedelta", "uuid", "dict", "frozenset", "list", "set", "tuple", "nullable", "union"),
        *("tagged-union", "default", "definitions", "definition-ref", "function-after", "json-or-python"),
        *("lax-or-strict", "model", "model-fields", "model-field", "dataclass", "dataclass-args", "dataclass-field"),
        *("typed-dict", "typed-dict-field"),
    }
)
_WITH_FIELDS = frozenset({"model-fields", "dataclass-args", "typed-dict"})
_PLAIN = str | int | float | bool | None


class SureSchema(GenerateJsonSchema):
    """See the module."""

    known: Mapping[str, Any] = MappingProxyType({})

    def generate_inner(self, schema: Any) -> Any:
        """Return what is said of a part; `{}` of what is not sure."""
        if _is_sure(schema):
            return super().generate_inner({**schema, "metadata": _names_only(schema.get("metadata"))})
        return super().generate_inner(core_schema.any_schema(ref=schema["ref"])) if "ref" in schema else {}

    def definitions_schema(self, schema: Any) -> Any:
        """Note what is defined, so that a default inside can be found."""
        self.known = {each["ref"]: each for each in schema["definitions"]}
        return super().definitions_schema(schema)

    def field_is_required(self, field: Any, total: bool) -> bool:
        """Say whether a field must be there."""
        return super().field_is_required(field, total) and not self._has_default(field["schema"], set())

    def _has_default(self, schema: Any, seen: set[str]) -> bool:
        """Look for a default inside, which may be found however deep it lies."""
        if schema["type"] == "definition-ref":
            ref = schema["schema_ref"]
            return ref in seen or ref not in self.known or self._has_default(self.known[ref], {*seen, ref})
        if schema["type"] == "default":
            return True
        inner = schema.get("schema")
        return inner is not None and self._has_default(inner, seen)

    def default_schema(self, schema: Any) -> Any:
        """Return what the value must be, without the default."""
        return self.generate_inner(schema["schema"])

    def model_schema(self, schema: Any) -> Any:
        """Return what a model says by its fields alone."""
        return self._of_class(schema)

    def dataclass_schema(self, schema: Any) -> Any:
        """Likewise."""
        return self._of_class(schema)

    def typed_dict_schema(self, schema: Any) -> Any:
        """Likewise."""
        total = schema.get("total", True)
        named = [(name, self.field_is_required(each, total), each) for name, each in schema["fields"].items()]
        return _closed(self._named_required_fields_schema(named), schema.get("extra_behavior"), schema.get("config"))

    def _of_class(self, schema: Any) -> Any:
        shape = self.generate_inner(schema["schema"])
        if schema["schema"]["type"] not in _WITH_FIELDS:
            return shape  # a root model, or fields behind a function
        shape = {**shape, "title": schema.get("config", {}).get("title", schema["cls"].__name__)}
        return _closed(shape, schema["schema"].get("extra_behavior"), schema.get("config"))

    def bytes_schema(self, schema: Any) -> Any:  # noqa: ARG002 - its lengths are counted in bytes, not characters
        """Return that it is text."""
        return {"type": "string", "format": "binary"}

    def date_schema(self, schema: Any) -> Any:  # noqa: ARG002 - the base's signature
        """Return that it is text."""
        return {"type": "string", "format": "date"}

    def time_schema(self, schema: Any) -> Any:  # noqa: ARG002 - the base's signature
        """Return that it is text."""
        return {"type": "string", "format": "time"}

    def datetime_schema(self, schema: Any) -> Any:  # noqa: ARG002 - the base's signature
        """Return that it is text."""
        return {"type": "string", "format": "date-time"}

    def timedelta_schema(self, schema: Any) -> Any:  # noqa: ARG002 - the base's signature
        """Return that it is text."""
        return {"type": "string", "format": "duration"}


def _is_sure(schema: Any) -> bool:
    kind = schema["type"]
    if kind not in _SURE:
        return False
    if kind == "default":
        return bool(schema.get("on_error", "raise") == "raise")
    if kind == "enum":
        looks_further = schema["cls"]._missing_.__func__ is not Enum._missing_.__func__  # type: ignore[attr-defined]
        return not looks_further and all(isinstance(member.value, _PLAIN) for member in schema["members"])
    if kind in {"model", "dataclass", "typed-dict"}:
        inner = schema if kind == "typed-dict" else schema["schema"]
        return not schema.get("custom_init") and _has_one_name_each(inner, schema.get("config") or {})
    return True


def _has_one_name_each(shape: Any, config: Any) -> bool:
    """Say whether each field is given by one name, which the schema can tell."""
    if shape["type"] not in _WITH_FIELDS:
        return True
    named = shape["fields"].items() if isinstance(shape["fields"], dict) else [(f["name"], f) for f in shape["fields"]]
    by_both = bool(config.get("validate_by_name")) or config.get("validate_by_alias") is False
    return all(
        field.get("init") is not False
        and isinstance(field.get("validation_alias", name), str)
        and not (by_both and field.get("validation_alias", name) != name)
        for name, field in named
    )


def _closed(shape: dict[str, Any], extra: str | None, config: Any) -> dict[str, Any]:
    """Refuse what has no field, if the class does."""
    said = extra or (config or {}).get("extra_fields_behavior")
    return {**shape, "additionalProperties": False} if said == "forbid" else shape


def _names_only(metadata: Any) -> dict[str, Any]:
    """Keep title and description of what is known of a type or field, which no check reads."""
    updates = (metadata or {}).get("pydantic_js_updates") or {}
    kept = {name: updates[name] for name in ("title", "description") if isinstance(updates.get(name), str)}
    return {"pydantic_js_updates": kept} if kept else {}
