"""Filter terms on the command line (`policy.filters`), and the listing of what they find.

A worker's name holds no colon: a word with one is a term, a word without is the worker. What an option says is the same
as its term.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobrunner.cli import context
from jobrunner.cli.output import note, show_pages, show_rows
from jobrunner.errors import UsageError
from jobrunner.policy.filters import Filter, parse_filter, split_terms

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence

    from jobrunner.cli.layout import Column
    from jobrunner.storage.database.database import Database
    from jobrunner.storage.reading.search import Found
    from jobrunner.storage.runs.transaction import AsyncConnection

    Search = Callable[[AsyncConnection, Filter, int, int | None], Awaitable[Found]]

_PAGE_ROWS = 500
Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[WORKER | TERM]...",
        help="Of this worker only, or of what fits terms such as worker:send-* outcome:failed since:2h error:timeout"
        " payload.customer:42.",
        show_default=False,
    ),
]


def read_words(words: Iterable[str] | None, worker: str | None, kind: str, **options: Any) -> tuple[str | None, Filter]:
    """Return the one worker that was named, and the filter that the terms and `options` make; empty without terms.

    Raises:
        UsageError: two workers are named, or a term cannot be read.
    """
    terms = [word for word in words or () if ":" in word]
    named = [*(word for word in words or () if ":" not in word), *([] if worker is None else [worker])]
    if len(set(named)) > 1:
        raise UsageError(f"two workers are given, {named[0]!r} and {named[1]!r}; write worker:{named[0]},{named[1]}")
    only = named[0] if named else None
    if not terms:
        return only, Filter()
    options = {"worker": only, **options}
    for key, value in options.items():
        if value is not None:
            terms.append(f"{key}:{','.join(map(str, value)) if isinstance(value, list) else value}")
    now = context.now()
    local = now.astimezone().replace(tzinfo=None)
    return only, parse_filter(filter_text(terms), kind, now, local)


def filter_text(terms: Iterable[str]) -> str:
    """Return the terms of a command line as one filter."""
    return " ".join(map(_quoted, terms))


def _quoted(term: str) -> str:
    """Quote a value with spaces anew: the shell has taken its quotes away. A word that is several terms stays."""
    if len(split_terms(term)) > 1:
        return term
    key, colon, value = term.partition(":")
    if value and not value.startswith('"') and (set(value) & set(' "\t')):
        value = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"{key}{colon}{value}"


async def show_found(
    db: Database,
    search: Search,
    asked: Filter,
    limit: int | None,
    shown: Sequence[Column],
    empty: str,
    *,
    as_json: bool,
    screenful: int = 50,
    order: str = "newest",
    elsewhere: str = "worker:, outcome: or until: looks elsewhere",
) -> None:
    """Print what a search finds: its first rows for people, all there is for a program that gave no limit.

    `order` says from which end; `elsewhere` what is looked up by an index.
    """
    if as_json and limit is None:
        await show_pages(_pages(db, search, asked))
        return
    most = limit or screenful
    async with db.read() as conn:
        found = await search(conn, asked, most, None)
    show_rows(found.rows, shown, as_json=as_json, empty=empty)
    if found.searched is not None:
        note(f"looked through the {order} {found.searched:,} rows; {elsewhere}, --json goes through all")
    elif found.after is not None:
        note(f"the {order} {most}; --limit shows more")


async def _pages(db: Database, search: Search, asked: Filter) -> AsyncIterator[Sequence[Mapping[str, Any]]]:
    after: int | None = None
    while True:
        async with db.peek() as conn:
            found = await search(conn, asked, _PAGE_ROWS, after)
        if found.rows:
            yield found.rows
        after = found.after
        if after is None:
            return
