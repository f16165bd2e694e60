"""What the product touches of a database with 100,000 workers and a million rows of runs and history.

Each piece of work is done as the product does it, and measured (`tests.support.touched`): it must use its index, read
no large table from end to end, and touch no more than a bounded number of rows.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta

import psycopg
import pytest
from sqlalchemy.engine import make_url

from jobrunner.model.run import OutcomeKind
from jobrunner.policy.filters import Filter, parse_filter
from jobrunner.storage import nodes
from jobrunner.storage.reading import status
from jobrunner.storage.reading.days import read_days
from jobrunner.storage.reading.error_groups import group_letters
from jobrunner.storage.reading.explain import explain
from jobrunner.storage.reading.explain_run import explain_run
from jobrunner.storage.reading.forecasts import read_ahead
from jobrunner.storage.reading.grid import read_grid
from jobrunner.storage.reading.lanes import read_lanes
from jobrunner.storage.reading.minutes import Minutes
from jobrunner.storage.reading.nodes_heard import read_nodes_heard
from jobrunner.storage.reading.oldest import search_oldest
from jobrunner.storage.reading.past import explain_at
from jobrunner.storage.reading.pulse import read_pulse
from jobrunner.storage.reading.slower import read_slower
from jobrunner.storage.reading.standing import read_standing
from jobrunner.storage.reading.story import read_story
from jobrunner.storage.reading.traces import read_since
from jobrunner.storage.reading.worst import read_worst
from jobrunner.storage.records.history import read_history
from jobrunner.storage.runs import dead_letters, looks, retention
from jobrunner.storage.runs import facts as reading
from jobrunner.storage.runs.enqueue import WORKERS_OWN, enqueue_many
from jobrunner.storage.runs.finishes import Ended
from jobrunner.storage.runs.looks import Claimer
from jobrunner.storage.tables import define as t
from jobrunner.storage.turns.fast_path import open_fast_path
from jobrunner.storage.turns.turn import claims_of
from jobrunner.storage.workers import repairs
from tests.support.stage import T0, Stage, scheduled, triggered
from tests.support.touched import Meter, PostgresMeter, SqliteMeter, Touched

WORKERS = 100_000
WAITING = 250_000  # of one worker, which is full; another has 50,000 that are not due yet
HISTORY = 700_000  # of 1,000 workers, over 40 days; every hundredth failed
LARGE = {"runs", "run_history", "workers", "worker_state"}
HANDLERS = ["busy", "wide", *(f"w{n:06}" for n in range(100))]


@dataclass(frozen=True)
class Piece:
    """A piece of work: the index each database must use for it (`a|b`: one or the other), and how much it may touch.

    `rows` is for PostgreSQL; each may cost SQLite 100 steps. `whole` are the large tables it may read from end to end;
    SQLite says so, too, of a table that is read along its primary key as far as a page reaches (its `index` is "").
    """

    work: Callable[[Stage], Awaitable[object]]
    index: str
    rows: int
    whole: frozenset[str] = frozenset()


async def tick(stage: Stage) -> None:
    """Claim and end, the long way: a schedule, and runs that were triggered; the worker that is full stays so."""
    for _ in range(4):
        await stage.trigger("wide")
    runs = await stage.tick(slots=4, handlers=HANDLERS)
    assert "busy" not in {run.worker for run in runs}
    assert len(runs) == 4
    await stage.end(runs[0])
    await stage.fail(runs[1])
    await stage.end(runs[2], OutcomeKind.SNOOZED)
    await stage.end(runs[3], OutcomeKind.INTERRUPTED)
    stage.after(6)


async def turns(stage: Stage) -> None:
    """Claim, then end and claim in one turn, the fast path."""
    for _ in range(4):
        await stage.trigger("wide", priority=3)
    fast_path = open_fast_path(stage.db)
    assert fast_path is not None
    claimer = Claimer("n1", reading.Here(frozenset({"wide"})))
    try:
        eligible = (await looks.look(stage.db, claimer, 2, stage.now)).eligible
        assert eligible is not None
        first = await fast_path.turn("n1", stage.now, 2, eligible, ())
        ended = [Ended(claim.run, stage.outcome(), None, claim.simple_under) for claim in claims_of(first, eligible)]
        assert len(ended) == 2
        turned = await fast_path.turn("n1", stage.now, 0, eligible, ended)
        assert len(turned.written) == 2
        assert len(turned.runs) == 2
        claims = claims_of(turned, eligible)
        ended = [Ended(claim.run, stage.outcome(), None, claim.simple_under) for claim in claims]
        assert len((await fast_path.turn("n1", stage.now, 0, None, ended)).written) == 2
    finally:
        await fast_path.close()


async def look(stage: Stage) -> None:
    """Find nothing to do."""
    assert (await stage.claim(slots=4, handlers=["later"])).claims == ()


async def ahead(stage: Stage) -> None:
    """Look for waits that began ahead of now: the question, which an idle tick asks along, and what it would find."""
    assert not await repairs.find_ahead(stage.db, stage.now)
    assert (await repairs.repair(stage.db, stage.now)).is_nothing


async def enqueue(stage: Stage) -> None:
    added = [await stage.trigger("w050000")]
    async with stage.db.write() as conn:
        tomorrow = stage.now + timedelta(days=1)
        added += await enqueue_many(conn, stage.db.dialect, "w060000", [WORKERS_OWN] * 100, tomorrow)
    await stage.sql(f"DELETE FROM {{p}}runs WHERE id IN ({', '.join(map(str, added))})")


async def keyed(stage: Stage) -> None:
    """Trigger with keys, which every waiting run of the worker has, too."""
    for scope in ("waiting", "live"):
        added = await stage.trigger("busy", key=scope, key_scope=scope)
        for asked in ("waiting", "live"):
            assert await stage.trigger("busy", key=scope, key_scope=asked) == added
        await stage.sql(f"DELETE FROM {{p}}runs WHERE id = {added}")


async def status_of_one(stage: Stage) -> None:
    async with stage.db.read() as conn:
        (row,) = await status.read_status(conn, "busy")
        assert row["pending_runs"] == 10_001
        assert (await status.read_worker(conn, "w000123"))["pending_runs"] == 0
        await read_nodes_heard(conn, stage.now)
        await dead_letters.count_open(conn)
        await status.read_progress(conn)
        await status.require_trace(conn, "w000123")


async def status_of_the_worst(stage: Stage) -> None:
    later = stage.now + timedelta(hours=1)  # 600 workers are overdue
    async with stage.db.read() as conn:
        assert len((await read_worst(conn, later, 100)).names) == 100
        wanted = parse_filter("health:failing,disabled worker:w0001*", "workers", later)
        assert (await read_worst(conn, later, 100, wanted)).names == ()
        assert len((await read_worst(conn, later, 100, parse_filter("worker:w0999*", "workers", later))).names) == 100


async def one_run(stage: Stage) -> None:
    """Tell all about a run that waits among many."""
    assert (await read_story(stage.db, 100_000, stage.now))["why"] is not None


async def status_of_all(stage: Stage) -> None:
    later = stage.now + timedelta(hours=1)  # 600 workers are overdue
    async with stage.db.read() as conn:
        rows = await read_standing(conn, stage.db.dialect, later)
    assert len(rows) == WORKERS + 4
    assert sum(row["why"] is not None for row in rows) > 500


async def live_runs(stage: Stage) -> None:
    async with stage.db.read() as conn:
        assert len(await status.read_runs(conn, limit=50)) == 50
        assert len(await status.read_runs(conn, worker="busy", limit=50)) == 50


async def explained(stage: Stage) -> None:
    assert (await explain(stage.db, "busy", stage.now))["starts"] is False


async def explained_later(stage: Stage) -> None:
    """Explain a worker of which 50,000 runs wait for their time."""
    due = (await explain(stage.db, "later", stage.now))["gates"][2]
    assert "at least 100 more wait" in due["reason"]


async def history_page(stage: Stage) -> None:
    async with stage.db.read() as conn:
        assert len(await read_history(conn)) == 50


async def history_of_a_worker(stage: Stage) -> None:
    async with stage.db.read() as conn:
        assert len(await read_history(conn, worker="w000123")) == 50
        assert len(await read_history(conn, worker="w000100", outcome="failed")) == 50


async def history_of_an_outcome(stage: Stage) -> None:
    async with stage.db.read() as conn:
        assert len(await read_history(conn, outcome="failed")) == 50
        assert await read_history(conn, outcome="lost") == []
        assert len(await read_history(conn, outcome=["failed", "lost", "missed"])) == 50


async def history_of_a_run(stage: Stage) -> None:
    async with stage.db.read() as conn:
        assert len(await read_history(conn, run_id=-5000)) == 1


async def history_since(stage: Stage) -> None:
    async with stage.db.read() as conn:
        assert await read_history(conn, since=stage.now + timedelta(days=1)) == []
        assert len(await read_history(conn, since=T0 - timedelta(minutes=3))) >= 30


async def history_from_the_old_end(stage: Stage) -> None:
    """The first page, and the one after it, of all, a worker, an outcome, a time, and of what has no index."""
    since = stage.now - timedelta(days=1)
    async with stage.db.read() as conn:
        for asked, number in (
            (Filter(), 50),
            (Filter(worker=("w000007",)), 50),
            (Filter(worker=("w000007",), outcome=("succeeded",)), 50),
            (Filter(outcome=("failed", "lost")), 50),
            (Filter(since=since), 50),
            (Filter(since=since, outcome=("failed", "timed_out")), 50),
            (Filter(since=since, until=since + timedelta(hours=1), worker=("w00000*",)), 1),
        ):
            first = await search_oldest(conn, asked, 50)
            assert len(first.rows) >= number, asked
            if first.after is not None:
                assert (await search_oldest(conn, asked, 50, first.after)).rows[0]["id"] > first.rows[-1]["id"]


async def who_is_in_trouble(stage: Stage) -> None:
    """Since when fifty workers are in trouble, whatever it is."""
    async with stage.db.read() as conn:
        names = [f"w{number:06}" for number in range(0, 1000, 20)]
        rows = await read_standing(conn, stage.db.dialect, stage.now, names=names)
        for health in ("failing", "degraded", "disabled", "no_node"):
            bad = [{**row, "health": health, "disabled_by": "circuit"} for row in rows]
            assert len(await read_since(conn, stage.db.dialect, stage.now, bad)) == 50


async def who_became_slower(stage: Stage) -> None:
    async with stage.db.read() as conn:
        found = await read_slower(conn, stage.db.dialect, T0 - timedelta(days=7), ["w00000*"])
    assert found.knows_before


async def prune(stage: Stage) -> None:
    """Let an hour's rows go: what that costs follows from how many they are."""
    oldest = stage.time(await stage.value("SELECT min(finished_at) FROM {p}run_history WHERE outcome = 'succeeded'"))
    keep = (stage.now - oldest) / timedelta(days=1) - 1 / 24
    pruned = await retention.prune(stage.db, stage.now, keep, 90.0)
    assert 650 <= pruned.run_history <= 720


async def node(stage: Stage) -> None:
    """Beat, look for lost runs, read what is said to be held."""
    async with stage.db.write() as conn:
        seen = await nodes.beat(conn, stage.db.dialect, "n1", stage.now, stage.now, stage.now - timedelta(seconds=5))
    assert seen is not None
    await nodes.rescue(stage.db, stage.now, stage.now - timedelta(seconds=5))


async def letters(stage: Stage) -> None:
    async with stage.db.read() as conn:
        await dead_letters.list_letters(conn)


async def explained_then(stage: Stage) -> None:
    """Explain a worker with a long queue as it was some days ago."""
    await explain_at(stage.db, "w000007", stage.now - timedelta(days=9), stage.now)
    await explain_at(stage.db, "busy", stage.now - timedelta(days=9), stage.now)


async def explained_run(stage: Stage) -> None:
    """Explain a run that waits in a long queue."""
    await explain_run(stage.db, 1000, stage.now)


async def upcoming_of_some(stage: Stage) -> None:
    """Play as far as a page of the listing needs it."""
    async with stage.db.read() as conn:
        await read_ahead(conn, stage.db.dialect, stage.now, stage.now + timedelta(hours=1), rows=50)


async def upcoming_of_one(stage: Stage) -> None:
    """Play one worker."""
    async with stage.db.read() as conn:
        await read_ahead(conn, stage.db.dialect, stage.now, stage.now + timedelta(hours=1), "w000007")


async def look_for_changes(stage: Stage) -> None:
    async with stage.db.read() as conn:
        await read_pulse(conn)


async def first_page(stage: Stage) -> None:
    """What the console's first page counts: ends a minute, letters by error."""
    async with stage.db.read() as conn:
        await Minutes().look(conn, T0)
        await group_letters(conn)


async def page_of_a_worker(stage: Stage) -> None:
    async with stage.db.read() as conn:
        for name in ("busy", "w000123"):
            await group_letters(conn, worker=name)
            await read_grid(conn, name)
            await read_days(conn, name, T0)
        assert len(await read_grid(conn, "w000123")) == 50


async def swim_lanes(stage: Stage) -> None:
    async with stage.db.read() as conn:
        names = [f"w{number:06}" for number in range(40)]
        found = await read_lanes(conn, stage.db.dialect, T0, T0 - timedelta(days=14), names)
    assert sum(len(lane.spans) for lane in found.values()) > 40 * 190


PIECES = {
    "tick": Piece(tick, "ix_runs_pending", 500),
    "turns": Piece(turns, "ix_runs_pending", 500),
    "look": Piece(look, "ix_worker_state_due", 500),
    "ahead": Piece(ahead, "ix_worker_state_waits_from", 1500),
    "enqueue": Piece(enqueue, "workers", 2000),
    "keyed": Piece(keyed, "uq_runs_key_live", 200),
    "status of one": Piece(status_of_one, "ix_runs_pending", 25_000),
    "status of the worst": Piece(
        status_of_the_worst, "ix_worker_state_disabled|ix_worker_state_failing", 60_000, frozenset({"run_history"})
    ),
    "one run": Piece(one_run, "run_history_", 2000),
    "status of all": Piece(
        status_of_all,
        "uq_runs_worker_slot|pk_worker_state",
        6 * WORKERS,
        frozenset({"workers", "worker_state", "w", "s"}),
    ),
    "live runs": Piece(live_runs, "ix_runs_due_at", 1000),
    "explain": Piece(explained, "ix_runs_pending", 1500),
    "explain later": Piece(explained_later, "ix_runs_pending", 2000),
    "explain then": Piece(explained_then, "ix_run_history_worker", 8000),
    "explain a run": Piece(explained_run, "ix_runs_pending", 2000),
    "upcoming of some": Piece(upcoming_of_some, "ix_run_history_worker", 15_000),
    "upcoming of one": Piece(upcoming_of_one, "ix_run_history_worker", 2000),
    "history page": Piece(history_page, "", 100, frozenset({"run_history"})),
    "history of a worker": Piece(history_of_a_worker, "ix_run_history_worker", 10_000),
    "history of an outcome": Piece(history_of_an_outcome, "ix_run_history_outcome", 500),
    "history of a run": Piece(history_of_a_run, "run_history_", 10),
    "history since": Piece(history_since, "ix_run_history_finished_at", 500),
    "history from the old end": Piece(history_from_the_old_end, "ix_run_history_finished_at", 12_000),
    "who is in trouble": Piece(who_is_in_trouble, "ix_run_history_worker", 60_000),
    "who became slower": Piece(who_became_slower, "ix_run_history_worker", 2000),
    "prune": Piece(prune, "ix_run_history_finished_at", 12_000),
    "node": Piece(node, "uq_runs_worker_slot|pk_runs", 200),
    "dead letters": Piece(letters, "", 200),
    "look for changes": Piece(look_for_changes, "pk_runs|ix_dead_letters_status", 500, frozenset({"run_history"})),
    "first page": Piece(first_page, "ix_run_history_finished_at", 2000),
    "page of a worker": Piece(page_of_a_worker, "ix_run_history_worker", 4000),
    "swim lanes": Piece(swim_lanes, "ix_run_history_worker", 10_000),
}


AT_ONCE = ("tick", "turns", "look", "ahead", "enqueue", "keyed", "node")
"""What nodes and triggers do with a queue that has just been filled, before the database has any statistics of it."""


async def fill(stage: Stage) -> None:
    """Fill the database from a few rows of the product's own, by eligible SQL."""
    await stage.register(triggered("busy"), triggered("later"), triggered("wide", max_running=20), scheduled("model"))
    await stage.trigger("busy")
    await stage.join("n1", handlers=HANDLERS)
    await stage.start_one(handlers=["busy"])
    await stage.sql("UPDATE {p}worker_state SET next_run_at = NULL WHERE worker = 'model'")
    copied = ", ".join(column.name for column in t.workers.columns if column.name != "name")

    def series(count: int) -> str:
        rows = f"SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {count - 1}"
        return f"(WITH RECURSIVE n(i) AS ({rows}) SELECT i FROM n) AS n"

    def name(i: str) -> str:
        return f"printf('w%06d', {i})" if stage.db.is_sqlite else f"'w' || to_char({i}, 'FM000000')"

    def later(seconds: str) -> str:
        """So many seconds after T0."""
        if stage.db.is_sqlite:
            return f"strftime('%Y-%m-%d %H:%M:%S', '{T0:%Y-%m-%d %H:%M:%S}', ({seconds}) || ' seconds') || '.000000'"
        return f"timestamptz '{T0.isoformat()}' + ({seconds}) * interval '1 second'"

    await stage.sql(
        f"INSERT INTO {{p}}workers (name, {copied}) SELECT {name('i')}, {copied}"
        f" FROM {series(WORKERS)}, {{p}}workers AS w WHERE w.name = 'model'"
    )
    await stage.sql(  # one after the other falls due
        f"INSERT INTO {{p}}worker_state (worker, next_run_at, reach_seconds)"
        f" SELECT {name('i')}, {later('6 * i')}, 300 + 6 * i FROM {series(WORKERS)}"
    )
    for worker, count, due in (("busy", WAITING, "-3600"), ("later", 50_000, "86400 + i")):
        await stage.sql(
            "INSERT INTO {p}runs (worker, priority, due_at, scheduled_for, key)"
            f" SELECT '{worker}', i % 4, {later(due)}, {later(due)}, 'k' || i FROM {series(count)}"
        )
    ended = later(f"5 * (i - {HISTORY})")
    await stage.sql(
        "INSERT INTO {p}run_history (run_id, fence, worker, trigger, attempt, outcome, started_at, finished_at)"
        f" SELECT -i, i, {name('i % 1000')}, 'manual', 1, CASE WHEN i % 100 = 0 THEN 'failed' ELSE 'succeeded' END,"
        f" {ended}, {ended} FROM {series(HISTORY)}"
    )


async def analyze(stage: Stage) -> None:
    """Let the database look at what it has, as it does by itself soon after a load."""
    if stage.db.is_sqlite:
        await stage.sql("ANALYZE")
    else:
        eligible = make_url(stage.url).set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(eligible, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")


@pytest.fixture
def meter(database_url: str) -> Iterator[Meter]:
    url = make_url(database_url)
    meter = SqliteMeter(str(url.database)) if url.get_backend_name() == "sqlite" else PostgresMeter(database_url)
    yield meter
    meter.close()


def faults(piece: Piece, touched: Touched, *, is_sqlite: bool) -> list[str]:
    """Say what is wrong with what a piece of work touched."""
    most = piece.rows * (100 if is_sqlite else 1)
    found = []
    if touched.work > most:
        found.append(f"touched {touched.work:,}, not at most {most:,}")
    if whole := touched.whole & LARGE - piece.whole:
        found.append(f"read {', '.join(sorted(whole))} from end to end")
    if piece.index and not any(each in index for each in piece.index.split("|") for index in touched.indexes):
        found.append(f"used {', '.join(sorted(touched.indexes))}, not {piece.index}")
    return found


async def measured(stage: Stage, meter: Meter, names: Iterable[str]) -> list[str]:
    """Do the pieces of work one after the other and return what is wrong."""
    wrong = []
    for name in names:
        again = Stage(stage.url)
        again.now = stage.now
        with meter.measured() as touched:
            try:
                await PIECES[name].work(again)
            finally:
                await again.db.close()
        stage.now = again.now
        found = faults(PIECES[name], touched, is_sqlite=isinstance(meter, SqliteMeter))
        print(name, touched.work, sorted(touched.whole), sorted(touched.indexes), found)
        wrong += ["\n".join([f"{name}: {fault}", *touched.details]) for fault in found]
    return wrong


@pytest.mark.slow
@pytest.mark.timeout(400)  # 20 s of work on SQLite, 30 on PostgreSQL; others may be at work on the machine
async def test_every_piece_of_work_uses_its_index_with_100_000_workers_and_a_million_rows(
    database_url: str, meter: Meter
):
    stage = Stage(database_url)
    await fill(stage)
    await stage.db.close()
    wrong = await measured(stage, meter, AT_ONCE)
    assert not wrong, "before any statistics\n\n" + "\n\n".join(wrong)
    await analyze(stage)
    await stage.db.close()
    wrong = await measured(stage, meter, PIECES)
    assert not wrong, "\n\n".join(wrong)
