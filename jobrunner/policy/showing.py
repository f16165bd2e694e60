"""Parts of rows in words, as the command line and the console show them both. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobrunner.policy.words import counted, show_time

if TYPE_CHECKING:
    from collections.abc import Mapping

NOTHING = "-"


def show_schedule(row: Mapping[str, Any]) -> str:
    """Show what makes a worker due."""
    if row["execution_mode"] == "triggered":
        return "when triggered"
    if row["execution_mode"] == "continuous":
        return f"continuous, {row['interval_seconds']:g} s apart"
    if row["cron"] is not None:
        return f"{row['cron']} ({row['timezone']})"
    return f"every {row['interval_seconds']:g} s"


def show_health(row: Mapping[str, Any]) -> str:
    """Show how a worker is, in a word or two."""
    if row["is_enabled"] is None:
        return "no state"
    if row["circuit_state"] == "half_open" and not row["is_enabled"]:
        return "half open"
    return str(row["health"]).replace("_", " ")


def show_progress(progress: Mapping[str, Any] | None) -> str:
    """Show how far a run says it is: `40 % of 10 files`."""
    if not progress:
        return ""
    fraction, message = progress.get("fraction"), str(progress.get("message") or "")
    percent = f"{fraction * 100:.0f} %" if isinstance(fraction, int | float) else ""
    return f"{percent} {message}".strip()


def show_duration(milliseconds: int | None) -> str:
    """Show a duration with the unit that fits it."""
    if milliseconds is None:
        return NOTHING
    return f"{milliseconds} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"


def without_controls(text: str, kept: str = "") -> str:
    """Return text with its control characters (tabs, escape sequences, marks that turn the writing) written out.

    `kept`: those that stay, such as the ends of lines.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in kept else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return (
        character.encode("ascii", "backslashreplace").decode() if ord(character) > 127 else f"\\x{ord(character):02x}"
    )


def show_times_missed(row: Mapping[str, Any]) -> str:
    """Show how many times of a schedule a row of history says were missed, and which."""
    first, last = row["scheduled_for"], row["due_at"]
    said = counted(row["occurrences"], "time")
    if first is None or last is None:
        return said
    if first == last:
        return f"{said}, {show_time(first)}"
    return f"{said}, {show_time(first)} to {show_time(last, today=first)}"
