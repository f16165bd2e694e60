"""`jobrunner db grants`: a role that was given what it prints can do its work, and no more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy.engine import make_url

from jobrunner import WorkerOrchestrator
from jobrunner.telemetry.events import Event, RunEnded, Warned
from tests.cli.conftest import Cli
from tests.support.postgres import PostgresServer
from tests.support.stage import triggered

MORE_THAN_A_TRIGGER = {
    "a forced run": "INSERT INTO jobrunner.runs (worker, is_forced) VALUES ('mail', true)",
    "a claim": "INSERT INTO jobrunner.runs (worker, state, slot, fence, node_id, started_at)"
    " VALUES ('mail', 'running', 0, 1, 'n', now())",
    "a schedule's run": "INSERT INTO jobrunner.runs (worker, trigger, due_at)"
    " VALUES ('mail', 'schedule', '2090-01-01+00')",
    "a later attempt": "INSERT INTO jobrunner.runs (worker, attempt) VALUES ('mail', 7)",
    "an id": "INSERT INTO jobrunner.runs (id, worker) VALUES (9, 'mail')",
    "a run of ours": "INSERT INTO jobrunner.runs (worker, is_ours) VALUES ('mail', true)",
    "other people's payloads": "SELECT payload FROM jobrunner.runs",
    "a change": "UPDATE jobrunner.runs SET payload = '{}'",
    "history": "SELECT * FROM jobrunner.run_history",
}


@pytest.fixture
def as_role(postgres_url: str, postgres: PostgresServer, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable]:
    """Make a role with the rights that are printed `for` a purpose; return its URL."""
    url = make_url(postgres_url)
    role = f"role_{url.database}"
    postgres.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x'", url.database)

    def grant(purpose: str) -> str:
        statements = Cli(postgres_url, capsys).ok("db", "grants", "--role", role, "--for", purpose).out
        postgres.execute(statements, url.database)
        return url.set(username=role, password="x").render_as_string(hide_password=False)

    yield grant
    postgres.execute(f"DROP OWNED BY {role}; DROP ROLE {role}", url.database)


def test_a_role_that_may_trigger_does_so_by_sql_python_and_the_command_line(as_role, postgres_url, postgres, capsys):
    Cli(postgres_url, capsys).register(triggered("mail"))
    theirs = as_role("trigger")
    role, name = make_url(theirs).username, make_url(theirs).database
    postgres.execute(
        f"""SET ROLE {role}; INSERT INTO jobrunner.runs (worker, payload) VALUES ('mail', '{{"a": 1}}')""", name
    )
    first = Cli(theirs, capsys).ok("trigger", "mail", "--key", "k", "--priority", "HIGH", "--in", "1h").out
    orchestrator = WorkerOrchestrator(theirs)
    assert first == f"run {orchestrator.trigger_sync('mail', key='k')}\n"
    asyncio.run(orchestrator.trigger_many("mail", [{}, None]))
    assert "did you mean 'mail'?" in Cli(theirs, capsys).refused(3, "trigger", "mial")


def test_a_role_that_may_trigger_may_not_change_the_run_that_has_its_key_and_is_told_so(as_role, postgres_url, capsys):
    owner = Cli(postgres_url, capsys)
    owner.register(triggered("mail"))
    theirs = Cli(as_role("trigger"), capsys)
    replace = ("trigger", "mail", "--key", "k", "--payload", '{"n": 2}', "--on-duplicate", "replace")
    assert theirs.ok(*replace).out.startswith("run ")  # where nothing has the key, it is a trigger like any
    said = theirs.refused(1, *replace)
    assert "this database user may add runs but change none" in said
    assert "`jobrunner db grants --role NAME --for operate`" in said
    operator = Cli(as_role("operate"), capsys)
    assert "it has this payload now" in operator.ok(*replace).out


@pytest.mark.parametrize("what", MORE_THAN_A_TRIGGER)
def test_a_role_that_may_trigger_may_do_nothing_else(what, as_role, postgres_url, postgres, capsys):
    Cli(postgres_url, capsys).register(triggered("mail"))
    theirs = make_url(as_role("trigger"))
    with pytest.raises(RuntimeError, match=r"permission denied|cannot insert"):
        postgres.execute(f"SET ROLE {theirs.username}; {MORE_THAN_A_TRIGGER[what]}", theirs.database)


def test_a_role_that_may_read_sees_everything_and_changes_nothing(as_role, postgres_url, capsys):
    owner = Cli(postgres_url, capsys)
    owner.register(triggered("mail"))
    owner.ok("trigger", "mail")
    theirs = Cli(as_role("read"), capsys)
    for words in (
        "status",
        "runs",
        "history",
        "explain mail",
        "explain mail --at 1m",
        "upcoming",
        "dead-letters list",
        "admin audit",
        "db verify",
    ):
        theirs.ok(*words.split())
    assert "permission denied" in theirs.refused(1, "trigger", "mail")
    assert "permission denied" in theirs.refused(1, "admin", "disable", "mail")


def test_a_role_that_may_operate_does_what_operators_do(as_role, postgres_url, capsys):
    owner = Cli(postgres_url, capsys)
    owner.register(triggered("mail"))
    theirs = Cli(as_role("operate"), capsys)
    run_id = theirs.ok("trigger", "mail", "--force").out.split()[1]
    for words in (
        f"admin cancel {run_id}",
        "admin disable mail --reason x",
        "admin enable mail",
        "admin pause mail --for 1h",
        "admin resume mail",
        "admin set mail max_retries=1",
        "admin unset mail max_retries",
        "admin add clean --command true --triggered",
        "admin remove clean",
    ):
        theirs.ok(*words.split())


async def test_a_role_for_nodes_runs_one(as_role, postgres_url):
    from jobrunner.storage.database.database import Database
    from jobrunner.storage.schema.migrate import upgrade

    await upgrade(Database.open(postgres_url))
    theirs = await asyncio.to_thread(as_role, "node")
    orchestrator = WorkerOrchestrator(theirs, tick_interval=1.0)
    ran = asyncio.Event()

    async def work() -> None:
        ran.set()

    orchestrator.register_worker("it", work, interval_seconds=1)
    await orchestrator.start()
    async with asyncio.timeout(30):
        await ran.wait()
        await orchestrator.trigger_worker("it", force=True)
    await orchestrator.stop()


async def test_a_node_without_the_right_temporary_works_the_long_way_and_says_so_once(as_role, postgres_url, postgres):
    from jobrunner.storage.database.database import Database
    from jobrunner.storage.schema.migrate import upgrade

    await upgrade(Database.open(postgres_url))
    theirs = make_url(await asyncio.to_thread(as_role, "node"))
    postgres.execute(f"REVOKE TEMPORARY ON DATABASE {theirs.database} FROM PUBLIC, {theirs.username}", theirs.database)
    orchestrator = WorkerOrchestrator(theirs.render_as_string(hide_password=False), max_concurrent=4)
    warnings: list[str] = []
    ended = 0

    def hear(event: Event) -> None:
        nonlocal ended
        ended += isinstance(event, RunEnded)
        if isinstance(event, Warned):
            warnings.append(event.message)

    orchestrator.events.subscribe(hear)

    async def work() -> None:
        pass

    orchestrator.register_worker("it", work, execution_mode="triggered", max_running=4)
    await orchestrator.start()
    await orchestrator.trigger_many("it", [None] * 60)
    async with asyncio.timeout(30):
        while ended < 60:
            await asyncio.sleep(0.01)
    await orchestrator.stop()
    assert [text for text in warnings if "long way" in text] == warnings[:1]
    assert "permission denied to create temporary tables" in warnings[0]


def test_sqlite_has_no_roles(sqlite_url, capsys):
    assert "no roles" in Cli(sqlite_url, capsys).refused(2, "db", "grants", "--role", "x", "--for", "read")
