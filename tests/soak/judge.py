"""What came of a set: its figures, and what was wrong. The nodes are at rest by then.

`db verify` must find nothing, whatever clocks were set. They make the times in the tables wrong, so promises 3 and 4
are judged by the handlers' own notes, too, on the monotonic clock; and the independent check keeps to promises 1, 2
and 5, which rest on no clock.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections import Counter, defaultdict
from itertools import pairwise

from tests.soak.bad_rows import BadRows
from tests.soak.feeder import Feeder
from tests.soak.stage import Set, jobrunner, shape
from tests.support.checker import PROMISES, QUERIES, read_tables
from tests.support.cluster import Execution, executions

CLOCKLESS = (1, 2, 5)
BY_HAND = (3, 4, 6)  # what bad rows say of a victim's edges, switches and circuit
LIMITS = {"beat": 1, "loop": 1, "sink": 1, "alone": 1, "quick": 4, "threaded": 3, "chatty": 2}
NEVER_STARTS_DURING = [("left", "right"), ("right", "left"), ("sink", "source")]  # a block, and a dependency
ALIVE = ("beat", "beat-thread", "loop", "left", "right", "source", "sink")
MOST_SHOWN = 5
MOST_SILENT_SECONDS = 60.0  # the longest stall, a lost node's lease, and a start on a busy machine
Span = tuple[float, float, Execution]


def verify(where: Set, bad_runs: set[int]) -> tuple[list[str], str]:
    """Ask `jobrunner db verify`; return what is wrong, and what it says of starts that it does not judge.

    Victims get edges and switches by hand, after their runs; bad runs are what somebody has written.
    """
    done = jobrunner(where.url, "db", "verify", "--json", seconds=600)
    try:
        violations = json.loads(done.stdout)
    except ValueError:
        return [f"db verify exits {done.returncode}: {done.stderr.strip().splitlines()[-1:]}"], ""
    wrong = [
        f"db verify: promise {each['promise']}: {each['problem']}"
        for each in violations
        if not (each["promise"] in BY_HAND and each["problem"].startswith("victim"))
        and not _is_of_bad_run(each["problem"], bad_runs)
    ]
    unjudged = next((line for line in done.stderr.splitlines() if line.startswith("not judged")), "")
    return wrong, "; ".join([f"{len(violations) - len(wrong)} more of victims and bad rows", unjudged])


def _is_of_bad_run(problem: str, bad_runs: set[int]) -> bool:
    return any(int(number) in bad_runs for number in re.findall(r"run (\d+)\b", problem))


def independent(where: Set, feeder: Feeder) -> list[str]:
    """Check what rests on no clock, of all workers but the victims, with no code of jobrunner's."""
    queries = {
        table: query.replace(
            "ORDER BY", f"WHERE {'name' if table in {'workers', 'limits'} else 'worker'} NOT LIKE 'victim%' ORDER BY"
        )
        for table, query in QUERIES.items()
    }
    tables = read_tables(where.url, queries=queries)
    numbers = [number for number in PROMISES if number in CLOCKLESS or not where.steps]
    wrong = [f"promise {number}: {line}" for number in numbers for line in PROMISES[number](tables)]
    known = {run["id"] for run in tables.runs} | {row["run_id"] for row in tables.history}
    wrong += [
        f"promise 1: run {run_id} was accepted and is nowhere" for run_id in feeder.accepted if run_id not in known
    ]
    booked = Counter(row["run_id"] for row in where.rows("SELECT run_id FROM soak_bookings"))
    ends = {row["run_id"] for row in tables.history if row["worker"] == "books" and row["ends_run"] == "succeeded"}
    wrong += [f"run {run_id} booked {count} times" for run_id, count in booked.items() if count > 1]
    wrong += [f"run {run_id} booked, or succeeded, but not both" for run_id in booked.keys() ^ ends]
    return wrong


def in_real_time(where: Set) -> list[str]:
    """Check promises 3 and 4 as the handlers saw them."""
    by_worker: defaultdict[str, list[Execution]] = defaultdict(list)
    for execution in executions(where.notes):
        by_worker[execution.worker].append(execution)
    wrong = []
    for name, most in LIMITS.items():
        marks = sorted(mark for start, end, _ in _spans(where, by_worker[name]) for mark in ((start, 1), (end, -1)))
        active = largest = 0
        for _, change in marks:
            active += change
            largest = max(largest, active)
        wrong += [f"{name}: {largest} of at most {most} ran at once, by their own notes"] * (largest > most)
    for one, other in NEVER_STARTS_DURING:
        ones, others = _spans(where, by_worker[one]), _spans(where, by_worker[other])
        found = [
            f"{one} {begun.run_id} started while {other} {active.run_id} ran, by their own notes"
            for start, _, begun in ones
            for active_from, active_to, active in _around(others, start)
            if active_from < start < active_to
        ]
        wrong += found[:MOST_SHOWN]
    return wrong


def _around(spans: list[Span], moment: float) -> list[Span]:
    """The last spans that began before a moment: one worker's overlap no more than `max_running` allows."""
    index = bisect_left(spans, (moment,))
    return spans[max(0, index - 3) : index]


def _spans(where: Set, found: list[Execution]) -> list[Span]:
    """From start to end; what never came to its end ran until its process died at least, if we know when."""
    deaths = {pid: at for node in where.nodes for pid, at in node.deaths.items() if at != float("inf")}
    return sorted(
        ((each.start, each.end or max(each.start, deaths.get(each.pid, 0.0)), each) for each in found),
        key=lambda span: span[:2],
    )


def silence(where: Set, since: float, until: float) -> tuple[list[str], list[str]]:
    """Return how long each steady worker did not start at most; and who was silent too long, or is in the calm end."""
    starts: defaultdict[str, list[float]] = defaultdict(list)
    for execution in executions(where.notes):
        starts[execution.worker].append(execution.start)
    said, wrong = [], []
    for name in ALIVE:
        each = [at for at in starts[name] if at <= until]
        longest = max((later - earlier for earlier, later in pairwise([*each, until])), default=0.0)
        said.append(f"{name} {longest:.1f} s")
        wrong += [f"{name} did not start for {longest:.0f} s"] * (longest > MOST_SILENT_SECONDS)
        if not each or each[-1] < since:
            ago = f"{until - each[-1]:.0f} s ago" if each else "never"
            wrong.append(f"{name} no longer starts: last {ago}, though all has been calm for {until - since:.0f} s")
    return said, wrong


def lateness(where: Set, feeder: Feeder) -> str:
    """Say how late the fed runs of `quick` started, by their own notes: in calm times, and in all."""
    first: dict[int, float] = {}
    for execution in executions(where.notes):
        if execution.worker == "quick":
            first.setdefault(execution.run_id, execution.start)
    waits = [(asked, first[run_id] - asked) for run_id, asked in feeder.accepted.items() if run_id in first]
    calm = [wait for asked, wait in waits if where.was_calm(asked)]
    return f"calm {_percentiles(calm)}; overall {_percentiles([wait for _, wait in waits])}"


def _percentiles(waits: list[float]) -> str:
    if not waits:
        return "no run"
    ordered = sorted(waits)
    p50, p99 = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]
    return f"p50 {p50 * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms of {len(ordered)}"


def done(where: Set) -> str:
    """Say how many attempts of each worker ended how."""
    rows = where.rows(
        "SELECT worker, outcome, count(*) AS n FROM {p}run_history GROUP BY worker, outcome ORDER BY 1, 3 DESC"
    )
    by_worker: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows:
        by_worker[row["worker"]].append(f"{row['n']} {row['outcome']}")
    total = sum(row["n"] for row in rows)
    return f"{total} attempts: " + "; ".join(f"{name} {', '.join(each)}" for name, each in by_worker.items())


def tracebacks(where: Set) -> list[str]:
    """Return the lines of the nodes' logs that hold a traceback, equal ones once, and how often."""
    found: Counter[str] = Counter()
    for node in where.nodes:
        lines = node.log_path.read_text(errors="replace").splitlines()
        for number, line in enumerate(lines):
            if "Traceback" in line:
                # Ours are one line; of any other, its last line says what it was.
                rest = () if " | " in line else lines[number + 1 :]
                said = next((each for each in rest if each.strip() and not each.startswith(" ")), line)
                found[f"{node.name}: {shape(said)}"] += 1
    return [f"{count} x {line}" for line, count in found.most_common(20)]


def untold(bad_rows: BadRows) -> tuple[str, list[str]]:
    """Say what became of the bad rows; what nothing came of is wrong."""
    fates, left = bad_rows.fates()
    taken = ", ".join(f"{count} {table}" for table, count in bad_rows.taken.items())
    became = ", ".join(f"{count} {fate}" for fate, count in fates.most_common())
    kinds = Counter(re.sub(r"(.)\1{20,}", r"\1…", sql)[:160] for sql in left)
    said = f"{bad_rows.refused} refused at the door; taken: {taken or 'none'}; the runs: {became or 'none'}"
    return said, [
        f"nothing came of a bad row, and nothing says why: {count} x {sql}" for sql, count in kinds.most_common(8)
    ]
