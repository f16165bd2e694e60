"""The command line of `scripts/bench`."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from tests.bench import machine, plan
from tests.bench.bench import Bench
from tests.bench.cases import (
    chart,
    console,
    drain,
    enqueue,
    history,
    idle,
    latency,
    limits,
    open_transaction,
    raw,
    reading,
    recovery,
    scale,
    schedule,
)
from tests.bench.figures import Row, markdown, show
from tests.bench.product import ROOT

CASES: dict[str, Callable[[Bench], list[Row]]] = {
    "drain": drain.run,
    "latency": latency.run,
    "schedule": schedule.run,
    "idle": idle.run,
    "scale": scale.run,
    "history": history.run,
    "limits": limits.run,
    "open-transaction": open_transaction.run,
    "enqueue": enqueue.run,
    "recovery": recovery.run,
    "raw": raw.run,
    "reading": reading.run,
    "console": console.run,
    "chart": chart.run,
}

BEGIN = "<!-- bench: begin; made by `scripts/bench --all --page` -->"
END = "<!-- bench: end -->"


def parser() -> argparse.ArgumentParser:
    it = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    it.add_argument("case", nargs="?", choices=[*CASES], help="what to measure")
    it.add_argument("--database", choices=["sqlite", "postgres"], default="sqlite")
    it.add_argument("--concurrency", type=int, default=50, help="runs at once; 50 unless given")
    it.add_argument("--waiting", type=int, default=10_000, help="runs that wait at the start; 10,000 unless given")
    it.add_argument("--nodes", type=int, default=1)
    it.add_argument("--synchronous", choices=["FULL", "NORMAL"], default="FULL", help="on SQLite")
    it.add_argument("--against", default="", help="peers, with commas: pgqueuer,procrastinate,oban,huey,apscheduler")
    it.add_argument("--repeats", type=int, default=None, help="measurements of each; 3 unless given")
    it.add_argument("--all", action="store_true", help="every row of the table, in under 20 minutes")
    it.add_argument("--quick", action="store_true", help="fewer and smaller measurements; alone: in under 3 minutes")
    it.add_argument("--seconds", type=float, default=0.0, help="how long to watch, where a case has a time")
    it.add_argument("--json", type=Path, metavar="FILE", help="write all samples, and what machine it was")
    it.add_argument("--markdown", action="store_true", help="print the table as docs/bench.md has it")
    it.add_argument("--page", action="store_true", help="write the table into docs/bench.md, between its marks")
    return it


def write_page(text: str, path: Path) -> None:
    """Replace what stands between the two marks in the file."""
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{path.name} has no marks {BEGIN} and {END}")
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def main(arguments: list[str] | None = None) -> list[Row]:
    options = parser().parse_args(arguments)
    if not (options.case or options.all or options.quick):
        parser().error("name a case, or give --all or --quick")
    console = Console(width=160)
    bench = Bench(
        database=options.database,
        concurrency=options.concurrency,
        waiting=options.waiting,
        nodes=options.nodes,
        repeats=options.repeats or (2 if options.quick and not options.case else 3),
        synchronous=options.synchronous,
        is_quick=options.quick,
        seconds=options.seconds,
        against=tuple(name for name in options.against.split(",") if name),
    )
    began = time.monotonic()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # then nodes and servers are ended, as after Ctrl-C
    try:
        rows = CASES[options.case](bench) if options.case else plan.run(bench)
    finally:
        bench.close()
    facts = machine.facts()
    print(markdown(rows)) if options.markdown else show(rows, console)
    console.print(machine.sentence(facts, time.monotonic() - began))
    if options.page:
        write_page(f"{markdown(rows)}\n\n{machine.sentence(facts, time.monotonic() - began)}", ROOT / "docs/bench.md")
    if options.json:
        document = {"machine": facts, "seconds": time.monotonic() - began, "rows": [row.as_json() for row in rows]}
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    return rows


if __name__ == "__main__":
    main()
