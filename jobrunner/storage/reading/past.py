"""Why a worker did not start at a moment that is past, or that it did: what `jobrunner explain --at` shows.

The gates are judged by the same functions as for now, on facts that are rebuilt from what was recorded of the worker
and of what it is related to (`policy.past_facts`). All reading is bounded (`recorded`). Definitions and relations are
those of now, less what operators have set since; of the slots is known which were taken, and not who else waited for
one. What the answer takes to have been so, and cannot know, it says in `assumed`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jobrunner.errors import InvalidSetting, WorkerNotFound
from jobrunner.model.facts import Facts, Gate, WorkerFacts
from jobrunner.model.past import Passed, Spell
from jobrunner.policy.durations import show_seconds
from jobrunner.policy.gates import show_problem
from jobrunner.policy.past_facts import facts_at, next_start, served
from jobrunner.policy.past_limits import counted_since
from jobrunner.policy.words import counted, first_line, show_time
from jobrunner.storage.reading.explain import Answer, document, judge, nowhere
from jobrunner.storage.reading.limits_then import LimitsThen, read_limits_then
from jobrunner.storage.reading.nodes_then import SOMEBODY, NodesThen, read_nodes_then
from jobrunner.storage.reading.recorded import OTHERS_ROWS, WINDOW_ROWS, Recorded, read_recorded
from jobrunner.storage.runs import facts as reading

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from jobrunner.model.past import Past
    from jobrunner.storage.database.database import Database

MOST_RELATED = 50
"""So many of the workers that one is related to, directly or through others, are judged with it: the nearest."""
_SLOTS_NOT_KNOWN = "taken to be so: how many slots the node had is not known any more"
_NOT_KNOWN = "taken to be so: whether a node that lived then had the handler is not known"


async def explain_at(db: Database, name: str, at: datetime, now: datetime) -> dict[str, Any]:
    """Judge every gate as it stood at `at`, for the run of `name` that would have started first.

    Args:
        db: the database.
        name: the worker.
        at: the moment, UTC, not after `now`.
        now: the time now, UTC.

    Returns:
        What `explain` returns, of that moment, and: `at`; `served` (what came of the schedule's time that `at` is, or
        of the last before it: a run, or times that were missed; with `said`, None where nothing is known); `next_start`
        (the first start after `at`, likewise) and `assumed`, sentences on what is not known and taken to have been so.

    Raises:
        WorkerNotFound: there is no such worker.
        InvalidSetting: `at` lies ahead of `now`.
    """
    if at > now:
        raise InvalidSetting(f"{show_time(at)} lies ahead; `jobrunner upcoming {name}` shows what will start")
    async with db.read() as conn:
        today, _ = await reading.read_around(conn, db.dialect, now, {name}, reading.Here(handlers=None), 1)
        if name not in today.workers:
            raise WorkerNotFound(name)
        near, is_cut = _nearest(today.workers, name)
        recorded = await read_recorded(conn, db.dialect, at, now, near)
        nodes = await read_nodes_then(conn, db.dialect, at, now, near, recorded)
        shared = await read_limits_then(conn, today.limits, at, recorded.held)
    known = {each: facts_at(past, at, recorded.known_id) for each, past in recorded.pasts.items()}
    for each, worker in known.items():
        has_handler = bool(nodes.for_worker(worker)[0])
        problem = near[each].problem
        known[each] = replace(worker, has_handler=has_handler, has_handler_elsewhere=has_handler, problem=problem)
    answer, is_guess = _answer(Facts(at, known, 1, shared.limits), nodes, name)
    past = recorded.pasts[name]
    assumed = [*_assumed(recorded, at, near, name, is_cut=is_cut), *_assumed_of_limits(recorded, at, shared)]
    if is_guess:
        assumed.append("a node that lived then had the handler; the nodes of then are gone")
    if answer.node_id is None and nodes.forgotten:
        assumed.append("a node lived then; a node that has left is known for a day")
    return {
        **document(known[name], answer),
        "at": at,
        "served": _served(past, at),
        "next_start": _next_start(past, at),
        "assumed": assumed,
    }


def _nearest(workers: Mapping[str, WorkerFacts], name: str) -> tuple[dict[str, WorkerFacts], bool]:
    """Return the worker and those nearest to it, without the relations to others; and whether any were left out."""
    found, ring = [name], [name]
    while ring and len(found) < MOST_RELATED:
        wider = {edge.depends_on for each in ring for edge in workers[each].config.depends_on}
        wider |= {other for each in ring for other in workers[each].counterparts}
        ring = sorted(wider.difference(found) & workers.keys())[: MOST_RELATED - len(found)]
        found += ring
    near = {}
    for each in found:
        worker = workers[each]
        depends_on = tuple(edge for edge in worker.config.depends_on if edge.depends_on in found)
        counterparts = tuple(other for other in worker.counterparts if other in found)
        config = replace(worker.config, depends_on=depends_on)
        near[each] = replace(worker, config=config, counterparts=counterparts)
    return near, len(near) < len(workers)


def _answer(facts: Facts, nodes: NodesThen, name: str) -> tuple[Answer, bool]:
    """Return the answer of the node where the run came furthest, and whether its handler is a guess."""
    worker = facts.workers[name]
    able, is_guess = nodes.for_worker(worker)
    if worker.problem is not None:
        return nowhere(facts, name, show_problem(worker.problem)), False
    answers = [judge(facts, node, name) for node in able]
    if not answers:
        said = "no node that lived then had the handler" if nodes.views else "no node lived then"
        return nowhere(facts, name, said), False
    best = max(answers, key=lambda answer: answer.first_shut)
    guessed = {Gate.HANDLER: _NOT_KNOWN} if is_guess else {}
    if best.node_id in nodes.forgotten:
        guessed[Gate.SLOT] = _SLOTS_NOT_KNOWN
    verdicts = [
        replace(each, reason=guessed[each.gate]) if each.is_open and each.gate in guessed else each
        for each in best.verdicts
    ]
    node_id = None if best.node_id == SOMEBODY else best.node_id
    return replace(best, node_id=node_id, verdicts=verdicts), is_guess


def _assumed(
    recorded: Recorded, at: datetime, near: Mapping[str, WorkerFacts], name: str, *, is_cut: bool
) -> Iterator[str]:
    past = recorded.pasts[name]
    if past.created_at > at:
        yield f"{name} is registered since {show_time(past.created_at)}: nothing older is known of it"
    elif recorded.oldest is not None and recorded.oldest > at:
        yield f"history begins at {show_time(recorded.oldest)}: what was before is taken to have been nothing"
    for each, changed_at in recorded.changed.items():
        if recorded.pasts[each].created_at <= at:
            sets = [one for one in recorded.pasts[each].switches if one.at > at and one.action in {"set", "unset"}]
            what = "taken to have been as now" + (", but for what was set since" if sets else "")
            yield f"the definition of {each} was changed at {show_time(changed_at)}, and is {what}"
    for each in recorded.cut:
        if near[each].config.max_running > 1:
            yield f"of {each} the first {WINDOW_ROWS} ends after that moment were looked at; more ran or waited, maybe"
    if recorded.held_until is not None:
        yield (
            f"of the slots that were taken those are counted that were free again by {show_time(recorded.held_until)},"
            f" {OTHERS_ROWS:,} ends later"
        )
    if is_cut:
        yield f"of what {name} is related to, the nearest {MOST_RELATED} workers were judged"


def _assumed_of_limits(recorded: Recorded, at: datetime, shared: LimitsThen) -> Iterator[str]:
    for name, changed_at in shared.changed.items():
        yield f"limit {name} was changed at {show_time(changed_at)}, and is taken to have been as now"
    for each, past in recorded.pasts.items():
        counted = counted_since(past, at)
        if counted is not None and recorded.since.get(each, counted) > counted:
            yield f"of {each} the starts are counted as far as the {WINDOW_ROWS} ends before that moment tell"


def _served(past: Past, at: datetime) -> dict[str, Any] | None:
    found = served(past, at)
    if found is None:
        return None
    if isinstance(found, Passed):
        return _document_of_missed(found, past.config.timezone)
    return _document_of_run(found, past.config.timezone)


def _next_start(past: Past, at: datetime) -> dict[str, Any] | None:
    spell = next_start(past, at)
    if spell is None:
        return None
    return _document_of_run(past.spells[spell.run_id], past.config.timezone)


_NO_RUN: dict[str, Any] = dict.fromkeys(
    (
        "run_id",
        "scheduled_for",
        "started_at",
        "late_seconds",
        "attempts",
        "outcome",
        "ends_run",
        "finished_at",
        "reason",
    )
)


def _document_of_missed(missed: Passed, timezone: str) -> dict[str, Any]:
    when = f"{show_time(missed.first, timezone)} was"
    if missed.occurrences > 1:
        between = f"{show_time(missed.first, timezone)} to {show_time(missed.last, timezone)}"
        when = f"{counted(missed.occurrences, 'time')} from {between} were"
    said = f"{when} missed: {missed.reason}"
    noted = {
        "scheduled_for": missed.first,
        "outcome": "missed",
        "finished_at": missed.noted_at,
        "reason": missed.reason,
    }
    return {**_NO_RUN, **noted, "said": said}


def _document_of_run(spells: Sequence[Spell], timezone: str) -> dict[str, Any]:
    first, last = spells[0], spells[-1]
    late = None if first.started_at is None else (first.started_at - first.scheduled_for).total_seconds()
    return {
        "run_id": first.run_id,
        "scheduled_for": first.scheduled_for,
        "started_at": first.started_at,
        "late_seconds": late,
        "attempts": last.attempt,
        "outcome": None if last.outcome is None else str(last.outcome),
        "ends_run": None if last.ends_run is None else str(last.ends_run),
        "finished_at": last.finished_at,
        "reason": last.error or last.reason,
        "said": _said(first, last, late, timezone),
    }


def _said(first: Spell, last: Spell, late: float | None, timezone: str) -> str:
    said = f"run {first.run_id}, for {show_time(first.scheduled_for, timezone)},"
    if late is not None and first.started_at is not None:
        said += f" started at {show_time(first.started_at, timezone)}"
        said += f", {show_seconds(late)} late," if late >= 1 else ""
    if last.finished_at is None:
        return f"{said} and {'runs' if last.started_at else 'waits'}, attempt {last.attempt}"
    ended = str(last.ends_run or last.outcome).replace("_", " ")
    said += f" and ended {ended} at {show_time(last.finished_at, timezone)}"
    said += f", attempt {last.attempt}" if last.attempt > 1 else ""
    why = last.error or last.reason
    return f"{said}: {first_line(why)}" if why else said
