"""The two walks of `db verify` against a judge that compares every pair of attempts."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from jobrunner.policy.sweep import Attempt, Fault, Glance, OutOfOrder, Rule, Sweep, Together, TooMany

NEVER = 10**6
RULES = [Rule("a", 1, 0, -1), Rule("b", 2, 3, -1), Rule("c", 3, 0, -1), Rule("d", 9, 0, -1)]
LIMITS = {rule.name: rule for rule in RULES}


@st.composite
def histories(draw: Any, workers: str = "abc") -> list[Attempt]:
    """Attempts with ids in some order; times are few, so that many are equal."""
    rows = []
    for number in range(draw(st.integers(0, 14))):
        start = draw(st.integers(0, 20))
        end = start + draw(st.integers(0, 8))
        worker = draw(st.sampled_from(workers))
        ends_run = draw(st.sampled_from(["succeeded", "exhausted"]))
        rows.append(Attempt(worker, 100 + number, start, end, 0, 1, "succeeded", ends_run, draw(st.booleans())))
    order = draw(st.permutations(range(len(rows))))
    return [row._replace(id=place + 1) for row, place in zip(rows, order, strict=True)]


def glanced(rows: list[Attempt]) -> set[str]:
    glance = Glance(RULES, NEVER)
    glance.add([(row.worker, row.started, row.end) for row in sorted(rows, key=lambda row: -row.id)])
    glance.close()
    return glance.unsure


def swept(rows: list[Attempt], **edges: Any) -> list[Fault]:
    given = {"unsure": set(LIMITS), "blocks": [], "dependencies": [], "kept_since": -2, **edges}
    sweep = Sweep(RULES, **given)
    found = [fault for row in sorted(rows, key=lambda row: (row.end, row.id), reverse=True) for fault in sweep.add(row)]
    return found + list(sweep.close())


def most_at_once(rows: list[Attempt], worker: str) -> int:
    own = [row for row in rows if row.worker == worker and LIMITS[worker].changed <= row.started < row.end]
    return max((sum(other.started <= row.started < other.end for other in own) for row in own), default=0)


@given(histories())
def test_limits_are_judged_as_by_comparing_all(rows: list[Attempt]):
    wrong = {name for name, rule in LIMITS.items() if most_at_once(rows, name) > rule.max_running}
    found = swept(rows)
    assert {fault.worker for fault in found} == wrong
    most = [max(f.active for f in found if isinstance(f, TooMany) and f.worker == name) for name in sorted(wrong)]
    assert most == [most_at_once(rows, name) for name in sorted(wrong)]
    assert glanced(rows) >= wrong, "what the quick walk is sure of is right, in whatever order the rows come"


@given(histories())
def test_rows_in_the_order_of_their_ends_leave_no_doubt(rows: list[Attempt]):
    ordered = sorted(rows, key=lambda row: row.end)
    rows = [row._replace(id=number) for number, row in enumerate(ordered)]
    assert glanced(rows) == {name for name, rule in LIMITS.items() if most_at_once(rows, name) > rule.max_running}


@given(histories())
def test_blocks_are_judged_as_by_comparing_all(rows: list[Attempt]):
    def counts(one: Attempt, other: Attempt) -> bool:
        return (
            {one.worker, other.worker} == {"a", "b"} and one.started < one.end and min(one.started, other.started) >= 3
        )

    wrong = {
        (later.run_id, later.started)
        for later in rows
        for earlier in rows
        if counts(later, earlier)
        and (earlier.started, earlier.run_id) < (later.started, later.run_id)
        and earlier.end > later.started
    }
    found = swept(rows, unsure=set(), blocks=[("a", "b")])
    assert {(fault.run_id, fault.at) for fault in found} == wrong
    assert all(isinstance(fault, Together) for fault in found)


@given(histories(workers="cd"))
def test_dependencies_are_judged_as_by_comparing_all(rows: list[Attempt]):
    # A start that was an end too says nothing about what came first in that very moment.
    rows = [row if row.end > row.started else row._replace(end=row.end + 1) for row in rows]
    rows = [row._replace(id=number) for number, row in enumerate(sorted(rows, key=lambda row: row.end))]
    wrong = set()
    for row in rows:
        if row.worker != "d" or row.is_forced:
            continue
        others = [other for other in rows if other.worker == "c"]
        is_busy = any(other.started <= row.started < other.end for other in others)
        before = [other for other in others if other.end <= row.started]
        last = max(before, key=lambda other: other.id).ends_run if before else None
        newest = max((other.end for other in before), default=None)
        # Of two ends in the same moment either may count: then a success does.
        has_succeeded = any(other.end == newest and other.ends_run == "succeeded" for other in before)
        if is_busy or not (last == "succeeded" or has_succeeded):
            wrong.add((row.run_id, is_busy))
    found = swept(rows, unsure=set(), dependencies=[("d", "c")])
    assert {(fault.run_id, fault.is_busy) for fault in found if isinstance(fault, OutOfOrder)} == wrong
    assert len(found) == len(wrong)
