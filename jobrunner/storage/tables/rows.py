"""Between rows and the model's values: one place that knows which column becomes which field."""

from __future__ import annotations

import dataclasses
import functools
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.model.run import Run, RunState, Trigger
from jobrunner.model.unreadable import Unreadable
from jobrunner.model.worker import (
    CircuitState,
    Isolation,
    JobPriority,
    Misfire,
    WorkerConfig,
    WorkerExecutionMode,
    WorkerState,
)
from jobrunner.policy.rates import unreadable_rate
from jobrunner.storage.tables import define as t

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_EDGES = {"depends_on", "blocks", "limits"}
_FLAGS = ("smooth", "fair", "ordered")
CONFIG_FIELDS = tuple(f.name for f in dataclasses.fields(WorkerConfig) if f.name not in _EDGES)
STATE_FIELDS = tuple(f.name for f in dataclasses.fields(WorkerState))
WRITTEN_STATE_FIELDS = tuple(name for name in STATE_FIELDS if name != "worker")
RUN_FIELDS = tuple(f.name for f in dataclasses.fields(Run))

CONFIG_COLUMNS: list[sa.Column[Any]] = [t.workers.c[name] for name in CONFIG_FIELDS]
STATE_COLUMNS: list[sa.Column[Any]] = [t.worker_state.c[name] for name in STATE_FIELDS]
RUN_COLUMNS: list[sa.Column[Any]] = [t.runs.c[name] for name in RUN_FIELDS]


def config_of(values: Iterable[Any]) -> WorkerConfig:
    """Build a definition, without its edges, from the values of `CONFIG_COLUMNS`."""
    found = dict(zip(CONFIG_FIELDS, values, strict=True))
    found["execution_mode"] = WorkerExecutionMode(found["execution_mode"])
    found["priority"] = JobPriority(found["priority"])
    found["misfire"] = Misfire(found["misfire"])
    found["isolation"] = Isolation(found["isolation"])
    found["hidden_fields"] = tuple(map(str, found["hidden_fields"]))
    found |= {flag: bool(found[flag]) for flag in _FLAGS}
    return WorkerConfig(**found)


def config_or_problem(values: Sequence[Any]) -> tuple[WorkerConfig, str | None]:
    """Build a definition as `config_of` does; where that cannot be, one that starts nothing, and why."""
    try:
        config = config_of(values)
    except ValueError as error:
        return WorkerConfig(str(values[0]), execution_mode=WorkerExecutionMode.TRIGGERED), f"its definition: {error}"
    if isinstance(config.payload, Unreadable):
        return config, f"its payload cannot be read: {config.payload.problem}"
    return config, unreadable_rate(config)


def state_of(values: Iterable[Any]) -> WorkerState:
    """Build a worker's state from the values of `STATE_COLUMNS`."""
    found = dict(zip(STATE_FIELDS, values, strict=True))
    found["circuit_state"] = CircuitState(found["circuit_state"])
    found["is_enabled"] = bool(found["is_enabled"])
    return WorkerState(**found)


def run_of(values: Iterable[Any]) -> Run:
    """Build a run from the values of `RUN_COLUMNS`."""
    found = dict(zip(RUN_FIELDS, values, strict=True))
    found["trigger"] = Trigger(found["trigger"])
    found["state"] = RunState(found["state"])
    found["is_forced"] = bool(found["is_forced"])
    found["is_rated"] = bool(found["is_rated"])
    return Run(**found)


def state_values(state: WorkerState) -> dict[str, Any]:
    """Return the columns of a worker's state as bind parameters, the key as `key_worker`."""
    values = {name: getattr(state, name) for name in WRITTEN_STATE_FIELDS}
    values["circuit_state"] = str(state.circuit_state)
    values["key_worker"] = state.worker
    return values


@functools.cache
def write_state_statement() -> sa.Update:
    """Build the statement that writes one worker's whole state; its row is locked by whoever runs it."""
    s = t.worker_state
    values = {name: sa.bindparam(name, type_=s.c[name].type) for name in WRITTEN_STATE_FIELDS}
    return sa.update(s).where(s.c.worker == sa.bindparam("key_worker")).values(values)


def to_json(rows: Iterable[Mapping[str, Any]]) -> str:
    """Write rows as the JSON array that `Dialect.rows` reads; times become UTC text that both databases take."""
    return json.dumps(list(rows), default=_time_text, separators=(",", ":"))


def names_json(names: Iterable[str]) -> str:
    """Write names as the JSON array that `Dialect.rows(..., name=...)` reads."""
    return json.dumps([{"name": name} for name in names])


def _time_text(value: object) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(sep=" ", timespec="microseconds")[:26] + "+00:00"
    msg = f"{type(value).__name__} cannot be a value of a row"
    raise TypeError(msg)
