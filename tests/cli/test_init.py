"""`jobrunner init`: what ships inside the package is whole, and lands where it is wanted."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli

METRICS = {
    "jobrunner_runs_total",
    "jobrunner_run_duration_seconds",
    "jobrunner_start_lateness_seconds",
    "jobrunner_runs_active",
    "jobrunner_runs_waiting",
    "jobrunner_oldest_due_age_seconds",
    "jobrunner_consecutive_failures",
    "jobrunner_worker_enabled",
    "jobrunner_circuit",
    "jobrunner_last_success_timestamp_seconds",
    "jobrunner_next_run_timestamp_seconds",
    "jobrunner_dead_letters_open",
    "jobrunner_missed_total",
    "jobrunner_nodes",
    "jobrunner_node_beat_age_seconds",
    "jobrunner_tick_age_seconds",
    "jobrunner_claim_duration_seconds",
    "jobrunner_finish_duration_seconds",
    "jobrunner_tick_duration_seconds",
    "jobrunner_slots",
    "jobrunner_alerts_waiting",
    "jobrunner_worker_info",
    "jobrunner_worker_health",
    "jobrunner_build_info",
}
HISTOGRAMS = {name for name in METRICS if name.endswith("_seconds") and ("duration" in name or "lateness" in name)}
DASHBOARDS = ["jobrunner-prometheus.json", "jobrunner-sql.json"]
FILES = [*DASHBOARDS[:1], "jobrunner-rules.yml", *DASHBOARDS[1:]]


def shipped(name: str) -> str:
    return (resources.files("jobrunner") / "grafana" / name).read_text(encoding="utf-8")


def dashboard(name: str) -> Any:
    return json.loads(shipped(name))


def rules() -> list[dict[str, Any]]:
    text = "\n".join(line for line in shipped("jobrunner-rules.yml").splitlines() if not line.startswith("#"))
    return [rule for group in json.loads(text)["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    panels = dashboard("jobrunner-prometheus.json")["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]] + [rule["expr"] for rule in rules()]


def queries() -> list[str]:
    return [target["rawSql"] for panel in dashboard("jobrunner-sql.json")["panels"] for target in panel["targets"]]


def test_every_metric_that_is_asked_for_is_one_there_is():
    used: set[str] = set()
    for expression in expressions():
        for name in re.findall(r"jobrunner_[a-z_]+", expression):
            plain = name.removesuffix("_bucket")
            assert plain in METRICS, expression
            assert (plain in HISTOGRAMS) == name.endswith("_bucket"), expression
            used.add(plain)
    assert METRICS - used == set(), "each is shown somewhere"


@pytest.mark.parametrize("expression", expressions())
def test_every_expression_closes_what_it_opens(expression: str):
    for opened, closed in ("()", "{}", "[]"):
        assert expression.count(opened) == expression.count(closed)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_have_ids_of_their_own_and_do_not_overlap(name: str):
    panels = dashboard(name)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & places, panel["title"]
        places |= cells


def test_the_rules_are_what_prometheus_reads():
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names) > 5
    for rule in rules():
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"\d+m", rule["for"])
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert set(rule["annotations"]) == {"summary", "description"}


def without_macros(sql: str) -> str:
    sql = re.sub(r"\$__timeGroupAlias\((\w+), \$__interval\)", r"floor(extract(epoch FROM \1) / 60) * 60 AS time", sql)
    sql = re.sub(r"\$__timeFilter\((\w+)\)", r"\1 BETWEEN now() - interval '6 hours' AND now()", sql)
    assert "$__" not in sql
    return sql.replace("$schema", "jobrunner")


def test_every_query_of_the_sql_dashboard_runs(postgres_url: str, capsys: pytest.CaptureFixture[str]):
    cli = Cli(postgres_url, capsys)

    async def read(db: Any, conn: Any) -> None:
        for query in queries():
            await conn.exec_driver_sql(without_macros(query))

    assert len(queries()) > 10
    cli.use(read)


def test_the_files_are_written_into_a_folder_and_never_over_others(sqlite_cli: Cli, tmp_path: Path):
    folder = tmp_path / "deep" / "grafana"
    written = sqlite_cli.bare("init", "--grafana", str(folder))
    assert written.out.splitlines() == [f"wrote {folder / name}" for name in FILES]
    assert {path.name: path.read_text() for path in folder.iterdir()} == {name: shipped(name) for name in FILES}
    (folder / FILES[0]).unlink()
    (folder / FILES[1]).write_text("mine")
    refused = sqlite_cli.bare("init", "--grafana", str(folder))
    assert refused.code == 1
    assert f"{folder / FILES[1]} is there already; --force writes over it" in refused.err
    assert not (folder / FILES[0]).exists(), "all or none"
    assert sqlite_cli.bare("init", "--grafana", "--force", str(folder)).code == 0
    assert (folder / FILES[1]).read_text() == shipped(FILES[1])


def test_what_cannot_be_written_and_what_is_not_said_are_refused_in_one_line(sqlite_cli: Cli, tmp_path: Path):
    (tmp_path / "file").write_text("")
    refused = sqlite_cli.bare("init", "--grafana", str(tmp_path / "file" / "below"))
    assert (refused.code, refused.err.count("\n")) == (1, 1)
    assert "cannot be written" in refused.err
    assert "say what to write: --grafana" in sqlite_cli.bare("init").err
