"""What README.md and the pages in docs/ show works: SQL on both databases, worker files, commands, settings, links."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import types
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.main import get_command

from jobrunner import Discard, RetryAfter, RunContext, Snooze, WorkerOrchestrator, errors
from jobrunner.cli.main import app
from jobrunner.config import Settings
from jobrunner.storage.runs import batches, cancelling, dead_letters
from jobrunner.storage.runs.batches import NewBatch
from jobrunner.storage.runs.enqueue import Request
from jobrunner.storage.runs.flows import Planned, add_flow
from jobrunner.storage.tables.define import runs
from jobrunner.storage.workers import operations
from jobrunner.testing import run_until_idle
from tests.cli.program import ROOT, jobrunner, start_jobrunner
from tests.support.stage import ACTOR, Stage, scheduled, triggered

PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))]
CODE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def page(name: str) -> str:
    return (ROOT / name).read_text()


def section(title: str, text: str) -> str:
    """Return the text under a heading, up to the next of its level."""
    marks = title.split(" ", 1)[0]
    _, _, rest = text.partition(f"\n{title}\n")
    assert rest, f"there is no heading {title!r}"
    return re.split(rf"\n{marks} ", rest)[0]


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


README = page("README.md")
QUERIES = blocks("sql", page("docs/sql.md"))


def test_the_cookbook_has_enough_recipes():
    assert len(QUERIES) >= 19
    assert all(query.count(";") == 1 for query in QUERIES)


STEPS: tuple[tuple[str, tuple[str, ...]], ...] = (("first", ()), ("then", ("first",)), ("given-up", ("first",)))


@pytest.fixture
async def lived_in(database_url: str) -> AsyncIterator[Stage]:
    """A database in which everything that the cookbook asks for has happened, in the last minutes."""
    stage = Stage(database_url)
    stage.now = datetime.now(UTC) - timedelta(minutes=30)
    await stage.register(
        scheduled("steady", interval_seconds=10),
        triggered("weak", max_retries=0),
        triggered("broken", max_retries=1, retry_delay_seconds=1, max_consecutive_failures=1),
        triggered("send-email"),
        triggered("slow"),
    )
    await stage.join("node-1")
    await stage.run_once()
    stage.after(35)
    await stage.run_once()  # the latest time is served, two were missed

    await stage.trigger("broken")
    for _ in range(2):
        stage.after(1.5)
        await stage.fail(await _of(stage, "broken"))

    await stage.trigger("weak")
    stage.after(90)  # it starts late
    await stage.fail(await _of(stage, "weak"))
    async with stage.db.peek() as conn:
        (letter,) = await dead_letters.list_letters(conn, worker="weak")
    await dead_letters.replay(stage.db, dead_letters.Chosen(ids=(letter["id"],)), stage.now, ACTOR)
    await stage.fail(await _of(stage, "weak"))

    await stage.trigger("slow")
    await _of(stage, "slow")  # claimed, and left running
    await stage.trigger("send-email")  # left waiting
    async with stage.db.write() as conn:
        await batches.begin(conn, stage.db.dialect, NewBatch(on_finish="slow"))
        steps = [Planned(name, Request("send-email"), after) for name, after in STEPS]
        ids = await add_flow(conn, stage.db.dialect, steps, stage.now)
    await cancelling.cancel(stage.db, ids["given-up"], stage.now, ACTOR)
    await operations.set_values(stage.db, "steady", {"max_retries": 1}, stage.now, ACTOR)
    await operations.disable(stage.db, "steady", stage.now, ACTOR, "for a test")
    yield stage
    await stage.db.close()


async def _of(stage: Stage, worker: str):
    return await stage.start_one(handlers=[worker])


async def rows_of(stage: Stage, query: str) -> list[dict]:
    """Run a query as in a SQL shell."""
    async with stage.db.read() as conn:
        if not stage.db.is_sqlite:
            await conn.exec_driver_sql("SET search_path TO jobrunner")
            await conn.exec_driver_sql("SET timezone TO 'UTC'")
        return [dict(row) for row in (await conn.exec_driver_sql(query)).mappings()]


async def test_every_recipe_of_the_cookbook_finds_what_it_asks_for(lived_in: Stage):
    found = {query: await rows_of(lived_in, query) for query in QUERIES}
    assert [query for query, rows in found.items() if not rows] == []


async def test_what_the_recipes_find_is_true(lived_in: Stage):
    by_first_line = {query.splitlines()[0]: await rows_of(lived_in, query) for query in QUERIES}

    def rows(start: str) -> list[dict]:
        (found,) = [rows for line, rows in by_first_line.items() if line.startswith(start)]
        return found

    missed = {row["reason"].split()[0]: int(row["times"]) for row in rows("SELECT worker, reason, sum(occurrences)")}
    assert missed["passed"] == 2
    assert missed["disabled"] > 2
    assert {row["name"]: row["disabled_by"] for row in rows("SELECT name, disabled_by")} == {
        "broken": "circuit",
        "steady": "operator",
    }
    assert [row["worker"] for row in rows("SELECT r.id, r.worker")] == ["slow"]
    assert [row["worker"] for row in rows("SELECT worker, count(*) AS waiting")] == ["send-email"]
    assert [(row["worker"], row["attempts"]) for row in rows("SELECT worker, run_id, max(attempt)")] == [("broken", 2)]
    (rate,) = rows("SELECT day, sum(runs)")
    assert (int(rate["runs"]), int(rate["failures"]), float(rate["percent"])) == (6, 3, 50.0)
    (replayed,) = rows("SELECT d.id, d.worker")
    assert (replayed["worker"], replayed["ends_run"]) == ("weak", "exhausted")
    assert {row["action"] for row in rows("SELECT at, actor, action")} >= {"trip", "replay", "set", "disable"}


async def test_the_insert_that_it_shows_is_a_trigger(lived_in: Stage):
    (statement,) = [block for block in blocks("sql", README) if block not in QUERIES]
    assert statement.startswith("INSERT INTO runs")
    before = await lived_in.value("SELECT count(*) FROM {p}runs")
    async with lived_in.db.write() as conn:
        if not lived_in.db.is_sqlite:
            await conn.exec_driver_sql("SET search_path TO jobrunner")
        await conn.exec_driver_sql(statement)
    assert await lived_in.value("SELECT count(*) FROM {p}runs") == before + 1


@pytest.fixture
def first_workers(tmp_path: Path) -> Path:
    """A folder with the worker file that the README tells to write."""
    source = blocks("python", section("## Your first workers", README))[0]
    assert len(source.splitlines()) <= 20
    (tmp_path / "app.py").write_text(source)
    return tmp_path


def history(folder: Path) -> dict[str, str]:
    with closing(sqlite3.connect(folder / "jobrunner.db")) as connection:
        return dict(connection.execute("SELECT worker, outcome FROM run_history"))


def test_its_worker_file_runs(first_workers: Path):
    ran = jobrunner("run app --until-idle", first_workers)
    assert ran.returncode == 0, ran.stderr
    assert history(first_workers) == {"fetch-data": "succeeded", "process-data": "succeeded"}


@pytest.fixture
def running_node(first_workers: Path) -> Iterator[subprocess.Popen[str]]:
    """`jobrunner run app`, once it has done its first work."""
    node = start_jobrunner("run app", first_workers)
    give_up = time.monotonic() + 30
    while not (first_workers / "jobrunner.db").exists() or "process-data" not in _history_so_far(first_workers):
        assert node.poll() is None, node.communicate()
        assert time.monotonic() < give_up
        time.sleep(0.05)
    yield node
    if node.poll() is None:
        node.kill()
    node.communicate()


def _history_so_far(folder: Path) -> dict[str, str]:
    try:
        return history(folder)
    except sqlite3.OperationalError:  # its tables are being made
        return {}


def test_the_first_commands_work_beside_a_running_node(first_workers: Path, running_node: subprocess.Popen[str]):
    _, commands = blocks("sh", section("## Your first workers", README))
    for line in commands.splitlines():
        words = shlex.split(line, comments=True)
        if words[0] == "jobrunner":
            done = jobrunner(shlex.join(words[1:]), first_workers)
            assert done.returncode == 0, done.stderr
        elif shutil.which(words[0]):  # the sqlite3 shell is not everywhere
            subprocess.run(words, cwd=first_workers, check=True, capture_output=True)
    running_node.send_signal(signal.SIGTERM)
    out, err = running_node.communicate(timeout=30)
    assert running_node.returncode == 0, err
    assert "To ada@example.org: Hello" in out


def mentioned_commands() -> list[str]:
    """Return every `jobrunner …` in inline code and shell blocks, of all pages."""
    texts = [page(name) for name in PAGES]
    inline = [code for text in texts for code in re.findall(r"`([^`\n]+)`", text)]
    lines = [line for text in texts for block in blocks("sh", text) for line in block.splitlines()]
    return sorted({code for code in (*inline, *lines) if code.startswith("jobrunner ")})


@pytest.mark.parametrize("mentioned", mentioned_commands())
def test_every_command_that_a_page_names_exists(mentioned: str):
    command = get_command(app)
    words = [word for word in shlex.split(mentioned, comments=True)[1:] if word != "…"]
    while words and hasattr(command, "commands"):
        assert words[0] in command.commands, f"there is no command {words[0]!r}"
        command = command.commands[words.pop(0)]
    known = {name for parameter in command.params for name in parameter.opts}
    assert [word for word in words if word.startswith("--") and word not in known] == []


def test_the_table_of_settings_is_complete_and_true():
    table = section("## Settings", page("docs/operating.md"))
    rows = dict(re.findall(r"^\| `JOBRUNNER_(\w+)` \|\s*`?([^`|]*?)`?\s*\|", table, re.MULTILINE))
    fields = dataclasses.fields(Settings)

    def shown(default: object) -> str:
        if default is None:
            return ""
        return f"{default:g}" if isinstance(default, float) else str(default)

    assert rows == {field.name.upper(): shown(field.default) for field in fields}


def test_the_middleware_reports_errors_and_not_what_was_said_on_purpose(tmp_path: Path):
    """The block as it stands, with a reporter that writes down what Sentry would get."""
    source = next(block for block in blocks("python", page("docs/options.md")) if "sentry_sdk" in block)
    reported: list[object] = []
    scope = types.SimpleNamespace(
        set_tag=lambda *tag: reported.append(tag), set_context=lambda name, context: reported.append(context)
    )
    sentry_sdk = types.SimpleNamespace(
        new_scope=lambda: nullcontext(scope), capture_exception=lambda error: reported.append(str(error))
    )
    orchestrator = WorkerOrchestrator(f"sqlite:///{tmp_path / 'jobs.db'}")
    names = {"orchestrator": orchestrator, "sentry_sdk": sentry_sdk, "RunContext": RunContext}
    exec(source, {**names, "Discard": Discard, "Snooze": Snooze, "RetryAfter": RetryAfter})

    async def broken() -> None:
        raise ValueError("no luck")

    async def given_up() -> None:
        raise Discard("on purpose")

    orchestrator.register_worker("broken", broken, max_retries=0)
    orchestrator.register_worker("given-up", given_up)
    ended = asyncio.run(run_until_idle(orchestrator))
    assert {row["worker"]: row["ends_run"] for row in ended} == {"broken": "exhausted", "given-up": "discarded"}
    assert ("worker", "broken") in reported
    assert [what for what in reported if isinstance(what, str)] == ["no luck"]


async def test_the_transaction_works(tmp_path: Path):
    source = next(block for block in blocks("python", page("docs/options.md")) if "run.transaction()" in block)
    orchestrator = WorkerOrchestrator(f"sqlite:///{tmp_path / 'jobs.db'}")
    exec(source, {"orchestrator": orchestrator, "RunContext": RunContext, "text": sa.text})
    await orchestrator.start()
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as connection:
        connection.execute("CREATE TABLE bookings (order_id INTEGER)")
        connection.commit()
        await orchestrator.trigger_worker("book-order", {"order": 7})
        await orchestrator.wait_idle()
        assert connection.execute("SELECT order_id FROM bookings").fetchall() == [(7,)]
        ended = connection.execute("SELECT outcome, result FROM run_history").fetchall()
    await orchestrator.stop()
    assert ended == [("succeeded", '{"booked":7}')]


def test_the_tests_of_workers_pass(first_workers: Path):
    (settings,) = blocks("toml", page("docs/testing.md"))
    (source,) = blocks("python", page("docs/testing.md"))
    (first_workers / "pyproject.toml").write_text(settings)
    (first_workers / "conftest.py").write_text('pytest_plugins = ["jobrunner.testing.plugin"]\n')
    (first_workers / "test_app.py").write_text(source)
    arguments = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:."}
    ran = subprocess.run(
        arguments, cwd=first_workers, env=environment, capture_output=True, text=True, timeout=110, check=False
    )
    assert ran.returncode == 0, ran.stdout
    assert "2 passed" in ran.stdout


def test_the_insert_by_the_sqlite_shell_waits_for_a_node_that_writes(first_workers: Path):
    """The shell is not everywhere; Python's own module stands in for it, with the timeout that the page gives it."""
    shown = [line for block in blocks("sh", page("docs/operating.md")) for line in block.splitlines()]
    (line,) = [line for line in shown if line.startswith("sqlite3 -cmd")]
    _, _, dot_command, file, statement = shlex.split(line)
    assert jobrunner("run app --until-idle", first_workers).returncode == 0
    with closing(sqlite3.connect(first_workers / file, timeout=int(dot_command.split()[1]) / 1000)) as shell:
        shell.execute(statement)
        shell.commit()
        assert shell.execute("SELECT worker, payload FROM runs").fetchall() == [
            ("send-email", '{"to": "ada@example.org"}')
        ]


async def test_the_times_that_the_cookbook_shows_can_be_written_by_hand(lived_in: Stage):
    by_postgres, by_sqlite = re.findall(r"`'(2030-[^`]*)'`", page("docs/sql.md"))
    moment = by_sqlite if lived_in.db.is_sqlite else by_postgres
    async with lived_in.db.write() as conn:
        await conn.exec_driver_sql(
            f"INSERT INTO {lived_in.db.schema_prefix}runs (worker, due_at) VALUES ('send-email', '{moment}')"
        )
        first, last = datetime(2029, 1, 1, tzinfo=UTC), datetime(2031, 1, 1, tzinfo=UTC)
        found = await conn.execute(sa.select(runs.c.due_at).where(runs.c.due_at.between(first, last)))
        assert found.scalars().all() == [datetime(2030, 1, 31, 9, tzinfo=UTC)]


def test_the_exit_codes_are_those_of_the_errors():
    rows = re.findall(r"^\| (\d+) \|", section("## Exit codes", page("docs/operating.md")), re.MULTILINE)
    said = {int(code) for code in rows}
    raised = {kind.exit_code for kind in _descendants(errors.JobrunnerError)}
    assert raised <= said


def _descendants(kind: type[errors.JobrunnerError]) -> Iterator[type[errors.JobrunnerError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _descendants(child)


def test_the_figures_of_the_readme_are_those_of_the_table():
    """After `scripts/bench --all --page` the README wants a look, too."""
    figures = re.findall(r"\d+,\d{3}|\d+\.\d+", section("## How fast it is", README))
    assert len(figures) >= 5
    assert [figure for figure in figures if figure not in page("docs/bench.md")] == []


def test_the_words_are_in_order_and_each_is_there_once():
    words = [found.lower() for found in re.findall(r"^- [^*\n]*\*([^*]+)\*", page("docs/words.md"), re.MULTILINE)]
    assert words == sorted(set(words))
    assert {"claim", "dead letter", "eligible", "fence", "look", "long way", "revision", "simple end", "stuck"} <= {
        *words
    }


def anchors(text: str) -> set[str]:
    """Return what the headings of a page can be linked as."""
    found = re.findall(r"^#+ (.+)$", CODE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_to_a_file_and_to_a_heading_that_is_there(name: str):
    text = CODE.sub("", page(name))
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = target.partition("#")
        path = (ROOT / name).parent / place if place else ROOT / name
        if not path.exists() or (anchor and anchor not in anchors(path.read_text())):
            broken.append(target)
    assert broken == []


def test_every_file_that_contributors_are_sent_to_is_there():
    named = re.findall(
        r"(?<![\w/.])((?:jobrunner|tests|migrations|scripts)/[\w/]+(?:\.py)?)", page("docs/contributing.md")
    )
    floors = re.findall(
        r"`((?:cli|runtime|storage|telemetry|policy|model)/[\w/]+(?:\.py)?)`", page("docs/architecture.md")
    )
    assert len(named) > 20
    assert len(floors) > 20
    named += [f"jobrunner/{name}" for name in floors]
    assert [name for name in named if "NNNN" not in name and not (ROOT / name).exists()] == []
