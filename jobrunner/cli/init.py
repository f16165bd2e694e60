"""`jobrunner init`: files to start from, which ship inside the package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from jobrunner.cli.output import note, say
from jobrunner.errors import Refused, UsageError

app = typer.Typer(rich_markup_mode=None)
_GRAFANA = "grafana"


@app.command("init")
def init(
    folder: Annotated[str, typer.Argument(metavar="[FOLDER]", help="Where to write them; it is made.")] = ".",
    grafana: Annotated[
        bool, typer.Option("--grafana", help="Two Grafana dashboards, and alert rules for Prometheus.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Write over files that are there.")] = False,
) -> None:
    """Write files to start from: Grafana dashboards and alert rules."""
    if not grafana:
        raise UsageError("say what to write: --grafana")
    shipped = resources.files("jobrunner") / _GRAFANA
    texts = {item.name: item.read_text(encoding="utf-8") for item in shipped.iterdir() if item.is_file()}
    for path in _write(Path(folder), dict(sorted(texts.items())), is_forced=force):
        say(f"wrote {path}")
    note("import the dashboards in Grafana; name the rules in `rule_files` of prometheus.yml")


def _write(folder: Path, texts: dict[str, str], *, is_forced: bool) -> list[Path]:
    """Write all files, or none if one is there already."""
    there = [folder / name for name in texts if (folder / name).exists()]
    if there and not is_forced:
        raise Refused(f"{there[0]} is there already; --force writes over it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise Refused(f"{folder} cannot be written: {error.strerror}; give another folder") from None
    return [folder / name for name in texts]
