"""`jobrunner register MODULE`: the definitions of a deploy, without a node."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Cli

APP = """
from jobrunner import WorkerOrchestrator

orchestrator = WorkerOrchestrator(version={version})


@orchestrator.worker("send-email", execution_mode="triggered")
async def send_email(to: str) -> None: ...


@orchestrator.worker("report", interval_seconds={interval}, depends_on={depends_on})
async def report() -> None: ...
"""


@pytest.fixture
def deploy(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Write a module `shop`; return the arguments that register it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def write(interval: int = 60, version: int | None = None, depends_on: tuple[str, ...] = ()) -> list[str]:
        sys.modules.pop("shop", None)
        (tmp_path / "shop.py").write_text(APP.format(interval=interval, version=version, depends_on=depends_on))
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        return ["register", "shop"]

    yield write
    sys.modules.pop("shop", None)


def test_it_says_in_one_line_what_changed(cli, deploy):
    assert cli.ok(*deploy()).out == "registered 2 workers: added report, send-email\n"
    assert cli.ok(*deploy()).out == "registered 2 workers: 2 unchanged\n"
    assert cli.ok(*deploy(interval=30)).out == "registered 2 workers: changed report; 1 unchanged\n"
    assert cli.row("workers", name="report")["interval_seconds"] == 30
    assert cli.rows("nodes") == []


def test_it_says_which_limits_were_set(cli, deploy, tmp_path):
    def declaring(most: int) -> list[str]:
        words = deploy()
        with (tmp_path / "shop.py").open("a") as file:
            file.write(f'orchestrator.limit("api", max_running={most})\n')
        return words

    assert cli.ok(*declaring(4)).out == "registered 2 workers: added report, send-email; set limits api\n"
    assert cli.ok(*declaring(4)).out == "registered 2 workers: 2 unchanged\n"
    assert cli(*declaring(5), "--json").json["limits"] == ["api"]
    assert cli.row("limits")["max_running"] == 5


def test_programs_are_told_as_json(cli, deploy):
    found = cli(*deploy(), "--json").json
    assert found == {
        "workers": 2,
        "added": ["report", "send-email"],
        "changed": [],
        "limits": [],
        "kept_newer": [],
        "unused_overrides": [],
    }


def test_a_lower_version_changes_nothing_and_says_so(cli, deploy):
    cli.ok(*deploy(version=2))
    result = cli.ok(*deploy(version=1, interval=30))
    assert result.out == "registered 2 workers: 2 unchanged\n"
    assert result.err == "a newer version= is registered; its definitions stay: report, send-email\n"


def test_then_anybody_may_trigger(cli, deploy):
    cli.ok(*deploy())
    cli.ok("trigger", "send-email", "--payload", '{"to": "ann"}')


def test_what_cannot_be_registered_is_one_line_and_its_exit_code(cli, deploy):
    assert "'nobody'" in cli.refused(2, *deploy(depends_on=("nobody",)))
    assert "there is no module 'nowhere'" in cli.refused(2, "register", "nowhere")
    assert "'shop.py' is a file; give the module's name, shop" in cli.refused(2, "register", "shop.py")
    assert cli.rows("workers", name="report") == []


def test_a_missing_schema_is_made_on_sqlite_and_refused_on_postgres(
    deploy, empty_sqlite_url, empty_postgres_url, capsys
):
    assert "added report" in Cli(empty_sqlite_url, capsys).ok(*deploy()).out
    assert "`jobrunner db upgrade`" in Cli(empty_postgres_url, capsys).refused(4, *deploy())
