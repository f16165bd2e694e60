"""The parts of PostgreSQL's turn that judge limits: text for `postgres_function`, whose names these use."""

from __future__ import annotations

from jobrunner.storage.turns import rules as r


def last_counted(p: str) -> str:
    """Return the join that counts from where the last turn has ended counting; see `known_starts`."""
    return f"""LEFT JOIN LATERAL (  -- the ended attempts that were in the window, and those since (`known_starts`)
            SELECT
                rate_known[g.n] + (
                    SELECT count(*) FROM {p}run_history h
                    WHERE h.worker >= s.worker AND h.worker <= s.worker AND h.id > rate_lasts[g.n]
                ) AS quick,
                coalesce((
                    SELECT h.id FROM {p}run_history h WHERE h.worker >= s.worker AND h.worker <= s.worker
                    ORDER BY h.worker DESC, h.id DESC LIMIT 1
                ), 0) AS id
        ) last ON rate_counts[g.n] IS NOT NULL"""  # noqa: S608 - made of constants


def by_key(p: str) -> str:
    """Return the steps between `first` and `numbered`: of each key as many runs as there is room for."""
    return f"""), held AS MATERIALIZED (  -- the keys of active runs, and the places that these take
        SELECT r.worker, r.limit_key, array_agg(r.key_slot) AS taken
        FROM room JOIN {p}claims c ON c.worker = room.worker JOIN {p}runs r ON r.id = c.run_id
        WHERE room.key_limit IS NOT NULL AND r.key_slot IS NOT NULL
        GROUP BY r.worker, r.limit_key
    ), of_keys AS (  -- of each key as many as there is room for
        SELECT f.*, NULL::integer AS key_slot
        FROM first f JOIN room ON room.worker = f.worker
        WHERE room.key_limit IS NULL OR f.limit_key IS NULL
        UNION ALL
        SELECT f.id, f.worker, f.priority, f.due_at, f.first_started_at, f.limit_key,
            CASE WHEN held.taken IS NULL THEN f.place - 1 ELSE (ARRAY(
                SELECT generate_series(0, f.key_limit - 1) EXCEPT SELECT unnest(held.taken) ORDER BY 1
            ))[f.place] END
        FROM (
            SELECT
                f.*, room.key_limit,
                row_number() OVER (PARTITION BY f.worker, f.limit_key ORDER BY {r.STARTING_ORDER})::integer AS place
            FROM first f JOIN room ON room.worker = f.worker
            WHERE f.limit_key IS NOT NULL AND room.key_limit IS NOT NULL
        ) f
        LEFT JOIN held ON held.worker = f.worker AND held.limit_key = f.limit_key
        WHERE f.place <= f.key_limit - coalesce(cardinality(held.taken), 0)"""  # noqa: S608 - made of constants
