"""The verbs as people press them: what each is called, what it will do, and why it cannot be done now. Pure.

A verb does what the API's route of the same path does. What it takes is said there; here is only what people read.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobrunner.policy.enabling import after_enabling
from jobrunner.policy.words import counted

if TYPE_CHECKING:
    from datetime import datetime

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb. `path` is that of its route in the API.

    Args:
        path: of the route, below `/api`.
        label: what the button says.
        subject: `worker`, `run`, `letter`, `bulk` or `limit`: what is named in the path.
        asks: what it will do, in a sentence, of the subject's row.
        done: what was done, of the subject's row and the answer.
        command: the same on the command line, of the subject's row.
        why_not: why it cannot be done, of the subject's row and the time; None: it can.
        is_destructive: it ends or loses something.
        shows: of the answer, the place where one sees what came of it; None: the subject.
    """

    path: str
    label: str
    subject: str
    asks: Callable[[Row], str]
    done: Callable[[Row, Row], str]
    command: Callable[[Row], str]
    why_not: Callable[[Row, datetime], str | None]
    is_destructive: bool = False
    shows: Callable[[Row], str] | None = None

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    def place(self, subject: Row) -> str:
        """Return the address of the verb's form, below the console's."""
        return self.path.lstrip("/").format(name=subject.get("name"), id=subject.get("id"))


def place_of(subject: str, row: Row) -> str:
    """Return the address of the page of what a verb is done to."""
    folder = {"worker": "workers", "run": "runs", "letter": "dead-letters", "bulk": "bulk", "limit": "limits"}[subject]
    return f"{folder}/{row['name'] if subject in {'worker', 'limit'} else row['id']}"


def _is_paused(row: Row, now: datetime) -> bool:
    return row["paused_until"] is not None and row["paused_until"] > now


def _enable_not(row: Row, _now: datetime) -> str | None:
    if row["is_enabled"] and row["circuit_state"] == "closed" and not row["consecutive_failures"]:
        return "it is enabled, and has no failures in a row"
    return None


def _letter_not(row: Row, _now: datetime) -> str | None:
    return None if row["status"] == "open" else f"it was {row['status']} already"


def _cancel_not(row: Row, _now: datetime) -> str | None:
    if row.get("cancel_requested_at"):
        return "it was told to stop already"
    return None if row.get("state") in {"pending", "running"} else f"it has ended: {row.get('state')}"


def _is_not_live(row: Row, _now: datetime) -> str | None:
    return None if row["state"] == "running" else f"it is {row['state']}"


def _always(_row: Row, _now: datetime) -> None:
    return None


def _command(*words: str) -> Callable[[Row], str]:
    def written(row: Row) -> str:
        subject = str(row.get("name", row.get("id")))
        return shlex.join(["jobrunner", *(word.replace("SUBJECT", subject) for word in words)])

    return written


def _enable_asks(row: Row) -> str:
    """Say what enabling leads to, as far as the worker's row tells."""
    said = [f"Enable {row['name']}."]
    if row["disabled_reason"] and not row["is_enabled"]:
        said.append(f"It was disabled by {row['disabled_actor'] or 'somebody'}: {row['disabled_reason']}.")
    said += after_enabling(row)
    return " ".join(said)


def _disable_asks(row: Row) -> str:
    running = row["running_runs"] or 0
    still = f"; {counted(running, 'run')} of it may end" if running else ""
    return f"Disable {row['name']}: nothing of it starts until somebody enables it{still}."


def _pause_asks(row: Row) -> str:
    waiting = row["pending_runs"] or 0
    held = f"; {counted(waiting, 'run')} waits" if waiting == 1 else f"; {waiting:,} runs wait" if waiting else ""
    return f"Pause {row['name']}: nothing of it starts until then{held}. What runs may end."


def _trigger_asks(row: Row) -> str:
    if not row["is_enabled"]:
        return f"Make a run of {row['name']}. It is disabled: the run waits until it is enabled, unless it is forced."
    return f"Make a run of {row['name']}, now or later."


def _limit_asks(row: Row) -> str:
    running = row["running"]
    still = f" {counted(running, 'run')} of it may end, whatever is set." if running else ""
    return f"Set the limit {row['name']} over what its code says; a deploy does not undo it.{still} null lifts a field."


def _cancel_asks(row: Row) -> str:
    if row["state"] == "running":
        return f"Cancel run {row['id']} of {row['worker']}, which runs: it is told to stop, and is not tried again."
    return f"Cancel run {row['id']} of {row['worker']}, which waits: it ends without having run."


def _trigger_done(row: Row, answer: Row) -> str:
    if answer["is_new"]:
        return f"Run {answer['run_id']} of {row['name']} was made."
    return f"Run {answer['run_id']} of {row['name']} has that key already; no other was made."


def _replay_asks(row: Row) -> str:
    return f"Replay letter {row['id']}: a new run of {row['worker']}, linked to this letter, which is closed."


def _bulk_asks(row: Row) -> str:
    left = max((row["expected"] or 0) - (row["done"] or 0), 0)
    return (
        f"Stop bulk operation {row['id']}: {row['done']:,} are done and stay done, about {left:,} are left as they are."
    )


VERBS = (
    Verb(
        "/workers/{name}/enable",
        "Enable",
        "worker",
        _enable_asks,
        lambda row, _: f"{row['name']} is enabled.",
        _command("admin", "enable", "SUBJECT"),
        _enable_not,
    ),
    Verb(
        "/workers/{name}/disable",
        "Disable…",
        "worker",
        _disable_asks,
        lambda row, _: f"{row['name']} is disabled.",
        _command("admin", "disable", "SUBJECT", "--reason", "…"),
        lambda row, _: None if row["is_enabled"] else "it is disabled already",
        is_destructive=True,
    ),
    Verb(
        "/workers/{name}/pause",
        "Pause…",
        "worker",
        _pause_asks,
        lambda row, _: f"{row['name']} is paused.",
        _command("admin", "pause", "SUBJECT", "--for", "2h", "--reason", "…"),
        _always,
        is_destructive=True,
    ),
    Verb(
        "/workers/{name}/resume",
        "Resume",
        "worker",
        lambda row: f"End the pause of {row['name']} now.",
        lambda row, _: f"{row['name']} is resumed.",
        _command("admin", "resume", "SUBJECT"),
        lambda row, now: None if _is_paused(row, now) else "it is not paused",
    ),
    Verb(
        "/workers/{name}/trigger",
        "Trigger…",
        "worker",
        _trigger_asks,
        _trigger_done,
        _command("trigger", "SUBJECT", "--payload", "{}"),
        _always,
        shows=lambda answer: f"runs/{answer['run_id']}",
    ),
    Verb(
        "/workers/{name}/set",
        "Set…",
        "worker",
        lambda row: f"Set fields of {row['name']} over what its code says; a deploy does not undo it.",
        lambda row, _: f"{row['name']} has new settings.",
        _command("admin", "set", "SUBJECT", "interval_seconds=30"),
        _always,
    ),
    Verb(
        "/workers/{name}/unset",
        "Unset…",
        "worker",
        lambda row: f"Take back what was set for {row['name']}: the fields are again as its code says.",
        lambda row, _: f"{row['name']} is again as its code says, in those fields.",
        _command("admin", "unset", "SUBJECT", "interval_seconds"),
        lambda row, _: None if row.get("overrides") else "nothing is set over what its code says",
        is_destructive=True,
    ),
    Verb(
        "/limits/{name}/set",
        "Set…",
        "limit",
        _limit_asks,
        lambda row, _: f"The limit {row['name']} is set.",
        _command("admin", "limit", "SUBJECT", "max_running=4"),
        _always,
    ),
    Verb(
        "/limits/{name}/unset",
        "Unset…",
        "limit",
        lambda row: f"Take back what was set of the limit {row['name']}: the fields are again as its code says.",
        lambda row, _: f"The limit {row['name']} is again as its code says, in those fields.",
        _command("admin", "limit", "SUBJECT", "--unset", "max_running"),
        lambda row, _: None if row.get("overrides") else "nothing is set over what its code says",
        is_destructive=True,
    ),
    Verb(
        "/runs/{id}/cancel",
        "Cancel…",
        "run",
        _cancel_asks,
        lambda row, _: f"Run {row['id']} of {row['worker']} is cancelled.",
        _command("admin", "cancel", "SUBJECT", "--reason", "…"),
        _cancel_not,
        is_destructive=True,
    ),
    Verb(
        "/dead-letters/{id}/replay",
        "Replay…",
        "letter",
        _replay_asks,
        lambda row, answer: f"Letter {row['id']} of {row['worker']} is replayed as run {answer['run_id']}.",
        _command("dead-letters", "replay", "SUBJECT"),
        _letter_not,
        shows=lambda answer: f"runs/{answer['run_id']}",
    ),
    Verb(
        "/dead-letters/{id}/discard",
        "Discard…",
        "letter",
        lambda row: f"Discard letter {row['id']} of {row['worker']}: it is closed, and nothing runs. It is kept.",
        lambda row, _: f"Letter {row['id']} of {row['worker']} is discarded.",
        _command("dead-letters", "discard", "SUBJECT"),
        _letter_not,
        is_destructive=True,
    ),
    Verb(
        "/bulk/{id}/stop",
        "Stop…",
        "bulk",
        _bulk_asks,
        lambda row, _: f"Bulk operation {row['id']} is stopped.",
        _command("bulk", "stop", "SUBJECT"),
        _is_not_live,
        is_destructive=True,
    ),
)


@dataclass(frozen=True, slots=True)
class Button:
    """A verb beside what it is done to; `why_not`: it cannot be pressed, and why."""

    verb: Verb
    place: str
    why_not: str | None


def buttons(subject: str, row: Row, now: datetime, *, only: tuple[str, ...] = ()) -> list[Button]:
    """Return the verbs that there are for a subject, or those named; each with why it cannot be done, if it cannot."""
    return [
        Button(verb, verb.place(row), verb.why_not(row, now))
        for verb in VERBS
        if verb.subject == subject and (not only or verb.name in only)
    ]
