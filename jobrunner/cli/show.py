"""`jobrunner show`: all there is about one run, from what made it to what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobrunner.cli import context
from jobrunner.cli.context import AsJson, DatabaseUrl
from jobrunner.cli.output import clean, say, say_folded, show_document, show_field, show_json
from jobrunner.policy.arguments import LARGEST_ID
from jobrunner.policy.durations import show_seconds
from jobrunner.policy.showing import show_duration, show_progress
from jobrunner.policy.words import first_line, show_age, show_time
from jobrunner.storage.reading.story import read_story

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

app = typer.Typer(rich_markup_mode=None)
_LINES_OF_OUTPUT, _LINES_OF_TRACEBACK, _LINES_OF_ERROR = 20, 12, 5
_ENDED = {
    "succeeded": "succeeded",
    "exhausted": "failed, its attempts are used up",
    "discarded": "was discarded",
    "cancelled": "was cancelled",
}
_WIDTH = len("scheduled for")


@app.command("show")
def show(
    ctx: typer.Context,
    run: Annotated[int, typer.Argument(metavar="RUN", help="The run's id.", min=1, max=LARGEST_ID, show_default=False)],
    is_full: Annotated[
        bool, typer.Option("--full", help="Every line of tracebacks and output, not the last ones only.")
    ] = False,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Show all there is about a run, live or ended: its attempts, errors, output, result, and its dead letter."""
    story = context.with_database(ctx, database_url, lambda db: read_story(db, run, context.now()))
    if as_json:
        show_json(story)
    else:
        _Telling(story, context.now(), is_full).tell()


class _Telling:
    """Prints a run's story."""

    def __init__(self, story: Mapping[str, Any], now: datetime, is_full: bool) -> None:
        self._story = story
        self._now = now
        self._is_full = is_full

    def tell(self) -> None:
        """Print it: a sentence, what it is, its attempts, what it gave, its letter."""
        say_folded(clean(f"run {self._story['id']} of {self._story['worker']} {self._how_it_is()}"))
        say("")
        for title, value in self._facts():
            if value:
                say_folded(clean(value), f"{title:<{_WIDTH}}  ")
        self._tell_attempts()
        if self._story["result"] is not None:
            say("")
            say_folded(show_document(self._story["result"]), f"{'result':<{_WIDTH}}  ")
        self._tell_chain()

    def _how_it_is(self) -> str:
        story, state = self._story, self._story["state"]
        if state == "pending":
            waits = f"waits, due {self._time(story['due_at'])}"
            return f"{waits}: {story['why']}" if story["why"] else waits
        if state in {"running", "stopping"}:
            said = "is running" if state == "running" else "was told to stop, and its code has not ended"
            node = story["nodes"].get(story["node_id"])
            if node is not None and node["silent_seconds"] is not None:
                silent = f"not heard of for {show_seconds(node['silent_seconds'])}"
                said = f"was {state} on a node that was {silent}; another, or the next to start, takes it over"
            return f"{said}, attempt {story['attempt']}, started {self._time(story['started_at'])}"
        said = f"{_ENDED[state]}, {self._time(story['finished_at'])}"
        last = story["attempts"][-1]
        if state in {"discarded", "cancelled"} and (last["reason"] or last["error"]):
            said += f": {first_line(last['reason'] or last['error'])}"
        return said

    def _facts(self) -> Iterator[tuple[str, str | None]]:
        story = self._story
        trigger = story["trigger"]
        if story["replay_of"] is not None:
            letter = story["replay_of"]
            trigger += f" of dead letter {letter['letter_id']}, of run {letter['run_id']}"
        yield "trigger", trigger + (", forced" if story["is_forced"] else "")
        yield "key", story["key"]
        yield "limit key", story["limit_key"]
        yield "batch", None if story["batch_id"] is None else str(story["batch_id"])
        if story["flow_id"] is not None:
            yield "flow", f"{story['flow_id']}, step {story['step']}" if story["step"] else str(story["flow_id"])
        yield "priority", None if story["priority"] is None else show_field("priority", story["priority"])
        yield "scheduled for", self._time(story["scheduled_for"])
        if story["due_at"] != story["scheduled_for"] and story["state"] != "pending":
            yield "due", self._time(story["due_at"])
        yield "created", self._time(story["created_at"])
        if story["cancel_requested_at"] is not None:
            why = f": {story['cancel_reason']}" if story["cancel_reason"] else ""
            yield "told to stop", self._time(story["cancel_requested_at"]) + why
        yield "trace", story["trace_context"]
        yield "payload", show_document(story["payload"]) if story["payload"] else None
        yield "progress", show_progress(story["progress"])

    def _tell_attempts(self) -> None:
        story = self._story
        if story["has_more_attempts"]:
            number = len(story["attempts"])
            say(f"\nthe last {number} attempts are shown; `jobrunner history --run {story['id']}` shows all")
        before: str | None = None
        for row in story["attempts"]:
            say("")
            say_folded(self._attempt(row))
            error = row["error"] or row["reason"]
            if error:
                kind = f"{row['error_type']}: " if row["error_type"] and row["error"] else ""
                self._tell_error(kind + error)
            if row["traceback"]:
                if row["traceback"] == before:
                    say("  traceback: the same as that of the attempt before")
                else:
                    self._tell_lines("traceback", row["traceback"], _LINES_OF_TRACEBACK)
                before = row["traceback"]
            if row["output"]:
                self._tell_lines("output", row["output"], _LINES_OF_OUTPUT)
        if story["state"] in {"running", "stopping"}:
            say("")
            say_folded(f"attempt {story['attempt']}: runs since {self._time(story['started_at'])}{self._node(story)}")
            if story["output"]:
                self._tell_lines("output so far", story["output"], _LINES_OF_OUTPUT)

    def _attempt(self, row: Mapping[str, Any]) -> str:
        outcome = row["outcome"].replace("_", " ")
        if row["started_at"] is None:
            return f"before a start: {outcome} {self._time(row['finished_at'])}"
        took = "" if row["duration_ms"] is None else f" after {show_duration(row['duration_ms'])}"
        return f"attempt {row['attempt']}: {outcome}{took}; started {self._time(row['started_at'])}{self._node(row)}"

    def _node(self, row: Mapping[str, Any]) -> str:
        node_id = row["node_id"]
        if node_id is None:
            return ""
        node = self._story["nodes"].get(node_id)
        where = "" if node is None else f" ({node['hostname']}, pid {node['pid']})"
        return f", on node {node_id[:8]}{where}"

    def _tell_error(self, text: str) -> None:
        """Print an error, of one with many lines the first: what follows is in the traceback, mostly."""
        lines = text.strip().expandtabs().splitlines()
        for line in lines if self._is_full else lines[:_LINES_OF_ERROR]:
            say_folded(clean(line), "  ")
        if len(lines) > _LINES_OF_ERROR and not self._is_full:
            say(f"  (the first {_LINES_OF_ERROR} of {len(lines)} lines; --full shows all)")

    def _tell_lines(self, title: str, text: str, most: int) -> None:
        """Print a text under its title, of a long one the last `most` lines: the end says most."""
        lines = text.rstrip().expandtabs().splitlines()
        shown = lines if self._is_full or len(lines) <= most + 2 else lines[-most:]
        cut = f", the last {len(shown)} of {len(lines)} lines; --full shows all" * (shown is not lines)
        say(f"  {title}{cut}:")
        for line in shown:
            say(f"    {clean(line)}")

    def _tell_chain(self) -> None:
        letter, replay = self._story["letter"], self._story["replay"]
        if letter is None:
            return
        say("")
        said = f"dead letter {letter['id']}: {letter['status']}"
        if letter["status"] == "open":
            said += (
                f"; `jobrunner dead-letters replay {letter['id']}` makes a new run of it, "
                f"`jobrunner dead-letters discard {letter['id']}` closes it"
            )
        else:
            said += f" by {letter['resolved_by'] or 'nobody named'} {self._time(letter['resolved_at'])}"
        if replay is not None:
            said += f" as run {replay['run_id']}, {self._replayed(replay)}"
        say_folded(clean(said))

    def _replayed(self, replay: Mapping[str, Any]) -> str:
        state = replay["state"]
        if state is None:
            return "whose history was pruned"
        if state in _ENDED:
            more = "" if replay["letter_id"] is None else f": dead letter {replay['letter_id']}"
            return f"which {_ENDED[state]}{more}"
        return {"pending": "which waits", "running": "which is running"}.get(state, "which is stopping")

    def _time(self, moment: datetime | None) -> str:
        if moment is None:
            return ""
        return f"{show_time(moment, self._story['timezone'])} ({show_age(moment, self._now)})"
