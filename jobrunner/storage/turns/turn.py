"""What a turn of the fast path does: write what has succeeded and claim what is eligible, in one transaction, by set.

Terms. `policy.fast_path` says which workers are *eligible* and which ends are *simple*. Under load nearly all workers
are eligible and nearly all ends simple, and then neither needs a decision. A *firing* takes the fast path, too, when
its worker is eligible but for the schedule, has no run at all, and was fired the long way before: then the node knows
what its schedule says next, and the database need only agree. A worker's *revision* is a number that the database
raises with each change of what eligibility is judged by.

The protocol. The long way (`claims`, `finishes`) decides by `policy.gates` and `policy.transitions`; a look of it that
finds eligible workers says which (`Eligible`), each with its revision. While that holds, a turn

1. locks the states of the workers whose runs have ended, in the order of names, and ends those runs by (id, fence)
   whose worker has the revision that they were claimed under;
2. locks the states of the eligible workers; PostgreSQL passes by those that are locked;
3. in statements that begin after that, looks whether all of them have the revision they were judged under, and whether
   anything is due that belongs to none of them. If so it claims nothing: the long way decides;
4. claims in starting order, each run into its worker's lowest free slot under the next fence; or, when schedules are
   due, fires those whose `next_run_at` is what the node expects. Never both: what is due is then either all runs or
   all firings, and starting order needs no comparison between them. Commits.

What is not written in 1 was no longer this node's, or is not simple after all: the long way settles which. Workers that
the long way has just found stuck (disabled, blocked, without a handler) are passed by for `LOOK_AGAIN_SECONDS` and one
turn, so that what they have waiting does not keep everybody else on the long way.

On PostgreSQL a node's turns go on in a worker's queue where its last one ended. What was put *before* that place
meanwhile is looked for once in `LOOK_AGAIN_SECONDS`, and by each turn that follows one which left slots free: it is
passed by for no longer than that. Such a turn says, too, whether that was all, and when something falls due next: then
no look follows, which would step over the entries of all runs that have gone.

A failure before the commit changes nothing. After a commit whose answer is lost, the long way finds the ends settled,
and the heartbeat finds the claims without code: both as if the long way had been gone.

What a turn is made of is made anew on each connection, and is no part of the schema: nodes of different releases, each
with its own turn, work side by side on one database. `rules` holds what the two databases' texts share.

Measured, claiming and finishing 10,000 runs 50 at a time without handlers: PostgreSQL 1,800/s by the long way's 15
round trips, 16,000 to 21,000/s by the one of `take_turn`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobrunner.model.run import OutcomeKind
from jobrunner.model.worker import CircuitState, WorkerConfig, WorkerExecutionMode
from jobrunner.policy.fast_path import Eligible, is_waited_for, simple_under
from jobrunner.storage.runs.claims import Claim

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from jobrunner.model.run import Run
    from jobrunner.storage.runs.finishes import Ended

LOOK_AGAIN_SECONDS = 0.2
"""A look takes some 10 ms when workers with 300,000 waiting runs are stuck."""


NOBODY = Eligible({"": WorkerConfig("", "", WorkerExecutionMode.TRIGGERED)}, {"": 0}, ())
"""A turn for it does nothing, and has the connection and its statements ready: else the first run waits for that."""


@dataclass(frozen=True, slots=True)
class Turned:
    """What a turn did: the runs claimed, and the ids of those whose ends were written.

    `has_other`: something is due that only the long way can judge. `has_locked`: workers were passed by because others
    had locked them. `is_all`: nothing else is due that may start, but for who is stuck, and `next_due_at` is when
    something will be. SQLite's turns do not say the last three.
    """

    runs: tuple[Run, ...] = ()
    written: frozenset[int] = frozenset()
    has_other: bool = False
    has_locked: bool = False
    is_all: bool = False
    next_due_at: datetime | None = None


def is_simple(ended: Ended) -> bool:
    """Say whether an end may take the fast path; the revision, which the database looks at, has the last word."""
    is_counted_only = ended.outcome.kind is OutcomeKind.SUCCEEDED and ended.simple_under is not None
    return is_counted_only and not is_waited_for(ended.run)


def under_one_revision(ended: Sequence[Ended]) -> tuple[Sequence[Ended], Mapping[str, int]]:
    """Return the ends that a turn may write, and the revision of each worker that they are of: the newest, by name.

    A revision only grows: what was claimed under an older one is not simple any more, and is left out.
    """
    each = {(item.run.worker, item.simple_under or 0) for item in ended}
    newest = dict(sorted(each))  # of several of one name the last, which is the newest
    if len(each) > len(newest):
        ended = [item for item in ended if item.simple_under == newest[item.run.worker]]
    return ended, newest


def result_json(value: Any) -> str | None:
    """Write a result as both databases take it."""
    return None if value is None else json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))


def claims_of(turned: Turned, eligible: Eligible) -> tuple[Claim, ...]:
    """Return the claims that a turn gave."""
    under = {}
    for name in {run.worker for run in turned.runs}:
        config = eligible.configs[name]
        under[name] = config, simple_under(config, CircuitState.CLOSED, eligible.revisions[name])
    return tuple([Claim(run, *under[run.worker]) for run in turned.runs])
