"""A turn of the fast path as one PostgreSQL statement: a call of the function `take_turn`, all in one round trip.

The function is the session's own (`pg_temp`), made when the connection opens, which takes 5 to 15 ms once. A turn of
50 runs is as fast as with a function of the schema: 6.1 ms each in one trial. Its user needs the right TEMPORARY on the
database, which everybody has unless it was revoked.

A statement in a VOLATILE function sees what was committed before that statement began: locking and looking are two
statements here as they are elsewhere. The settings keep a plan from following statistics that are older than the queue
is: every lookup here is by an index, of few rows.
"""

from __future__ import annotations

from sqlalchemy.dialects import postgresql

from jobrunner.storage.runs.fact_statements import next_times
from jobrunner.storage.tables.define import HAS_LEFT, SCHEMA_TOKEN
from jobrunner.storage.turns import postgres_limits as limits
from jobrunner.storage.turns import rules as r

PAGES = 2
"""Of a worker that goes by key so many times more runs are read than may start."""
ARGUMENTS = {
    "this_node": "text",
    "at": "timestamptz",
    "free": "integer",
    "names": "text[]",
    "revisions": "bigint[]",
    "stuck": "text[]",
    "f_expected": "timestamptz[]",
    "f_due": "timestamptz[]",
    "f_next": "timestamptz[]",
    "e_ids": "bigint[]",
    "e_fences": "bigint[]",
    "e_workers": "text[]",
    "e_revisions": "bigint[]",
    "e_finished": "timestamptz[]",
    "e_ms": "bigint[]",
    "e_results": "jsonb[]",
    "e_reasons": "text[]",
    "e_outputs": "text[]",
    "after_dues": "timestamptz[]",
    "after_ids": "bigint[]",
    "is_looking": "boolean",
    "since": "text",
    "key_limits": "integer[]",
    "rate_counts": "integer[]",
    "rate_windows": "interval[]",
    "rate_known": "bigint[]",
    "rate_lasts": "bigint[]",
    "asks_time": "boolean",
}
"""`names`: eligible workers, the first of them with `revisions`; `stuck`: workers to be passed by. `f_…`: firings of
the first of `names`. `e_…`: ends, but for `e_workers` and `e_revisions`, which are of their workers. `after_…`: how far
the node has come in the queues of `names`, four of each by priority; empty to read all. `is_looking`: look for what
came before that since the snapshot `since`, which an earlier look answered. `key_limits`, `rate_…`: of `names`; empty
if none has any. `asks_time`: the time of rates is the server's own, and not `at`."""


def call() -> str:
    """Return the statement of a turn. JSON is sent as arrays of texts, and read by the server."""
    given = (
        f"${place}::text[]::jsonb[]" if kind == "jsonb[]" else f"${place}"
        for place, kind in enumerate(ARGUMENTS.values(), 1)
    )
    return f"SELECT * FROM pg_temp.take_turn({', '.join(given)})"  # noqa: S608 - made of constants


def definition(p: str) -> str:
    """Return the statement that makes the function; `p` is the prefix of our names, checked in `database`."""
    columns = ", ".join(f"{column} {kind}" for column, kind in r.CLAIM.items())
    return f"""
CREATE OR REPLACE FUNCTION pg_temp.take_turn(
    {", ".join(f"{name} {kind}" for name, kind in ARGUMENTS.items())}
) RETURNS TABLE (kind text, {columns}) LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    current text[];
    ids bigint[];
    fences bigint[];
    slots integer[];
    starts timestamptz[];
    ended integer := 0;
    deleted integer;
    mine text[];
    eligible integer;
    claimed integer;
    seen pg_snapshot;
    places integer[];
    dues timestamptz[];
    key_slots integer[];
    rated boolean[];
    is_short boolean;
    is_full boolean;
    rated_at timestamptz;
    counted jsonb;
BEGIN
    IF cardinality(e_ids) > 0 THEN
        PERFORM FROM {p}worker_state s WHERE s.worker = ANY (e_workers)
        ORDER BY s.worker FOR NO KEY UPDATE OF s;
        current := ARRAY(  -- workers of which nothing has changed since
            SELECT s.worker
            FROM unnest(e_workers, e_revisions) AS g (name, revision)
            JOIN {p}worker_state s ON s.worker = g.name
            JOIN {p}workers w ON w.name = g.name
            WHERE {r.REVISION} = g.revision
        );
        WITH standing AS MATERIALIZED (  -- the claims that still stand
            SELECT r.*, e.finished_at, e.ms, e.result, e.reason, e.said
            FROM unnest(e_ids, e_fences, e_finished, e_ms, e_results, e_reasons, e_outputs)
                AS e (id, fence, finished_at, ms, result, reason, said)
            CROSS JOIN LATERAL (
                SELECT * FROM {p}runs r WHERE r.id = e.id AND r.fence = e.fence OFFSET 0
            ) r
            WHERE r.worker = ANY (current)
        ), kept AS (
            INSERT INTO {p}run_history ({r.HISTORY_COLUMNS})
            SELECT {r.HISTORY_OF_SUCCESS}
            FROM standing r
            CROSS JOIN LATERAL (SELECT r.finished_at, r.ms, r.reason, r.result, r.said AS output) e
            ORDER BY r.id
        ), by_worker AS MATERIALIZED (  -- what the last of a worker's runs leaves
            SELECT
                s.worker, count(*) AS runs, max(s.finished_at) AS latest,
                (array_agg(s.finished_at ORDER BY s.id DESC))[1] AS finished_at,
                (array_agg(s.ms ORDER BY s.id DESC))[1] AS ms
            FROM standing s GROUP BY s.worker
        ), counted AS (
            UPDATE {p}worker_state s
            SET {r.AFTER_SUCCESS},
                (last_success_at, last_duration_ms, total_runs, last_ended_at) = (
                    SELECT
                        c.finished_at, coalesce(c.ms, s.last_duration_ms), s.total_runs + c.runs,
                        greatest(s.last_ended_at, c.latest)
                    FROM by_worker c WHERE c.worker = s.worker
                )
            WHERE s.worker = ANY (ARRAY(SELECT c.worker FROM by_worker c))
        )
        SELECT array_agg(s.id), count(*) INTO ids, ended FROM standing s;
        IF ended > 0 THEN
            DELETE FROM {p}runs r WHERE r.id = ANY (ids);
            GET DIAGNOSTICS deleted = ROW_COUNT;
            IF deleted <> ended THEN
                RAISE 'runs were deleted by another program while they were being finished'
                    USING ERRCODE = 'serialization_failure';
            END IF;
            -- In one row: a hundred of them would cost a millisecond on the way.
            RETURN QUERY SELECT 'ended'::text, {_no_claim("to_jsonb(ids)")};
        END IF;
    END IF;
    free := free + ended;
    IF free <= 0 OR cardinality(names) = 0 THEN
        RETURN;
    END IF;

    IF names[1:cardinality(revisions)] <@ current THEN  -- locked above; once more would be another write
        mine := names[1:cardinality(revisions)];
    ELSE
        mine := ARRAY(
            SELECT l.worker FROM (
                SELECT s.worker FROM {p}worker_state s
                WHERE s.worker = ANY (names[1:cardinality(revisions)])
                ORDER BY s.worker FOR NO KEY UPDATE OF s SKIP LOCKED
            ) l
        );
    END IF;
    eligible := (
        SELECT count(*)
        FROM unnest(names, revisions) AS g (name, revision)
        JOIN {p}worker_state s ON s.worker = g.name
        JOIN {p}workers w ON w.name = g.name
        WHERE {r.REVISION} = g.revision
            AND NOT EXISTS (SELECT FROM {p}nodes AS nodes WHERE nodes.id = this_node AND {HAS_LEFT})
    );
    -- Something else is due, or a worker is not as it was: the long way decides.
    IF eligible < cardinality(revisions) OR EXISTS (
        -- Between the known names, not over them: of a long queue's head there are only dead entries left.
        WITH RECURSIVE gap AS MATERIALIZED (
            SELECT k.name AS after, lead(k.name) OVER (ORDER BY k.name) AS before
            FROM unnest(''::text || stuck || CASE WHEN cardinality(f_expected) = 0 THEN names END) AS k (name)
        ), waiting AS (
            SELECT gap.after AS name, gap.before FROM gap
            UNION ALL
            SELECT
                CASE WHEN waiting.before IS NULL THEN (
                    SELECT min(r.worker) FROM {p}runs r WHERE r.state = 'pending' AND r.worker > waiting.name
                ) ELSE (
                    SELECT min(r.worker) FROM {p}runs r
                    WHERE r.state = 'pending' AND r.worker > waiting.name AND r.worker < waiting.before
                ) END,
                waiting.before
            FROM waiting WHERE waiting.name IS NOT NULL
        )
        SELECT FROM waiting, generate_series(0, 3) AS level (p)
        WHERE waiting.name <> ALL (''::text || stuck)
            AND (cardinality(f_expected) > 0 OR waiting.name <> ALL (names))
            AND (
                SELECT r.due_at FROM {p}runs r
                WHERE r.state = 'pending' AND r.worker = waiting.name
                    AND r.priority >= level.p AND r.priority <= level.p
                ORDER BY r.priority, r.due_at LIMIT 1
            ) <= at
    ) OR EXISTS (
        SELECT FROM {p}worker_state s
        WHERE s.next_run_at IS NOT NULL AND s.next_run_at <= at
            AND s.worker NOT IN (  -- hashed, where <> ALL would compare each with each
                SELECT unnest(CASE WHEN cardinality(f_expected) > 0 THEN stuck || names ELSE stuck END)
            )
    ) OR EXISTS (
        SELECT FROM unnest(names, rate_counts) AS g (name, rate_count)
        WHERE g.rate_count IS NOT NULL AND {r.IS_FORCED_PAST.format(p=p, worker="g.name", now="at")}
    ) THEN
        RETURN QUERY SELECT 'other'::text, {_no_claim("NULL::jsonb")};
        RETURN;
    END IF;

    IF cardinality(f_expected) > 0 THEN  -- of the first of the names; the others find no slot
        RETURN QUERY
        WITH fired AS MATERIALIZED (
            SELECT
                s.worker, f.due, f.next, w.priority, w.payload, s.last_fence + 1 AS fence,
                greatest(at, s.last_ended_at) AS at
            FROM unnest(names, f_expected, f_due, f_next) AS f (name, expected, due, next)
            JOIN {p}worker_state s ON s.worker = f.name AND s.next_run_at = f.expected
            JOIN {p}workers w ON w.name = f.name
            WHERE f.name = ANY (mine)
                AND {r.HAS_NO_RUN.format(p=p)}
        ), counted AS (
            UPDATE {p}worker_state s
            SET next_run_at = f.next, last_due_at = f.due, last_fence = f.fence, last_run_at = f.at
            FROM fired f WHERE s.worker = f.worker
        )
        INSERT INTO {p}runs AS r ({r.FIRED_COLUMNS})
        SELECT {r.FIRED.format(node="this_node", now="take_turn.at")}
        FROM fired f CROSS JOIN LATERAL (SELECT f.priority, f.payload) w
        RETURNING 'claim'::text, {r.CLAIMED};
        RETURN;
    END IF;

    IF is_looking THEN
        seen := pg_current_snapshot();  -- not later than what the next statement sees
        IF since IS NOT NULL THEN  -- what came since, before the places where this node goes on: it goes on from there
            SELECT array_agg(came.place), array_agg(came.due_at) INTO places, dues
            FROM (
                SELECT (array_position(names, r.worker) - 1) * 4 + 1 + r.priority AS place, min(r.due_at) AS due_at
                FROM (  -- each along the index on `arrived`, in the index's own words
                    SELECT r.worker, r.priority, r.due_at FROM {p}runs r
                    WHERE r.slot IS NULL AND r.arrived >= pg_snapshot_xmax(since::pg_snapshot)::text::bigint
                    UNION ALL
                    SELECT r.worker, r.priority, r.due_at FROM {p}runs r
                    WHERE r.slot IS NULL
                        AND r.arrived = ANY (ARRAY(SELECT pg_snapshot_xip(since::pg_snapshot)::text::bigint))
                ) r
                WHERE r.due_at <= at
                GROUP BY r.worker, r.priority
            ) came
            WHERE came.due_at <= after_dues[came.place];
            FOR i IN 1 .. coalesce(cardinality(places), 0) LOOP
                after_dues[places[i]] := dues[i];
                after_ids[places[i]] := 0;
            END LOOP;
        END IF;
        RETURN QUERY SELECT
            'seen'::text, {_no_claim("jsonb_build_array(seen, places, dues)")};
    END IF;

    rated_at := CASE WHEN asks_time THEN clock_timestamp() ELSE at END;
    WITH busy AS MATERIALIZED (  -- each worker's slots in use; counted, never stored
        SELECT
            s.worker, s.last_fence, w.max_running, key_limits[g.n] AS key_limit, rate_counts[g.n] AS rate_count,
            greatest(CASE WHEN rate_counts[g.n] IS NULL THEN at ELSE rated_at END, s.last_ended_at) AS now,
            ARRAY(SELECT c.slot FROM {p}claims c WHERE c.worker = s.worker) AS taken,
            last.id AS last_id,
            CASE
            WHEN last.quick + (SELECT count(*) FROM {p}claims c WHERE c.worker = s.worker) + free <= rate_counts[g.n]
            THEN last.quick
            WHEN rate_counts[g.n] IS NOT NULL THEN (
                SELECT count(*) FROM {p}run_history h
                WHERE h.worker >= s.worker AND h.worker <= s.worker AND h.is_rated
                    AND h.started_at > rated_at - rate_windows[g.n] AND h.started_at < rated_at + rate_windows[g.n]
            ) END AS ended,
            CASE WHEN rate_counts[g.n] IS NOT NULL THEN (
                SELECT count(*) FROM {p}claims c JOIN {p}runs r ON r.id = c.run_id
                WHERE c.worker = s.worker
                    AND r.started_at > rated_at - rate_windows[g.n] AND r.started_at < rated_at + rate_windows[g.n]
            ) END AS running,
            (g.n - 1) * 4 + 1 AS after
        FROM unnest(names) WITH ORDINALITY AS g (name, n)
        JOIN {p}worker_state s ON s.worker = g.name
        JOIN {p}workers w ON w.name = s.worker
        {limits.last_counted(p)}
        WHERE s.worker = ANY (mine)
    ), room AS MATERIALIZED (  -- how many more of each may start, and its free slots, the lowest first
        SELECT
            b.worker, b.last_fence, b.now, b.key_limit, b.rate_count, b.ended, b.running, b.last_id,
            greatest(0, least(free, b.max_running - cardinality(b.taken), b.rate_count - b.ended - b.running)) AS n,
            ARRAY(
                SELECT generate_series(0, cardinality(b.taken) + free - 1)
                EXCEPT SELECT unnest(b.taken) ORDER BY 1
            ) AS slots,
            b.after
        FROM busy b
    ), first AS (  -- as many as could start at most, of each priority
        SELECT f.*
        FROM room CROSS JOIN generate_series(3, 0, -1) AS level (p) CROSS JOIN LATERAL (
            SELECT r.id, r.worker, r.priority, r.due_at, r.first_started_at, r.limit_key FROM {p}runs r
            WHERE r.state = 'pending' AND r.worker = room.worker
                AND (r.priority, r.due_at, r.id) > (  -- after what this node has claimed a moment ago
                    level.p, coalesce(after_dues[room.after + level.p], '-infinity'),
                    coalesce(after_ids[room.after + level.p], 0)
                )
                AND (r.priority, r.due_at) <= (level.p, at)  -- so that the index says where to stop
            ORDER BY r.priority, r.due_at, r.id
            LIMIT CASE WHEN room.key_limit IS NULL THEN room.n ELSE room.n * {PAGES} END
        ) f
    {limits.by_key(p)}
    ), numbered AS (
        SELECT f.*, row_number() OVER (PARTITION BY f.worker ORDER BY {r.STARTING_ORDER}) AS n
        FROM of_keys f
    ), chosen AS MATERIALIZED (  -- the first of all workers in starting order
        SELECT
            f.id, f.worker, f.first_started_at, room.slots[f.n] AS slot, room.last_fence + f.n AS fence,
            room.now, f.key_slot, room.rate_count IS NOT NULL AS is_rated
        FROM numbered f JOIN room ON room.worker = f.worker WHERE f.n <= room.n
        ORDER BY {r.STARTING_ORDER}
        LIMIT free
    ), fenced AS (
        UPDATE {p}worker_state s
        SET (last_fence, last_run_at) = (
            SELECT max(c.fence), coalesce(max(c.now) FILTER (WHERE c.first_started_at IS NULL), s.last_run_at)
            FROM chosen c WHERE c.worker = s.worker
        )
        WHERE s.worker = ANY (ARRAY(SELECT c.worker FROM chosen c))
    )
    SELECT array_agg(c.id), array_agg(c.slot), array_agg(c.fence), array_agg(c.now), array_agg(c.key_slot),
        array_agg(c.is_rated),
        EXISTS (  -- of a worker that goes by key, all that were read were too few: their keys are full
            SELECT FROM room
            WHERE room.key_limit IS NOT NULL AND room.n > 0
                AND (SELECT count(*) FROM first f WHERE f.worker = room.worker) >= room.n * {PAGES}
                AND (SELECT count(*) FROM of_keys f WHERE f.worker = room.worker) < room.n
        ),
        EXISTS (SELECT FROM room WHERE room.ended + room.running >= room.rate_count),
        (
            SELECT jsonb_agg(jsonb_build_array(room.worker, room.ended, room.last_id))
            FROM room WHERE room.rate_count IS NOT NULL
        )
    INTO ids, slots, fences, starts, key_slots, rated, is_short, is_full, counted FROM chosen c;
    RETURN QUERY
    UPDATE {p}runs r
    SET state = 'running', node_id = this_node, (slot, fence, started_at, first_started_at, key_slot, is_rated) = (
        SELECT slots[n], fences[n], starts[n], coalesce(r.first_started_at, starts[n]), key_slots[n], rated[n]
        FROM array_position(ids, r.id) AS n
    )
    WHERE r.id = ANY (ids) AND r.fence IS NULL  -- is pending; by its `state`, all that are would be read
    RETURNING 'claim'::text, {r.CLAIMED};
    GET DIAGNOSTICS claimed = ROW_COUNT;
    IF counted IS NOT NULL THEN
        RETURN QUERY SELECT 'counted'::text, {_no_claim("counted")};
    END IF;
    IF is_short THEN
        RETURN QUERY SELECT 'other'::text, {_no_claim("NULL::jsonb")};
    ELSIF cardinality(mine) < cardinality(revisions) THEN
        RETURN QUERY SELECT 'locked'::text, {_no_claim("NULL::jsonb")};
    ELSIF is_looking AND claimed < free AND NOT is_full THEN  -- when a rate opens, the long way says
        RETURN QUERY SELECT 'all'::text, {_no_claim(f"to_jsonb(least({_next_times(p)}))")};
    END IF;
END $$
"""  # noqa: S608 - made of constants


def _no_claim(payload: str) -> str:
    """Return the columns of an answer that is no claim."""
    return ", ".join(payload if column == "payload" else f"NULL::{kind}" for column, kind in r.CLAIM.items())


def _next_times(p: str) -> str:
    """Return the times at which something becomes due next, as the look of the long way asks for them."""
    texts = [str(time.compile(dialect=postgresql.dialect(paramstyle="named"))) for time in next_times()]  # type: ignore[no-untyped-call]
    return ", ".join(texts).replace(":now", "at").replace(f"{SCHEMA_TOKEN}.", p)
