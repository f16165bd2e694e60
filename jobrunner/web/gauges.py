"""The database's gauges as families of metrics; `metrics` says when they are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client.core import GaugeMetricFamily

from jobrunner.model.worker import JobPriority

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from datetime import datetime

    from jobrunner.storage.reading.gauges import Gauges

_OTHER = "_other"
_DATABASE = "The database's; take the max over nodes."
_OF_WORKERS: tuple[tuple[str, str, Callable[[Mapping[str, Any]], float | None]], ...] = (
    ("runs_waiting", "Runs that wait, counted up to 10,001.", lambda row: row["pending_runs"]),
    ("consecutive_failures", "Runs that failed in a row.", lambda row: row["consecutive_failures"]),
    ("worker_enabled", "1 for a worker that is enabled, 0 for one that is not.", lambda row: row["is_enabled"]),
    ("last_success_timestamp_seconds", "When a run last succeeded.", lambda row: _seconds(row["last_success_at"])),
    ("next_run_timestamp_seconds", "When its schedule fires next.", lambda row: _seconds(row["next_run_at"])),
)


def families(gauges: Gauges) -> Iterator[GaugeMetricFamily]:
    """Yield the families of what was read."""
    others = gauges.others
    rest: dict[str, float] = {}
    if others is not None:
        rest = {
            "runs_waiting": others["waiting"],
            "consecutive_failures": others["streak"],
            "worker_enabled": not others["disabled"],
        }
    for name, said, value in _OF_WORKERS:
        family = _family(name, said, "worker")
        for row in gauges.workers:
            _add(family, value(row), row["name"])
        _add(family, rest.get(name), _OTHER)
        yield family
    yield from _of_states(gauges)
    yield _of_due(gauges)
    active = _family("runs_active", "Runs that are running or stopping.", "worker", "state")
    for (worker, state), count in gauges.active.items():
        _add(active, count, worker or _OTHER, state)
    yield active
    letters = _family("dead_letters_open", "Dead letters that are open.", "worker")
    for worker, count in gauges.letters.items():
        _add(letters, count, worker or _OTHER)
    yield letters
    nodes = _family("nodes", "Nodes; silent: not heard of for longer than their lease.", "state")
    for state, count in gauges.nodes.items():
        _add(nodes, count, state)
    yield nodes
    messages = _family("alerts_waiting", "Messages of alerts that wait for their receivers, counted up to 10,001.")
    _add(messages, gauges.messages)
    yield messages
    running = _family("limit_running", "Active runs of the workers that name a limit.", "limit")
    bound = _family("limit_max_running", "How many there may be; a limit without that bound has none.", "limit")
    for name, count, most in gauges.limits:
        _add(running, count, name)
        _add(bound, most, name)
    yield from (running, bound)
    age = _family("node_beat_age_seconds", "How long ago the live node that is quietest was heard of.")
    _add(age, gauges.beat_age)
    yield age


def _of_states(gauges: Gauges) -> Iterator[GaugeMetricFamily]:
    """Yield what has a worker's state as a label. Only the one that holds: all would be 13 series a worker more."""
    info = _family("worker_info", "1, with what a worker is as labels.", "worker", "mode", "priority")
    circuit = _family("circuit", "1, with the state of the worker's circuit.", "worker", "state")
    health = _family("worker_health", "1, with how the worker is.", "worker", "health")
    for row in gauges.workers:
        _add(info, 1, row["name"], row["execution_mode"], _priority(row["priority"]))
        if row["circuit_state"] is not None:
            _add(circuit, 1, row["name"], row["circuit_state"])
        _add(health, 1, row["name"], row["health"])
    yield from (info, circuit, health)


def _of_due(gauges: Gauges) -> GaugeMetricFamily:
    family = _family("oldest_due_age_seconds", "How long ago the first run that is due fell due; 0: none is.", "worker")
    for row in gauges.workers:
        since, firing = gauges.due_since.get(row["name"]), row["next_run_at"]
        due = [moment for moment in (since, firing) if moment is not None and moment <= gauges.at]
        _add(family, max((gauges.at - min(due)).total_seconds(), 0.0) if due else 0.0, row["name"])
    return family


def _family(name: str, said: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"jobrunner_{name}", f"{said} {_DATABASE}", labels=labels)


def _add(family: GaugeMetricFamily, value: float | None, *labels: str) -> None:
    if value is not None:
        family.add_metric(labels, float(value))


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


def _priority(number: int) -> str:
    return JobPriority(number).name if number in set(JobPriority) else str(number)
