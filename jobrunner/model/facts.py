"""The facts that the gates judge, and the decisions they come to. Values only.

`storage.runs.facts` reads them, `policy.gates` judges them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from jobrunner.model.run import Trigger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jobrunner.model.worker import WorkerConfig, WorkerState


class Gate(StrEnum):
    """The gates, in the order they are judged and shown."""

    ENABLED = "enabled"
    PAUSED = "paused"
    DUE = "due"
    HANDLER = "handler"
    MAX_RUNNING = "max_running"
    KEY = "key"
    RATE = "rate"
    LIMITS = "limits"
    DEPENDENCIES = "dependencies"
    BLOCKS = "blocks"
    SLOT = "slot"


@dataclass(frozen=True, slots=True)
class ActiveRun:
    """A run that is `running` or `stopping`."""

    id: int
    worker: str
    slot: int
    node_id: str
    started_at: datetime
    trigger: Trigger = Trigger.MANUAL
    limit_key: str | None = None
    key_slot: int | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """Work that may be due: a waiting run, or (with `id` None) a schedule's firing that has no row yet."""

    worker: str
    id: int | None
    priority: int
    due_at: datetime
    attempt: int = 1
    is_forced: bool = False
    has_started_before: bool = False
    limit_key: str | None = None

    @property
    def order(self) -> tuple[int, datetime, int, str]:
        """Sort key of starting order; firings, which have no row yet, come after the runs of the same time, by name."""
        return (-self.priority, self.due_at, 2**63 if self.id is None else self.id, self.worker)


NO_STARTS = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Window:
    """What a rate's window holds: how many starts, at most as many as the rate allows.

    `opens_at`: when one more may start, if it is full.
    """

    used: int = 0
    opens_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class KeyFacts:
    """What is known of one key among a worker's runs.

    `window` is that of `rate_per_key`. `first`, of a worker that is ordered: the oldest of its waiting runs that are
    due or have been tried. `last_started_at`, of one that is fair: when one of its runs last started.
    """

    window: Window = Window()
    first: int | None = None
    last_started_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class LimitFacts:
    """A limit that workers share: what it allows, the runs that hold it, and what its rate's window holds.

    `last_ended_at`: when a run of those workers last ended, of all ends that `active` knows of.
    """

    name: str
    max_running: int | None = None
    rate: str | None = None
    active: tuple[ActiveRun, ...] = ()
    window: Window = Window()
    last_ended_at: datetime | None = None


MOST_LATER = 100
"""So many runs that wait for their time are counted of a worker; beyond it is said that there are more."""


@dataclass(frozen=True, slots=True)
class Later:
    """What of a worker waits for its time: the first runs in the order of time, and how many there are in all.

    `count` is at most `MOST_LATER` + 1. `errors` says of the runs that have been tried how the last attempt failed.
    """

    first: tuple[Candidate, ...]
    count: int
    errors: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """All the gates need to know of one worker."""

    config: WorkerConfig
    state: WorkerState
    has_handler: bool = True  # on the node that judges; for `explain`, on any live node
    has_handler_elsewhere: bool = False
    active: tuple[ActiveRun, ...] = ()
    waiting: tuple[Candidate, ...] = ()
    waiting_retry: datetime | None = None  # due time of the first pending run that has failed before
    counterparts: tuple[str, ...] = ()
    scheduled_run: int | None = None  # the live run that came from the schedule or loop
    revision: int = 0  # raised by every change of the definition, of relations and of switches
    problem: str | None = None  # what of its rows cannot be read or used; nothing of it starts meanwhile
    window: Window = Window()  # of its rate
    keys: Mapping[str, KeyFacts] = field(default_factory=dict)  # of those that its runs have
    later: Later | None = None  # what waits for its time: read for those who ask why, never for a tick


@dataclass(frozen=True, slots=True)
class Facts:
    """A snapshot: the workers concerned and everything they are related to.

    `limits` are those that the workers share. `rated_at` is the time by which rates were read: the database's.
    """

    now: datetime
    workers: Mapping[str, WorkerFacts]
    free_slots: int
    limits: Mapping[str, LimitFacts] = field(default_factory=dict)
    rated_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """A decision to claim: run `run_id` (or the schedule's firing) of `worker` in `slot`."""

    worker: str
    run_id: int | None
    slot: int
    is_probe: bool
    key_slot: int | None = None
    limit_key: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """One gate judged for one candidate.

    `is_forced` marks a gate that only `--force` opens, `is_lasting` one that stays shut until somebody does something.
    """

    gate: Gate
    is_open: bool
    reason: str
    is_forced: bool = False
    is_lasting: bool = False
