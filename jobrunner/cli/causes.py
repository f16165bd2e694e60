"""`jobrunner dead-letters list --by-error`: the open letters by what they died of, a line for each cause."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from jobrunner.cli import context
from jobrunner.cli.layout import ERROR, Column, columns
from jobrunner.cli.output import age, note, show_rows
from jobrunner.policy.filters import split_terms
from jobrunner.policy.words import counted, some_of
from jobrunner.storage.reading.error_groups import MOST_SEARCHED, by_cause, group_letters

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jobrunner.storage.database.database import Database
    from jobrunner.storage.reading.error_groups import Cause

_SCREENFUL = 50


async def show_causes(db: Database, worker: str | None, limit: int | None, *, as_json: bool) -> None:
    """Print the causes of the open letters, of one worker or of all, the one with most letters first."""
    async with db.read() as conn:
        found = await group_letters(conn, worker=worker, most=MOST_SEARCHED)
    causes = by_cause(found.groups)
    most = limit or (len(causes) if as_json else _SCREENFUL)
    now = context.now()
    shown = [
        Column("count", "letters", lambda row: f"{row['count']}{'+' if row['is_capped'] else ''}"),
        age("oldest_at", "first", now, importance=8),
        *columns("oldest_at", oldest_at="at", importance=2),
        age("newest_at", "last", now, importance=8),
        *columns("newest_at", newest_at="at", importance=3),
        *columns("newest_id", newest_id="such as"),
        Column("workers", "workers", lambda row: some_of(row["workers"], 3), longest=ERROR),
        Column("error", "error", _error, longest=ERROR),
        *columns("replay"),
    ]
    rows = [_row(cause) for cause in causes[:most]]
    show_rows(rows, shown, as_json=as_json, empty="no open dead letters")
    if as_json:
        return
    if found.searched is not None:
        note(f"looked through the newest {found.searched:,} open letters; WORKER looks at those of one alone")
    if len(causes) > most:
        note(f"{counted(len(causes) - most, 'cause')} more; --limit shows more")
    if rows:
        note(
            "`jobrunner dead-letters list` with the same terms lists the letters, `jobrunner bulk discard` closes them"
        )


def _row(cause: Cause) -> dict[str, Any]:
    terms = split_terms(cause.filter)
    return {
        "count": cause.count,
        "is_capped": cause.is_capped,
        "workers": list(cause.workers),
        "error_type": cause.error_type,
        "error": cause.error,
        "oldest_at": cause.oldest_at,
        "newest_at": cause.newest_at,
        "newest_id": cause.newest_id,
        "filter": cause.filter,
        "list": shlex.join(["jobrunner", "dead-letters", "list", *terms]),
        "replay": shlex.join(["jobrunner", "bulk", "replay", *terms]),
    }


def _error(row: Mapping[str, Any]) -> str:
    return f"{row['error_type']}: {row['error']}" if row["error_type"] else row["error"]
