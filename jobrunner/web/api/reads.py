"""What the API shows: the rows that `--json` of the command line gives, a page at a time."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from jobrunner.errors import InvalidSetting, UsageError
from jobrunner.policy.arguments import read_id
from jobrunner.policy.durations import parse_time
from jobrunner.policy.filters import parse_filter
from jobrunner.policy.hidden import is_told_by, masked_row, published
from jobrunner.runtime.moments import read_span
from jobrunner.storage import bulk
from jobrunner.storage.reading import explain as explaining
from jobrunner.storage.reading import incidents
from jobrunner.storage.reading import status as reading
from jobrunner.storage.reading.explain_run import explain_run
from jobrunner.storage.reading.forecasts import read_to_play
from jobrunner.storage.reading.hidden import read_all_hidden
from jobrunner.storage.reading.nodes_heard import list_nodes
from jobrunner.storage.reading.one_page import live_runs_after, names_after
from jobrunner.storage.reading.past import explain_at
from jobrunner.storage.reading.search import Found, search_audits, search_history, search_letters, search_runs
from jobrunner.storage.reading.story import read_story
from jobrunner.storage.reading.traces import read_told
from jobrunner.storage.reading.worst import by_harm, read_worst
from jobrunner.storage.records.history import read_history
from jobrunner.storage.runs import dead_letters
from jobrunner.storage.tables.types import to_json as time_to_json
from jobrunner.web.access import Level
from jobrunner.web.answers import Forbidden
from jobrunner.web.api.ask import Page, in_pieces

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from datetime import datetime

    from jobrunner.policy.filters import Filter
    from jobrunner.storage.runs.transaction import AsyncConnection
    from jobrunner.web.api.ask import Ask

    Search = Callable[[AsyncConnection, Filter, int, int | None], Awaitable[Found]]

_MOST_UPCOMING = 2_000
_OLDEST_LISTING = timedelta(days=1)


async def workers(ask: Ask) -> Page:
    """`jobrunner status`: how each worker stands."""
    limit = ask.fields["limit"]
    if ask.fields["q"] is not None:
        return await _workers_that_fit(ask, limit)
    async with ask.desk.database() as db, db.read() as conn:
        names = await names_after(conn, ask.fields["after"], limit + 1)
        rows = await read_told(conn, db.dialect, ask.now, names=names[:limit]) if names else []
    return Page(rows, names[limit - 1] if len(names) > limit else None)


async def _workers_that_fit(ask: Ask, limit: int) -> Page:
    """Return the workers that fit the filter `q`, the worst first; there is one page, of the worst."""
    if ask.fields["after"] is not None:
        raise UsageError("q gives the worst that fit, in one page; raise limit instead of asking for what comes after")
    wanted = parse_filter(ask.fields["q"], "workers", ask.now)
    async with ask.desk.database() as db, db.read() as conn:
        worst = await read_worst(conn, ask.now, limit, wanted)
        rows = await read_told(conn, db.dialect, ask.now, names=worst.names) if worst.names else []
    return Page(sorted(rows, key=lambda row: by_harm(row["health"], row["name"])), None, worst.asked)


async def worker(ask: Ask) -> dict[str, Any]:
    """`jobrunner admin show`, with what `status` says of it: all there is about one worker."""
    name = ask.path["name"]
    async with ask.desk.database() as db, db.read() as conn:
        found = await reading.read_worker(conn, name)
        (standing,) = await read_told(conn, db.dialect, ask.now, name)
    whole = {**found, "next_at": standing["next_at"], "why": standing["why"], "since": standing["since"]}
    return (
        whole
        if ask.level >= Level.ADMIN
        else published(masked_row(whole, [str(field) for field in found["hidden_fields"]]))
    )


async def explain(ask: Ask) -> dict[str, Any]:
    """`jobrunner explain`: every gate, open or shut, and why; with `at` as it was then."""
    name, at = ask.path["name"], ask.fields["at"]
    async with ask.desk.database() as db:
        return await (explaining.explain(db, name, ask.now) if at is None else explain_at(db, name, at, ask.now))


async def explain_one_run(ask: Ask) -> dict[str, Any]:
    """`jobrunner explain --run`: why a run waits, since when it runs, or how it ended."""
    async with ask.desk.database() as db:
        return await explain_run(db, ask.path["id"], ask.now)


async def runs(ask: Ask) -> Page:
    """`jobrunner runs`: the live runs, those that run, then those that wait."""
    if ask.fields["q"] is not None:
        return await search_page(ask, "runs", search_runs)
    limit, after = ask.fields["limit"], ask.fields["after"]
    async with ask.desk.reading() as conn:

        async def read(most: int, last: Mapping[str, Any] | None) -> Sequence[Mapping[str, Any]]:
            place = _run_place(after if last is None else _place_of(last))
            return await live_runs_after(conn, ask.fields["worker"], most, place)

        return await _page(ask, conn, limit, read, _place_of)


def _place_of(run: Mapping[str, Any]) -> str:
    kind, moment = ("waiting", run["due_at"]) if run["slot"] is None else ("active", run["started_at"])
    return _token([kind, time_to_json(moment), run["id"]])


def _run_place(after: str | None) -> tuple[str, datetime, int] | None:
    if after is None:
        return None
    kind, moment, run_id = _read_token(after, (str, str, int))
    return kind, parse_time(moment), read_id("after", run_id)


async def run(ask: Ask) -> dict[str, Any]:
    """`jobrunner show`: one run, live or ended, with its attempts, its letter and what came of that."""
    async with ask.desk.database() as db:
        story = await read_story(db, ask.path["id"], ask.now)
        async with db.read() as conn:
            (shown,) = await ask.shown(conn, [story])
    return shown


async def history(ask: Ask) -> Page:
    """`jobrunner history`: what ended, the newest first."""
    if ask.fields["q"] is not None:
        return await search_page(ask, "history", search_history)
    limit, name = ask.fields["limit"], ask.fields["worker"]
    since, until = read_span(ask.fields["since"], ask.fields["until"], ask.now)
    narrowed = {
        "worker": name,
        "outcome": ask.fields["outcome"],
        "since": since,
        "until": until,
        "run_id": ask.fields["run"],
    }
    async with ask.desk.reading() as conn:
        if name is not None:
            await reading.require_trace(conn, name)
        first = _history_place(ask.fields["after"])

        async def read(most: int, last: Mapping[str, Any] | None) -> Sequence[Mapping[str, Any]]:
            return await read_history(conn, **narrowed, limit=most, before=first if last is None else dict(last))

        return await _page(ask, conn, limit, read, _history_token)


def _history_token(row: Mapping[str, Any]) -> str:
    return f"{row['id']}@{time_to_json(row['finished_at'])}"


def _history_place(after: str | None) -> dict[str, Any] | None:
    """Read the place `ID@TIME`: rows are in the order of ids, and narrowed by time alone in that of time."""
    if after is None:
        return None
    row_id, at, moment = after.partition("@")
    if not at:
        raise InvalidSetting(f"after {after[:60]!r} is no place in the history; take it from the answer's Link header")
    return {"id": read_id("after", row_id), "finished_at": parse_time(moment)}


async def letters(ask: Ask) -> Page:
    """`jobrunner dead-letters list`: the newest first."""
    if ask.fields["q"] is not None:
        return await search_page(ask, "letters", search_letters)
    limit, name, status = ask.fields["limit"], ask.fields["worker"], ask.fields["status"] or "open"
    async with ask.desk.reading() as conn:
        if name is not None:
            await reading.require_trace(conn, name)
        first = _id_place(ask.fields["after"])

        async def read(most: int, last: Mapping[str, Any] | None) -> Sequence[Mapping[str, Any]]:
            before_id = first if last is None else last["id"]
            state = None if status == "all" else status
            return await dead_letters.list_letters(conn, worker=name, status=state, limit=most, before_id=before_id)

        return await _page(ask, conn, limit, read, _id_token)


async def letter(ask: Ask) -> dict[str, Any]:
    """`jobrunner dead-letters show`: one letter, with the error of every attempt."""
    async with ask.desk.reading() as conn:
        (shown,) = await ask.shown(conn, [await dead_letters.read_letter(conn, ask.path["id"])])
    return shown


async def upcoming(ask: Ask) -> Page:
    """`jobrunner upcoming`: what will fire, in the order of time."""
    limit, name = ask.fields["limit"], ask.fields["worker"]
    start, place = ask.now, 0
    if ask.fields["after"] is not None:
        moment, place = _read_token(ask.fields["after"], (str, int))
        start = parse_time(moment)
        if abs(start - ask.now) > _OLDEST_LISTING:
            raise InvalidSetting("after is of an old listing; begin at the first page again")
    if not 0 <= place <= _MOST_UPCOMING - limit:
        raise InvalidSetting(f"more than {_MOST_UPCOMING:,} times are not told; name a worker, or a shorter `for`")
    until = start + timedelta(seconds=ask.fields["for"])
    async with ask.desk.database() as db, db.read() as conn:
        if name is not None:
            await reading.require_workers(conn, db.dialect, [name])
        to_play = await read_to_play(conn, db.dialect, start, until, name, place + limit, _MOST_UPCOMING)
        found, is_more = await reading.read_upcoming(conn, start, until, place + limit, name)
    ahead = await asyncio.to_thread(to_play.play)  # neither the connection nor whoever else asks waits for it
    rows = [ahead.row(row) for row in found[place:]]
    return Page(rows, upcoming_after(start, place + limit) if is_more else None)


def upcoming_after(start: datetime, place: int) -> str:
    """Return the place in the listing that begins at `start` after so many rows of it."""
    return _token([time_to_json(start), place])


async def nodes(ask: Ask) -> Page:
    """`jobrunner admin nodes`: the newest first."""
    limit, after = ask.fields["limit"], ask.fields["after"]
    async with ask.desk.reading() as conn:
        rows = list(await list_nodes(conn, ask.now, is_all=ask.fields["all"]))
    ids = [row["id"] for row in rows]
    if after is not None and after not in ids:
        raise InvalidSetting(f"after {after!r} is no node; begin at the first page again")
    first = 0 if after is None else ids.index(after) + 1
    shown = rows[first : first + limit]
    return Page(shown, shown[-1]["id"] if first + limit < len(rows) else None)


async def audit(ask: Ask) -> Page:
    """`jobrunner admin audit`: who decided what, the newest first."""
    async with ask.desk.reading() as conn:
        found = await search_audits(
            conn,
            ask.fields["limit"],
            ask.fields["after"],
            worker=ask.fields["worker"],
            since=ask.fields["since"],
            actions=ask.fields["action"] or (),
            actor=ask.fields["actor"],
        )
        return _found(found, await ask.shown(conn, found.rows))


async def search_page(ask: Ask, kind: str, search: Search) -> Page:
    """Return a page of the rows of `kind` that fit the filter `q`.

    Raises:
        UsageError: the filter cannot be read, or stands beside other fields.
        Forbidden: it looks into a field that is hidden from the one who asks.
    """
    for name, value in ask.fields.items():
        if name not in {"q", "limit", "after"} and value is not None:
            raise UsageError(f"q and {name} are both given; write {name}: into q")
    asked = parse_filter(ask.fields["q"], kind, ask.now)
    if asked.payload and ask.level < Level.ADMIN:
        asked = replace(asked, is_of_known=True)  # of a worker that is gone nobody knows what it hid
    async with ask.desk.reading() as conn:
        await refuse_hidden(ask, conn, asked)
        found = Found([], _id_place(ask.fields["after"]))

        async def read(most: int, _last: Mapping[str, Any] | None) -> Sequence[Mapping[str, Any]]:
            nonlocal found
            found = await search(conn, asked, most, found.after)
            return found.rows

        rows, _ = await in_pieces(ask.fields["limit"], read)
        return _found(found, await ask.shown(conn, rows))


def _found(found: Found, shown: list[dict[str, Any]]) -> Page:
    return Page(shown, None if found.after is None else str(found.after), found.searched, _id_token)


async def refuse_hidden(ask: Ask, conn: AsyncConnection, asked: Filter) -> None:
    """Refuse a search in what any worker hides: that something was found would tell its value. Raises `Forbidden`."""
    if not asked.payload or ask.level >= Level.ADMIN:
        return
    hidden = await read_all_hidden(conn)
    for path, _ in asked.payload:
        if any(is_told_by(path, field) for field in hidden):
            raise Forbidden(f"payload.{'.'.join(path)} is hidden by a worker; only an administrator may search in it")


def _id_place(after: str | None) -> int | None:
    return None if after is None else read_id("after", after)


async def alerts(ask: Ask) -> Page:
    """`jobrunner alerts list`: the incidents, the newest first."""
    limit, name = ask.fields["limit"], ask.fields["worker"]
    async with ask.desk.reading() as conn:
        rows = await incidents.list_incidents(
            conn, limit + 1, worker=name, is_all=ask.fields["all"], before_id=ask.fields["after"]
        )
        return _by_id(await ask.shown(conn, rows), limit)


async def rules(ask: Ask) -> Page:
    """`jobrunner alerts rules`: who is told of what; of secrets the names only."""
    limit, after = ask.fields["limit"], ask.fields["after"]
    async with ask.desk.reading() as conn:
        rows = [row for row in await incidents.list_rules(conn) if after is None or row["name"] > after]
    shown = [ask.published(row) for row in rows[:limit]]
    return Page(shown, rows[limit - 1]["name"] if len(rows) > limit else None)


async def operations(ask: Ask) -> Page:
    """`jobrunner bulk list`: the newest first."""
    limit = ask.fields["limit"]
    async with ask.desk.reading() as conn:
        rows = await bulk.read_operations(conn, limit + 1, ask.fields["after"])
    return _by_id([ask.published(row) for row in rows], limit)


async def operation(ask: Ask) -> dict[str, Any]:
    """`jobrunner bulk show`: one operation, and how far it has come."""
    async with ask.desk.reading() as conn:
        return ask.published(await bulk.read_operation(conn, ask.path["id"]))


async def _page(
    ask: Ask,
    conn: AsyncConnection,
    limit: int,
    read: Callable[[int, Mapping[str, Any] | None], Awaitable[Sequence[Mapping[str, Any]]]],
    place_of: Callable[[Mapping[str, Any]], str],
) -> Page:
    """Return a page of rows that may be large, as `in_pieces` reads them: of `limit`, or of fewer."""
    rows, is_cut = await in_pieces(limit + 1, read)
    shown = await ask.shown(conn, rows[:limit])
    is_more = is_cut or len(rows) > limit
    return Page(shown, place_of(shown[-1]) if is_more else None, None, place_of)


def _id_token(row: Mapping[str, Any]) -> str:
    return str(row["id"])


def _by_id(rows: Sequence[Mapping[str, Any]], limit: int) -> Page:
    """Return a page of rows, one more than `limit` of them read, whose place is their id."""
    return Page(rows[:limit], _id_token(rows[limit - 1]) if len(rows) > limit else None, None, _id_token)


def _token(place: list[Any]) -> str:
    text = json.dumps(place, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _read_token(token: str, kinds: tuple[type, ...]) -> tuple[Any, ...]:
    try:
        place = json.loads(base64.urlsafe_b64decode(token.encode() + b"=" * (-len(token) % 4)))
    except (ValueError, RecursionError):
        place = None
    is_ours = isinstance(place, list) and len(place) == len(kinds)
    if not is_ours or not all(type(part) is kind for part, kind in zip(place, kinds, strict=True)):
        raise InvalidSetting(f"after {token[:60]!r} is no place in this list; take it from the answer's Link header")
    return tuple(place)
