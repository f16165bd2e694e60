"""One run: why it waits, since when it runs or how it ended; each of its attempts; what it gave; what came of it."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from jobrunner.errors import InvalidSetting
from jobrunner.policy.arguments import read_id
from jobrunner.storage.reading.explain_run import explain_run
from jobrunner.storage.reading.story import read_story
from jobrunner.web.pages.page import Shown
from jobrunner.web.pages.tails import side_by_side, tail_of
from jobrunner.web.pages.timeline import spans_of, timeline
from jobrunner.web.pages.verbs import buttons

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from jobrunner.web.api.ask import Ask

_MOST_ATTEMPTS = 30
_ENDED = {
    "succeeded": ("succeeded", "succeeded"),
    "exhausted": ("failed", "failed"),
    "discarded": ("discarded", "discarded"),
    "cancelled": ("cancelled", "cancelled"),
    "pending": ("pending", "waits"),
    "running": ("running", "running"),
    "stopping": ("running", "stopping"),
}
_OF_OTHERS = (20, 4 * 1024)
"""Lines and characters of the output and the traceback of an attempt that is not the last."""


async def read(ask: Ask) -> Shown:
    """Read the run."""
    run_id = ask.path["id"]
    async with ask.desk.database() as db:
        story = await read_story(db, run_id, ask.now, _MOST_ATTEMPTS, says_why=False)
        waits = await explain_run(db, run_id, ask.now) if story["state"] == "pending" else None
        async with db.read() as conn:
            (run,) = await ask.shown(conn, [story])
    spans = spans_of(run, ask.now)
    why = waits["why"] if waits else None
    node = run["nodes"].get(run["node_id"])
    letter = run["letter"]
    facts = {
        "run": run,
        "how": _ENDED.get(str(run["state"]), (str(run["state"]), str(run["state"]))),
        "looks": _looks(run, node, why, ask.now),
        "why": why,
        "gates": waits["gates"] if waits else [],
        "node": node,
        "is_active": run["state"] in {"running", "stopping"},
        "verbs": buttons("run", run, ask.now),
        "letter": letter,
        "letter_verbs": buttons("letter", letter, ask.now) if letter is not None else [],
        "chart": timeline(spans) if any(span.number is not None for span in spans) else None,
        "spans": spans,
        "attempts": _attempts(run["attempts"]),
        "output": tail_of(run["output"]),
        "trace_id": trace_id_of(run["trace_context"]),
        "compared": _compared(run["attempts"], ask.fields["compare"]),
    }
    title = f"Run {run_id} of {run['worker']}"
    commands = [f"jobrunner show {run_id}"]
    commands += [f"jobrunner explain --run {run_id}"] if waits else []
    sql = f"SELECT * FROM run_history WHERE run_id = {run_id} ORDER BY id"  # noqa: S608 - to be pasted; a number
    return Shown(facts, title, tuple(commands), f"api/runs/{run_id}", sql)


def _looks(run: Mapping[str, Any], node: Mapping[str, Any] | None, why: str | None, now: datetime) -> str:
    """Return how the first sentence looks: `bad`, `warn`, `calm`, or empty for what is well."""
    if run["state"] in {"exhausted", "discarded"}:
        return "bad"
    if run["state"] in {"running", "stopping"}:
        return "bad" if node is not None and node["silent_seconds"] is not None else "calm"
    if run["state"] == "pending":
        return "warn" if why and run["due_at"] <= now else "calm"
    return "calm" if run["state"] == "cancelled" else ""


def trace_id_of(context: str | None) -> str | None:
    """Return the trace's id of a W3C `traceparent`, or what there is instead."""
    parts = (context or "").split("-")
    return parts[1] if len(parts) == 4 else context


def _attempts(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the attempts with the ends of what they said; `other`: the number of the attempt to compare it with."""
    found = []
    others = [None, *(one["attempt"] if one["attempt"] != row["attempt"] else None for one, row in pairwise(rows))]
    for place, (row, other) in enumerate(zip(rows, others, strict=False)):
        is_last = place == len(rows) - 1
        after = None if is_last else rows[place + 1]["traceback"]
        lines, characters = (200, 16 * 1024) if is_last else _OF_OTHERS
        found.append(
            {
                "row": row,
                "is_last": is_last,
                "other": other,
                "error": said_by(row),
                "traceback": tail_of(row["traceback"], lines, characters),
                "is_same_traceback": not is_last and bool(row["traceback"]) and row["traceback"] == after,
                "output": tail_of(row["output"], lines, characters),
            }
        )
    return found


def said_by(row: Mapping[str, Any]) -> str:
    """Return what an attempt said of its end: type and text of its error, or the reason."""
    if row["error"]:
        return f"{row['error_type']}: {row['error']}" if row["error_type"] else str(row["error"])
    return str(row["reason"] or "")


def _compared(rows: Sequence[Mapping[str, Any]], asked: str | None) -> dict[str, Any] | None:
    """Return two attempts beside each other; None: nobody asked. Raises `InvalidSetting`."""
    if asked is None:
        return None
    numbers = [read_id("compare", part.strip()) for part in asked.split(",")]
    known = {row["attempt"]: row for row in rows}
    if len(numbers) != 2 or any(number not in known for number in numbers):
        raise InvalidSetting("compare names two attempts of this run that have ended, such as 1,3")
    left, right = (known[number] for number in numbers)
    return {
        "left": left,
        "right": right,
        "errors": side_by_side(_told(left), _told(right)),
        "outputs": side_by_side(left["output"] or "", right["output"] or ""),
    }


def _told(row: Mapping[str, Any]) -> str:
    return f"{said_by(row)[-16_384:]}\n{row['traceback'] or ''}"
