"""Keeping two small tables small while PostgreSQL's vacuum can clean nothing up.

`claims` and `worker_state` have few rows, which change with every run. As long as a snapshot is held anywhere (a
transaction that is idle, a long report, a replication slot) every older version stays, under the same key, and each
lookup steps over all of them: after some 100,000 runs a turn takes ten times as long. TRUNCATE is what a held snapshot
does not prevent: the live rows are set aside, the table is emptied, and the rows are put back.

That takes the table from everybody for some 5 ms, and who wants it meanwhile queues behind. So one table is taken at a
time, and given up after `LOCK_TIMEOUT_MS` where somebody keeps it in use. Who has an older snapshot finds the table
empty afterwards, as PostgreSQL's manual says of TRUNCATE; our own readers take both tables before their snapshot
(`Dialect.keep_state`).

To empty a table instead of deleting from it is the way of PgQ, which rotates three of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

if TYPE_CHECKING:
    from jobrunner.storage.database.database import Database

PAGES = {"claims": 32, "worker_state": 24}
"""What a table may have in pages of 8 KiB: some 4,800 versions of claims, 800 of states."""
HELD_TRANSACTIONS = 250
"""A snapshot that many transactions old counts as held. Without one the server itself reuses what is dead, and a table
is made small only when it has `UNUSUAL` times as many pages."""
UNUSUAL = 8
MOST_ROWS = 10_000
"""With more rows, putting them back (15 us each) would keep others waiting for too long."""
LOCK_TIMEOUT_MS = 50
_LOOK = sa.text("""
SELECT
    c.relname AS name, size.pages, pg_stat_get_live_tuples(c.oid) AS live,
    has_table_privilege(c.oid, 'TRUNCATE') AS may_truncate,
    CASE WHEN size.pages > :least THEN greatest(
        (SELECT max(age(a.backend_xmin)) FROM pg_stat_get_activity(NULL) a
         WHERE a.datid = (SELECT oid FROM pg_database WHERE datname = current_database()) OR coalesce(a.datid, 0) = 0),
        (SELECT max(age(s.xmin)) FROM pg_replication_slots s)
    ) > :held END AS is_held
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL (SELECT pg_relation_size(c.oid) / 8192 AS pages OFFSET 0) size
WHERE n.nspname = :schema AND c.relname IN ('claims', 'worker_state')
""")


@dataclass(frozen=True)
class Compacted:
    """What became of the tables that had grown, by name: made small, in use, or not ours to TRUNCATE."""

    done: tuple[str, ...] = ()
    in_use: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


@dataclass
class Compactor:
    """Makes the tables small when they have grown since it last did. For PostgreSQL."""

    db: Database
    _least: dict[str, int] = field(default_factory=dict)

    async def compact(self) -> Compacted:
        """Look at both tables, and make small what has grown.

        Raises:
            DatabaseError: the database cannot be used.
        """
        async with self.db.peek() as conn:
            given = {"schema": self.db.schema, "least": min(PAGES.values()), "held": HELD_TRANSACTIONS}
            found = (await conn.execute(_LOOK, given)).all()
        grown = [row for row in found if row.pages > self._most(row) and row.live <= MOST_ROWS]
        allowed = [row for row in grown if row.may_truncate]
        done = [row.name for row in allowed if await self._make_small(row.name, row.pages)]
        return Compacted(
            tuple(done),
            tuple(row.name for row in allowed if row.name not in done),
            tuple(row.name for row in grown if not row.may_truncate),
        )

    def _most(self, row: Any) -> int:
        """Return how many pages a table may have now."""
        most = max(PAGES[row.name], 2 * self._least.get(row.name, 0))
        return most if row.is_held else UNUSUAL * most

    async def _make_small(self, name: str, pages: int) -> bool:
        table = f"{self.db.schema_prefix}{name}"
        async with self.db.write() as conn:
            await conn.exec_driver_sql(_COMPACT.format(table=table, ms=LOCK_TIMEOUT_MS))
            after = (await conn.exec_driver_sql(f"SELECT pg_relation_size('{table}') / 8192")).scalar_one()
        if after >= pages:
            return False
        self._least[name] = after
        return True


# By the columns that are there, not by those we know: while nodes of two releases meet, the newer schema may have more.
_COMPACT = """
DO $$
DECLARE
    kept {table}[];
    names text;
BEGIN
    SET LOCAL lock_timeout = {ms};
    LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE;
    kept := ARRAY(SELECT k FROM {table} k);
    TRUNCATE {table};
    SELECT string_agg(quote_ident(attname), ', ') INTO names FROM pg_attribute
    WHERE attrelid = '{table}'::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = '';
    EXECUTE format('INSERT INTO {table} (%1$s) SELECT %1$s FROM unnest($1)', names) USING kept;
EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
    NULL;  -- somebody keeps it in use
END $$
"""
