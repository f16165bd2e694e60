"""A turn of the fast path as one SQLite statement: `INSERT INTO take_turn`, whose trigger does all of it.

A thread that runs a statement lets go of Python's interpreter lock, and must win it back from the event loop for the
next one. A turn of 50 runs took 2.3 ms as a dozen statements; as one, which is also its own transaction, 1.7 ms.

It states its plans, rather than leave them to estimates: joins in the order written (CROSS JOIN), and what it writes
found by IN, since SQLite knows nothing of how many rows a temporary table has.

The view, its trigger and the tables it works in are temporary: each write connection has its own, in memory, and the
database's schema knows nothing of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobrunner.storage.tables.define import HAS_LEFT
from jobrunner.storage.turns import rules as r

if TYPE_CHECKING:
    import sqlite3

TAKE_TURN = """
INSERT INTO take_turn (node, now, free, ended, ended_workers, eligible, passed_runs, passed_schedules, firings)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
"""`now` is a time as text, `free` the number of free slots; the others are JSON arrays.

ended: of [run id, fence, finished_at, duration_ms, result, reason, output], the result itself as JSON text.
ended_workers: of [name, revision], the workers of those runs.
eligible: of [name, revision, most of a key, starts of a rate, since when they count, how many ended attempts did, the
last row that was counted, until when they count]; empty to claim nothing.
passed_runs, passed_schedules: the names of the workers whose waiting runs, and whose schedules, need no other decision.
firings: of [name, the `next_run_at` that is expected, what is due, the next `next_run_at`]; empty to claim runs.
"""
ANSWER = (
    "SELECT ended, claims, has_other, (SELECT json_group_array(json_array(worker, ended, last_id)) FROM turn_counted)"
    " FROM turn_answer"
)
"""Ids of the runs whose ends were written, the claims (`CLAIM`, each a JSON array), whether other work is due, and what
was counted of rates (`known_starts`)."""
_CLAIM = f"json_array({r.CLAIMED})"
_PENDING = "r.state = 'pending' AND r.worker = {worker} AND r.priority = {priority}"
_FIRST_DUE = "\n                OR ".join(
    f"(SELECT r.due_at FROM runs r WHERE {_PENDING.format(worker='t.name', priority=priority)}"  # noqa: S608 - constants
    " ORDER BY r.due_at LIMIT 1) <= NEW.now"
    for priority in range(4)
)
_BY_PRIORITY = "\n        UNION ALL ".join(
    "SELECT * FROM (SELECT r.id, r.worker, r.priority, r.due_at, r.first_started_at, r.limit_key FROM runs r WHERE "  # noqa: S608
    f"{_PENDING.format(worker='NEW.worker', priority=priority)} AND r.due_at <= NEW.now"
    " ORDER BY r.due_at, r.id LIMIT NEW.page)"
    for priority in (3, 2, 1, 0)
)
_TABLES = {
    "turn_answer": "free INTEGER, ended TEXT, claims TEXT, has_other INTEGER",
    "turn_ending": "id INTEGER PRIMARY KEY, worker, finished_at, ms, result, reason, output",
    "turn_ended": "worker TEXT PRIMARY KEY, finished_at, ms, runs, latest",
    "turn_counted": "worker TEXT PRIMARY KEY, ended, last_id",
    "turn_room": "worker TEXT PRIMARY KEY, last_fence, ended_at, most, after, now, page, key_most, is_rated",
    "turn_first": "place INTEGER PRIMARY KEY, id, worker, priority, due_at, first_started_at, limit_key, key_place",
    "turn_slot": "place INTEGER PRIMARY KEY, slot",
    "turn_chosen": "place INTEGER PRIMARY KEY, id, worker, slot, fence, at, first_started_at, key_slot, is_rated",
    "turn_fenced": "worker TEXT PRIMARY KEY, fence, began_at",
    "turn_fired": "worker TEXT PRIMARY KEY, due, next, fence, at",
}
_EMPTIED = "\n    ".join(f"DELETE FROM {name};" for name in _TABLES)  # noqa: S608 - constants
_PLAIN_FIRST = f"""
    INSERT INTO turn_first (id, worker, priority, due_at, first_started_at, limit_key)
    SELECT * FROM (
        {_BY_PRIORITY}
    )
    AS f ORDER BY {r.STARTING_ORDER} LIMIT NEW.most;
"""  # noqa: S608 - made of constants
# Of each key as many as there is room for. Where all that were read are too few, the long way looks behind them.
_KEYED_FIRST = f"""
    INSERT INTO turn_first (id, worker, priority, due_at, first_started_at, limit_key, key_place)
    SELECT * FROM (
        SELECT f.*, row_number() OVER (PARTITION BY limit_key ORDER BY {r.STARTING_ORDER}) AS n
        FROM (
        {_BY_PRIORITY}
        ) AS f
    )
    AS f WHERE limit_key IS NULL OR n <= NEW.key_most - (
        SELECT count(*) FROM runs r
        WHERE r.worker = NEW.worker AND r.limit_key = f.limit_key AND r.key_slot IS NOT NULL
    )
    ORDER BY {r.STARTING_ORDER} LIMIT NEW.most;
    UPDATE turn_answer SET has_other = true
    WHERE (SELECT count(*) FROM turn_first f WHERE f.worker = NEW.worker) < NEW.most
        AND (
            SELECT count(*) FROM (
                SELECT 1 FROM runs r WHERE r.state = 'pending' AND r.worker = NEW.worker AND r.due_at <= NEW.now
                LIMIT NEW.page
            )
        ) >= NEW.page;
"""  # noqa: S608 - made of constants
# For each worker that has room: as many of its runs as could start at most, in order, beside its lowest free slots.
_LOOKS = tuple(
    f"""
CREATE TEMP TRIGGER IF NOT EXISTS {name} AFTER INSERT ON turn_room WHEN NEW.most > 0 AND {condition} BEGIN
    UPDATE turn_room SET after = (SELECT coalesce(max(place), 0) FROM turn_first) WHERE worker = NEW.worker;
    {first}
    INSERT INTO turn_slot (slot)
    SELECT numbers.n FROM turn_numbers AS numbers
    WHERE NOT EXISTS (SELECT 1 FROM runs r WHERE r.worker = NEW.worker AND r.slot = numbers.n)
    LIMIT (SELECT (SELECT coalesce(max(place), 0) FROM turn_first) - after FROM turn_room WHERE worker = NEW.worker);
END
"""  # noqa: S608 - made of constants
    for name, condition, first in (
        ("turn_look", "NEW.key_most IS NULL", _PLAIN_FIRST),
        ("turn_look_by_key", "NEW.key_most IS NOT NULL", _KEYED_FIRST),
    )
)
_OBJECTS = (
    """
CREATE TEMP VIEW IF NOT EXISTS take_turn AS SELECT
    NULL AS node, NULL AS now, NULL AS free, NULL AS ended, NULL AS ended_workers, NULL AS eligible,
    NULL AS passed_runs, NULL AS passed_schedules, NULL AS firings
""",
    *(f"CREATE TEMP TABLE IF NOT EXISTS {name} ({columns})" for name, columns in _TABLES.items()),
    # A loose scan of the index: one step a worker, however many runs it has waiting.
    """
CREATE TEMP VIEW IF NOT EXISTS turn_waiting AS
WITH RECURSIVE waiting (name) AS (
    SELECT min(worker) FROM runs WHERE state = 'pending'
    UNION ALL
    SELECT (SELECT min(r.worker) FROM runs r WHERE r.state = 'pending' AND r.worker > waiting.name)
    FROM waiting WHERE waiting.name IS NOT NULL
)
SELECT name FROM waiting WHERE name IS NOT NULL
""",
    """
CREATE TEMP VIEW IF NOT EXISTS turn_numbers AS
WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers LIMIT 1000000) SELECT n FROM numbers
""",
    *_LOOKS,
    f"""
CREATE TEMP TRIGGER IF NOT EXISTS turn_taken INSTEAD OF INSERT ON take_turn BEGIN
    {_EMPTIED}

    -- The ends of claims that still stand, of workers of which nothing has changed since.
    INSERT INTO turn_ending
    SELECT
        r.id, r.worker, e.value ->> 2, e.value ->> 3, e.value ->> 4, e.value ->> 5, e.value ->> 6
    FROM json_each(NEW.ended) e CROSS JOIN runs r ON r.id = e.value ->> 0 AND r.fence = e.value ->> 1
    WHERE r.worker IN (
        SELECT s.worker
        FROM json_each(NEW.ended_workers) n
        CROSS JOIN worker_state s ON s.worker = n.value ->> 0
        CROSS JOIN workers w ON w.name = s.worker
        WHERE {r.REVISION} = n.value ->> 1
    );
    INSERT INTO run_history ({r.HISTORY_COLUMNS})
    SELECT {r.HISTORY_OF_SUCCESS}
    FROM turn_ending e CROSS JOIN runs r ON r.id = e.id ORDER BY e.id;
    DELETE FROM runs WHERE id IN (SELECT id FROM turn_ending);
    INSERT INTO turn_ended
    SELECT last.worker, last.finished_at, last.ms, each.runs, each.latest
    FROM (
        SELECT max(id) AS last_id, count(*) AS runs, max(finished_at) AS latest FROM turn_ending GROUP BY worker
    ) each CROSS JOIN turn_ending last ON last.id = each.last_id;
    UPDATE worker_state SET
        {r.AFTER_SUCCESS},
        (last_success_at, last_duration_ms, total_runs, last_ended_at) = (
            SELECT
                e.finished_at, coalesce(e.ms, last_duration_ms), total_runs + e.runs,
                max(coalesce(last_ended_at, ''), e.latest)
            FROM turn_ended e WHERE e.worker = worker_state.worker
        )
    WHERE worker IN (SELECT worker FROM turn_ended);
    INSERT INTO turn_answer (free, ended, claims, has_other)
    SELECT NEW.free + count(*), json_group_array(id), '[]', false FROM turn_ending;

    -- Is who was eligible as it was? And is nothing else due?
    UPDATE turn_answer SET has_other = true
    WHERE free > 0 AND json_array_length(NEW.eligible) > 0 AND (
        EXISTS (SELECT 1 FROM nodes WHERE id = NEW.node AND {HAS_LEFT})
        OR EXISTS (
            SELECT 1
            FROM json_each(NEW.eligible) g
            LEFT JOIN worker_state s ON s.worker = g.value ->> 0
            LEFT JOIN workers w ON w.name = g.value ->> 0
            WHERE ({r.REVISION} = g.value ->> 1) IS NOT TRUE
        )
        OR EXISTS (
            SELECT 1 FROM turn_waiting t
            WHERE t.name NOT IN (SELECT value FROM json_each(NEW.passed_runs)) AND (
                {_FIRST_DUE}
            )
        )
        OR EXISTS (
            SELECT 1 FROM worker_state s
            WHERE s.next_run_at IS NOT NULL AND s.next_run_at <= NEW.now
                AND s.worker NOT IN (SELECT value FROM json_each(NEW.passed_schedules))
        )
        OR EXISTS (
            SELECT 1 FROM json_each(NEW.eligible) g
            WHERE g.value ->> 3 IS NOT NULL AND {r.IS_FORCED_PAST.format(p="", worker="g.value ->> 0", now="NEW.now")}
        )
    );

    -- Runs that wait: the first in starting order, each into its worker's lowest free slot under the next fence.
    INSERT INTO turn_counted (worker, ended, last_id)
    SELECT
        s.worker, (g.value ->> 5) + (
            SELECT count(*) FROM run_history h WHERE h.worker = s.worker AND h.id > g.value ->> 6
        ), coalesce((SELECT max(h.id) FROM run_history h WHERE h.worker = s.worker), 0)
    FROM turn_answer a
    CROSS JOIN json_each(NEW.eligible) g
    CROSS JOIN worker_state s ON s.worker = g.value ->> 0
    WHERE a.free > 0 AND NOT a.has_other AND json_array_length(NEW.firings) = 0 AND g.value ->> 3 IS NOT NULL;
    UPDATE turn_counted SET ended = (
        SELECT count(*) FROM run_history h
        WHERE h.worker = turn_counted.worker AND h.is_rated AND h.started_at > (
            SELECT g.value ->> 4 FROM json_each(NEW.eligible) g WHERE g.value ->> 0 = turn_counted.worker
        ) AND h.started_at < (
            SELECT g.value ->> 7 FROM json_each(NEW.eligible) g WHERE g.value ->> 0 = turn_counted.worker
        )
    ) WHERE (
        ended + (SELECT count(*) FROM runs r WHERE r.worker = turn_counted.worker AND r.slot IS NOT NULL)
        + (SELECT free FROM turn_answer)
        <= (SELECT g.value ->> 3 FROM json_each(NEW.eligible) g WHERE g.value ->> 0 = turn_counted.worker)
    ) IS NOT TRUE;
    INSERT INTO turn_room (worker, last_fence, ended_at, most, now, page, key_most, is_rated)
    SELECT
        worker, last_fence, ended_at, most, NEW.now, CASE WHEN key_most IS NULL THEN most ELSE most * 2 END, key_most,
        is_rated
    FROM (SELECT
        s.worker, s.last_fence, coalesce(s.last_ended_at, '') AS ended_at,
        min(
            a.free, w.max_running - (SELECT count(*) FROM runs r WHERE r.worker = s.worker AND r.slot IS NOT NULL),
            CASE WHEN g.value ->> 3 IS NULL THEN a.free ELSE (g.value ->> 3) - (
                SELECT c.ended FROM turn_counted c WHERE c.worker = s.worker
            ) - (
                SELECT count(*) FROM runs r
                WHERE r.worker = s.worker AND r.slot IS NOT NULL
                    AND r.started_at > g.value ->> 4 AND r.started_at < g.value ->> 7
            ) END
        ) AS most,
        g.value ->> 2 AS key_most, g.value ->> 3 IS NOT NULL AS is_rated
    FROM turn_answer a
    CROSS JOIN json_each(NEW.eligible) g
    CROSS JOIN worker_state s ON s.worker = g.value ->> 0
    CROSS JOIN workers w ON w.name = s.worker
    WHERE a.free > 0 AND NOT a.has_other AND json_array_length(NEW.firings) = 0);
    INSERT INTO turn_chosen (id, worker, slot, fence, at, first_started_at, key_slot, is_rated)
    SELECT
        f.id, f.worker, slot.slot, room.last_fence + f.place - room.after, max(NEW.now, room.ended_at),
        f.first_started_at,
        CASE WHEN f.key_place IS NULL OR f.limit_key IS NULL THEN NULL ELSE (
            WITH RECURSIVE seen (n, free) AS (  -- of the numbers that are free the `key_place`-th
                SELECT -1, 0
                UNION ALL
                SELECT n + 1, free + NOT EXISTS (
                    SELECT 1 FROM runs r
                    WHERE r.worker = f.worker AND r.limit_key = f.limit_key AND r.key_slot = seen.n + 1
                ) FROM seen WHERE free < f.key_place
            )
            SELECT max(n) FROM seen
        ) END,
        room.is_rated
    FROM turn_first f
    CROSS JOIN turn_room room ON room.worker = f.worker
    CROSS JOIN turn_slot slot ON slot.place = f.place
    ORDER BY {r.STARTING_ORDER}
    LIMIT (SELECT max(0, free) FROM turn_answer);
    UPDATE runs SET
        state = 'running', slot = c.slot, fence = c.fence, node_id = NEW.node, started_at = c.at,
        first_started_at = coalesce(runs.first_started_at, c.at), key_slot = c.key_slot, is_rated = c.is_rated
    FROM turn_chosen c WHERE runs.id = c.id;
    INSERT INTO turn_fenced
    SELECT worker, max(fence), max(CASE WHEN first_started_at IS NULL THEN at END) FROM turn_chosen GROUP BY worker;
    UPDATE worker_state SET (last_fence, last_run_at) = (
        SELECT f.fence, coalesce(f.began_at, last_run_at) FROM turn_fenced f WHERE f.worker = worker_state.worker
    )
    WHERE worker IN (SELECT worker FROM turn_fenced);

    -- Or schedules: each worker whose time is what the node expects, and which has no run at all.
    INSERT INTO turn_fired
    SELECT
        s.worker, g.value ->> 2, g.value ->> 3, s.last_fence + 1, max(NEW.now, coalesce(s.last_ended_at, ''))
    FROM turn_answer a
    CROSS JOIN json_each(NEW.firings) g
    CROSS JOIN worker_state s ON s.worker = g.value ->> 0 AND s.next_run_at = g.value ->> 1
    WHERE a.free > 0 AND NOT a.has_other
        AND {r.HAS_NO_RUN.format(p="")};
    INSERT INTO runs ({r.FIRED_COLUMNS})
    SELECT {r.FIRED.format(node="NEW.node", now="NEW.now")}
    FROM turn_fired f CROSS JOIN workers w ON w.name = f.worker;
    UPDATE worker_state SET (last_due_at, next_run_at, last_fence, last_run_at) = (
        SELECT f.due, f.next, f.fence, f.at FROM turn_fired f WHERE f.worker = worker_state.worker
    )
    WHERE worker IN (SELECT worker FROM turn_fired);

    UPDATE turn_answer SET claims = (
        SELECT json_group_array({_CLAIM}) FROM turn_chosen c CROSS JOIN runs r ON r.id = c.id
    ) WHERE EXISTS (SELECT 1 FROM turn_chosen);
    UPDATE turn_answer SET claims = (
        SELECT json_group_array({_CLAIM}) FROM turn_fired f CROSS JOIN runs r ON r.worker = f.worker AND r.slot = 0
    ) WHERE EXISTS (SELECT 1 FROM turn_fired);
END
""",  # noqa: S608 - made of constants
)


def prepare(connection: sqlite3.Connection) -> None:
    """Make a write connection, which has seen the schema's tables, ready for turns; doing it again does no harm."""
    connection.execute("PRAGMA temp_store = MEMORY")
    for statement in _OBJECTS:
        connection.execute(statement)
