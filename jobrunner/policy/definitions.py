"""What a worker definition must satisfy, and how an operator's overrides are laid over what code said.

`workers.definition` keeps what code said, `workers.overrides` what operators set, both as JSON documents of this
module's shape; the columns hold the two merged. A deploy writes the first and never touches the second.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar, cast

from jobrunner.errors import InvalidPayload, InvalidSchedule, InvalidWorker
from jobrunner.model.limits import LONGEST_SECONDS
from jobrunner.model.worker import (
    Dependency,
    DependencyCondition,
    Isolation,
    JobPriority,
    Misfire,
    WorkerConfig,
    WorkerExecutionMode,
)
from jobrunner.policy import cron, limit_options
from jobrunner.policy.channels import secret_in
from jobrunner.policy.documents import refuse_nesting
from jobrunner.policy.schedule import DEFAULT_INTERVAL_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DEFAULT_PAUSE_SECONDS = 1.0
LONGEST_KEY = 200
MAX_PAYLOAD_BYTES = 1024 * 1024
_MAX_COUNT = 2**31 - 1
_Choice = TypeVar("_Choice", bound=StrEnum)
_write_json = json.JSONEncoder(allow_nan=False, ensure_ascii=False).encode
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_URL = re.compile(r"https?://[^\s/?#]+[!-~]*\Z")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}\Z")

_TO_TEXT = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
_DOCUMENT_FIELDS = tuple(field.name for field in dataclasses.fields(WorkerConfig) if field.name != "name")

OVERRIDABLE = (
    "interval_seconds",
    "cron",
    "timezone",
    "jitter_seconds",
    "timeout_seconds",
    "max_retries",
    "retry_delay_seconds",
    "retry_backoff",
    "retry_max_delay_seconds",
    "priority",
    "max_consecutive_failures",
    "cooldown_seconds",
    "max_running",
    "misfire",
    "memory_limit_mb",
    "payload",
    "hidden_fields",
    "ping",
    "limit_key",
    "max_running_per_key",
    "rate",
    "rate_per_key",
    "smooth",
    "fair",
    "ordered",
    "description",
)


def check_name(name: object) -> str:
    """Return a valid worker name, or raise `InvalidWorker`."""
    if not isinstance(name, str) or not _NAME.match(name):
        raise InvalidWorker(str(name), "a name is 1 to 200 letters, digits, '.', '_' or '-'")
    return name


def check_definition(config: WorkerConfig) -> WorkerConfig:
    """Return `config` with the defaults of its mode filled in and its values in their own types.

    Raises:
        InvalidWorker: a value is out of range or two contradict each other; the message says which.
    """
    name = check_name(config.name)
    limit_options.check(name, config)
    mode = _enum(name, "execution_mode", WorkerExecutionMode, config.execution_mode)
    return dataclasses.replace(
        config,
        execution_mode=mode,
        interval_seconds=_interval(config, mode),
        priority=parse_priority(name, config.priority),
        misfire=_enum(name, "misfire", Misfire, config.misfire),
        isolation=None if config.isolation is None else _enum(name, "isolation", Isolation, config.isolation),
        jitter_seconds=_seconds(name, "jitter_seconds", config.jitter_seconds, least=0.0),
        timeout_seconds=_seconds(name, "timeout_seconds", config.timeout_seconds, above=0.0),
        max_retries=_count(name, "max_retries", config.max_retries, least=0),
        retry_delay_seconds=_seconds(name, "retry_delay_seconds", config.retry_delay_seconds, least=0.0),
        retry_backoff=_seconds(name, "retry_backoff", config.retry_backoff, least=1.0),
        retry_max_delay_seconds=_seconds(name, "retry_max_delay_seconds", config.retry_max_delay_seconds, least=0.0),
        max_consecutive_failures=_count(name, "max_consecutive_failures", config.max_consecutive_failures, least=1),
        cooldown_seconds=(
            None
            if config.cooldown_seconds is None
            else _seconds(name, "cooldown_seconds", config.cooldown_seconds, above=0.0)
        ),
        max_running=_count(name, "max_running", config.max_running, least=1),
        memory_limit_mb=(
            None if config.memory_limit_mb is None else _count(name, "memory_limit_mb", config.memory_limit_mb, least=1)
        ),
        description=_text(name, "description", config.description),
        depends_on=_dependencies(name, config.depends_on),
        blocks=_blocks(name, config.blocks),
        limits=limit_options.checked_limits(name, config.limits),
        payload=_payload(name, config.payload),
        hidden_fields=_hidden_fields(name, config.hidden_fields),
        ping=None if config.ping is None else _ping(name, config.ping),
        max_running_per_key=(
            None
            if config.max_running_per_key is None
            else _count(name, "max_running_per_key", config.max_running_per_key, least=1)
        ),
        rate=limit_options.checked_rate(name, "rate", config.rate),
        rate_per_key=limit_options.checked_rate(name, "rate_per_key", config.rate_per_key),
    )


def _interval(config: WorkerConfig, mode: WorkerExecutionMode) -> float | None:
    """Check what makes the worker due; return its `interval_seconds`, the mode's default if it has none."""
    name, interval = config.name, config.interval_seconds
    if config.interval_seconds is not None and config.cron is not None:
        raise InvalidWorker(name, "has both interval_seconds and cron; keep one")
    try:
        cron.check_timezone(config.timezone)
        if config.cron is not None:
            cron.check_expression(config.cron, config.timezone)
    except InvalidSchedule as error:
        raise InvalidWorker(name, str(error)) from None
    if mode is WorkerExecutionMode.TRIGGERED:
        if interval is not None or config.cron is not None:
            raise InvalidWorker(name, "is triggered, so it takes no interval_seconds and no cron")
        return None
    if mode is WorkerExecutionMode.CONTINUOUS:
        if config.cron is not None:
            raise InvalidWorker(name, "is continuous, so it takes no cron; interval_seconds is its pause")
        interval = DEFAULT_PAUSE_SECONDS if interval is None else interval
        return _seconds(name, "interval_seconds", interval, least=0.0)
    if config.cron is not None:
        return None
    interval = DEFAULT_INTERVAL_SECONDS if interval is None else interval
    return _seconds(name, "interval_seconds", interval, least=0.001)


def parse_priority(name: str, value: object) -> JobPriority:
    """Read a priority given as a member, a number 0 to 3 or a name in any case."""
    if isinstance(value, JobPriority):
        return value
    if isinstance(value, str) and value.upper() in JobPriority.__members__:
        return JobPriority[value.upper()]
    if isinstance(value, int) and not isinstance(value, bool) and value in JobPriority.__members__.values():
        return JobPriority(value)
    raise InvalidWorker(name, f"priority {value!r} is none of LOW (0), NORMAL (1), HIGH (2), CRITICAL (3)")


def _enum(name: str, field: str, kind: type[_Choice], value: object) -> _Choice:
    if isinstance(value, kind):
        return value
    try:
        return kind(str(value))
    except ValueError:
        choices = ", ".join(kind)
        raise InvalidWorker(name, f"{field} {value!r} is none of {choices}") from None


def _seconds(name: str, field: str, value: object, least: float | None = None, above: float | None = None) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidWorker(name, f"{field} must be a number, not {value!r}")
    if least is not None and value < least:
        raise InvalidWorker(name, f"{field} must be at least {least:g}, not {value:g}")
    if above is not None and value <= above:
        raise InvalidWorker(name, f"{field} must be more than {above:g}, not {value:g}")
    if value > LONGEST_SECONDS:
        raise InvalidWorker(name, f"{field} must be at most {LONGEST_SECONDS:g} (100 years), not {value:g}")
    return float(value)


def _count(name: str, field: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidWorker(name, f"{field} must be a whole number, not {value!r}")
    if not least <= value <= _MAX_COUNT:
        raise InvalidWorker(name, f"{field} must be {least} to {_MAX_COUNT}, not {value}")
    return value


def _text(name: str, field: str, value: object) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise InvalidWorker(name, f"{field} must be text")
    return value


def _dependencies(name: str, given: object) -> tuple[Dependency, ...]:
    if isinstance(given, str) or not isinstance(given, list | tuple | set | frozenset):
        raise InvalidWorker(name, f"depends_on must be a list of worker names, not {given!r}")
    found: dict[str, Dependency] = {}
    for item in given:
        edge = item if isinstance(item, Dependency) else Dependency(item)
        other = check_name(edge.depends_on)
        if other == name:
            raise InvalidWorker(name, "depends on itself; take it out of depends_on")
        max_age = edge.max_age_seconds
        found[other] = Dependency(
            other,
            _enum(name, "condition", DependencyCondition, edge.condition),
            None if max_age is None else _seconds(name, "max_age_seconds", max_age, above=0.0),
        )
    return tuple(found[key] for key in sorted(found))


def _blocks(name: str, given: object) -> tuple[str, ...]:
    if isinstance(given, str) or not isinstance(given, list | tuple | set | frozenset):
        raise InvalidWorker(name, f"blocks must be a list of worker names, not {given!r}")
    others = {check_name(other) for other in given}
    if name in others:
        raise InvalidWorker(name, "blocks itself; one run at a time is max_running=1, the default")
    return tuple(sorted(others))


def _payload(name: str, payload: object) -> dict[str, Any]:
    try:
        return check_payload(payload)
    except InvalidPayload as error:
        raise InvalidWorker(name, str(error)) from None


def _hidden_fields(name: str, given: object) -> tuple[str, ...]:
    if isinstance(given, str) or not isinstance(given, list | tuple | set | frozenset):
        raise InvalidWorker(name, f"hidden_fields must be a list of the payload's fields, not {given!r}")
    for field in given:
        if not isinstance(field, str) or not field or not field.isprintable():
            raise InvalidWorker(name, f"hidden_fields: {field!r} is no name of a field")
    return tuple(sorted(set(given)))


def _ping(name: str, given: object) -> str:
    if not isinstance(given, str) or not _URL.match(given):
        raise InvalidWorker(name, "ping must be a URL that begins with https:// or http://")
    secret = secret_in(given)
    if secret is not None:
        raise InvalidWorker(
            name, f"ping: a URL with {secret} is not stored, since who may read sees it; leave that out"
        )
    return given


def check_key(key: object) -> str | None:
    """Return a usable uniqueness key (None: no key), or raise `InvalidPayload`."""
    if key is None:
        return None
    if not isinstance(key, str) or not 1 <= len(key) <= LONGEST_KEY or not key.isprintable():
        raise InvalidPayload(f"a key is 1 to {LONGEST_KEY} printable characters")
    return key


def check_payload(payload: object) -> dict[str, Any]:
    """Return `payload` if it is a JSON object of at most 1 MiB; None is the empty one.

    Raises:
        InvalidPayload: it is something else, holds something JSON cannot say, or is too large.
    """
    if payload is None:
        return {}
    payload_text(payload)
    return cast("dict[str, Any]", payload)


def payload_text(payload: object) -> str:
    """Write a payload as JSON, checked as by `check_payload`."""
    if not isinstance(payload, dict):
        raise InvalidPayload(f"the payload must be a JSON object, not {_json_kind(payload)}")
    if not payload:
        return "{}"
    try:
        text = _write_json(payload)
        refuse_nesting(text)
        size = len(text) if text.isascii() else len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidPayload(f"the payload cannot be written as JSON: {error}") from None
    if "u0000" in text and _NUL.search(text):
        raise InvalidPayload("the payload holds a NUL character, which a database cannot store; take it out")
    for key in payload:
        if not isinstance(key, str):
            raise InvalidPayload("the payload's keys must be text")
    if size > MAX_PAYLOAD_BYTES:
        raise InvalidPayload(f"the payload is {size:,} bytes, the most is {MAX_PAYLOAD_BYTES:,} (1 MiB)")
    return text


def _json_kind(value: object) -> str:
    if isinstance(value, bool):
        return "true or false"
    kinds = {list: "a list", tuple: "a list", str: "text", int: "a number", float: "a number"}
    return kinds.get(type(value), type(value).__name__)


def to_document(config: WorkerConfig) -> dict[str, Any]:
    """Write a definition as the JSON document kept in `workers.definition`."""
    document = {name: getattr(config, name) for name in _DOCUMENT_FIELDS}
    document["depends_on"] = [dataclasses.asdict(edge) for edge in config.depends_on]
    document["blocks"] = list(config.blocks)
    document["priority"] = int(config.priority)
    document["hidden_fields"] = list(config.hidden_fields)
    document["limits"] = list(config.limits)
    return document


def from_document(name: str, document: Mapping[str, Any], overrides: Mapping[str, Any]) -> WorkerConfig:
    """Merge what code said with what operators set, and check the result.

    An override of `interval_seconds` takes the place of a `cron`, and the other way round.
    """
    merged = {**document, **overrides}
    if overrides.get("interval_seconds") is not None:
        merged["cron"] = None
    if overrides.get("cron") is not None:
        merged["interval_seconds"] = None
    known = {field.name for field in dataclasses.fields(WorkerConfig)} - {"name"}
    merged = {key: value for key, value in merged.items() if key in known}
    try:
        merged["depends_on"] = tuple(Dependency(**edge) for edge in merged.get("depends_on", ()))
        merged["blocks"] = tuple(merged.get("blocks", ()))
        merged["hidden_fields"] = tuple(merged.get("hidden_fields", ()))
        merged["limits"] = tuple(merged.get("limits", ()))
    except TypeError:
        raise InvalidWorker(name, "its stored definition names no usable depends_on and blocks") from None
    return check_definition(WorkerConfig(name=name, **merged))


def with_replaced(before: WorkerConfig, after: WorkerConfig, named: Iterable[str]) -> list[str]:
    """Return the fields whose overrides were changed by name, and the one that another one's change has changed, too.

    Of `interval_seconds` and `cron` a definition has one: either takes the other's place, and gives it back.
    """
    fields = list(named)
    either = [field for field in ("interval_seconds", "cron") if field not in fields]
    return fields + [field for field in either if getattr(before, field) != getattr(after, field)]


def still_fitting(document: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the overrides that mean nothing in the mode the code has now.

    They stay stored; but what an operator once set never keeps a new version of the code from starting.
    """
    mode = str(document.get("execution_mode"))
    meaningless = {"triggered": {"interval_seconds", "cron"}, "continuous": {"cron"}}.get(mode, set())
    return {name: value for name, value in overrides.items() if name not in meaningless}


def usable_overrides(name: str, document: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the overrides with which the definition would not hold together, each judged beside those before it.

    `admin set` refuses such values. Written into the table by hand, they must keep no node from starting.
    """
    usable: dict[str, Any] = {}
    for field, value in overrides.items():
        try:
            from_document(name, document, {**usable, field: value})
        except InvalidWorker:
            continue
        usable[field] = value
    return usable


def definition_hash(document: Mapping[str, Any]) -> str:
    """Return a stable hash of a definition document, by which an unchanged one is not written again."""
    text = _TO_TEXT.encode(document)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
