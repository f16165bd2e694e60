"""A worker's definition in its three layers: what code says, what operators have set, and what holds. Pure."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobrunner.model.worker import JobPriority, WorkerConfig

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

_ELSEWHERE = frozenset({"name", "payload_schema", "depends_on", "blocks"})
_FIELDS = tuple(field.name for field in dataclasses.fields(WorkerConfig) if field.name not in _ELSEWHERE)
_DEFAULTS = WorkerConfig("default")
_WHAT_IS_DONE = frozenset({"handler", "execution_mode", "interval_seconds", "cron", "timezone", "isolation"})
_NOTHING: tuple[Any, ...] = (None, "", {}, [], ())
_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Change:
    """Who changed a field last, and when; `action` is that of the audit log."""

    at: datetime
    actor: str
    action: str


@dataclass(frozen=True, slots=True)
class Layer:
    """One field in its layers. `is_set`: an operator has set it; `changed`: by whom last, where the log tells."""

    name: str
    effective: Any
    code: Any
    override: Any
    is_set: bool
    is_default: bool
    changed: Change | None


def layers(row: Mapping[str, Any], audits: Iterable[Mapping[str, Any]]) -> list[Layer]:
    """Return the fields of a worker that have a value, those first that an operator has set.

    Args:
        row: all there is about the worker.
        audits: entries of the audit log on it, the newest first.
    """
    code, overrides = _object(row["definition"]), _object(row["overrides"])
    changes = _changes(audits)
    found = []
    for name in _FIELDS:
        said, effective = code.get(name), row.get(name, code.get(name))
        is_set = name in overrides
        if not is_set and name not in changes and said in _NOTHING and effective in _NOTHING:
            continue
        is_default = not is_set and name not in changes and name not in _WHAT_IS_DONE and _is_default(name, effective)
        holds, in_code, override = (_shown(name, value) for value in (effective, said, overrides.get(name)))
        found.append(Layer(name, holds, in_code, override, is_set, is_default, changes.get(name)))
    return sorted(found, key=lambda layer: not layer.is_set)


def _object(document: Any) -> Mapping[str, Any]:
    return document if isinstance(document, dict) else {}


def _is_default(name: str, value: Any) -> bool:
    default = getattr(_DEFAULTS, name)
    return bool(value == default or (value in _NOTHING and default in _NOTHING))


def _shown(name: str, value: Any) -> Any:
    return JobPriority(value).name if name == "priority" and value in set(JobPriority) else value


def _changes(audits: Iterable[Mapping[str, Any]]) -> dict[str, Change]:
    found: dict[str, Change] = {}
    for entry in audits:
        if entry["action"] not in {"set", "unset"}:
            continue
        detail = _object(entry["detail"])
        old, new = _object(detail.get("old")), _object(detail.get("new"))
        for name in {*old, *new}:
            if old.get(name, _ABSENT) != new.get(name, _ABSENT):
                found.setdefault(name, Change(entry["at"], entry["actor"], entry["action"]))
    return found
